# SPDX-License-Identifier: Apache-2.0
"""Norms and rotary embeddings of HiLS on Triton kernels against torch: on a CUDA device, or under TRITON_INTERPRET=1."""

import itertools

import pytest
import torch

from sglang.srt.layers import hils_kernels, hils_ops
from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.hils_ops import HeadRows, HiddenNorm, Rotary
from sglang.test.attention.hsa_device import DEVICE, ON_GPU, needs_kernels

pytestmark = needs_kernels

# bfloat16 is wrong under the interpreter.
DTYPES = (torch.float32, torch.float16) + (torch.bfloat16,) * ON_GPU
ROWS, LAST_POSITION = 7, 700
HEADS = 6
EPS = 1e-6


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(compat, "attention_tp", lambda: (0, 1))


@pytest.fixture
def use_kernels(monkeypatch):
    def choose(chosen):
        monkeypatch.setattr(hils_ops, "on_kernels", lambda x: chosen)

    return choose


def on_both(use_kernels, compute):
    """(of the kernels, of torch)"""
    results = []
    for chosen in (True, False):
        use_kernels(chosen)
        results.append(compute())
    return results


def check(ours, expected):
    """Equal within 1e-6 in float32, and in half precision bit by bit but for about one value in 1,000.

    Sums of squares in another order may round such a value, which a weight or a rotation then makes larger, to its neighbour.
    """
    assert ours.dtype == expected.dtype and ours.shape == expected.shape
    assert ours.is_contiguous() and not ours.isnan().any()
    if ours.dtype == torch.float32:
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
        return
    assert (ours != expected).sum() <= 2 + ours.numel() // 1000
    place = torch.finfo(ours.dtype).eps * expected.abs().amax(dim=-1, keepdim=True)
    assert ((ours - expected).abs() <= 2 * place).all()


def norm(head_dim, heads, all_heads, dtype):
    made = hils_ops.make_head_norm(head_dim, heads, all_heads, EPS)
    made.weight.data = (1 + 0.5 * torch.randn_like(made.weight)).to(DEVICE, dtype)
    return made.requires_grad_(False)


def rotary(head_dim, rounds, dtype):
    frequencies = 10000.0 ** -(torch.arange(head_dim // 2) / (head_dim // 2))
    frequencies[-1] = 0.0
    torch.set_default_dtype(dtype)
    try:
        return Rotary(frequencies, LAST_POSITION, rounds).to(DEVICE)
    finally:
        torch.set_default_dtype(torch.float32)


def qkv_rows(rows, heads, kv_heads, head_dim, dtype):
    """q and k, which are columns of one tensor whose others are NaN."""
    qkv = 3 * torch.randn(rows, heads + 2 * kv_heads, head_dim)
    qkv[:, heads + kv_heads :] = float("nan")
    qkv = qkv.to(DEVICE, dtype)
    return qkv[:, :heads], qkv[:, heads : heads + kv_heads]


def positions(rows):
    last = torch.tensor([LAST_POSITION])
    return torch.cat([last, torch.randint(0, LAST_POSITION, (rows - 1,))]).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("select", [None, "own", "added"])
def test_heads_are_those_of_torch(use_kernels, dtype, head_dim, select):
    forms = itertools.product((False, True), repeat=1 if select is None else 2)
    for (all_heads, *select_form), rounds in itertools.product(
        forms, (None, False, True)
    ):
        kv_heads = 1 if select else 2  # whose norm over all heads is that of one
        raw_q, k = qkv_rows(ROWS, HEADS, kv_heads, head_dim, dtype)
        q = HeadRows(raw_q, norm(head_dim, HEADS, all_heads, dtype))
        k = HeadRows(k, norm(head_dim, kv_heads, all_heads, dtype))
        select_q = None
        if select:
            query = torch.randn_like(raw_q.contiguous())
            select_norm = norm(head_dim, HEADS, *select_form, dtype)
            added = raw_q if select == "added" else None
            select_q = HeadRows(query, select_norm, added)
        turn = None if rounds is None else rotary(head_dim, rounds, dtype)
        at = positions(ROWS)
        results = on_both(
            use_kernels, lambda: hils_ops.norm_rotary(q, k, select_q, turn, at)
        )
        for ours, expected in zip(*results):
            assert (ours is None) == (expected is None)
            if ours is not None:
                check(ours, expected)


@pytest.mark.parametrize("rows", [0, 1, 65])
@pytest.mark.parametrize("head_dim", [80, 96])  # no power of two
def test_any_number_of_rows(use_kernels, rows, head_dim):
    raw_q, k = qkv_rows(rows, HEADS, 2, head_dim, torch.float32)
    q = HeadRows(raw_q, norm(head_dim, HEADS, True, torch.float32))
    k = HeadRows(k, norm(head_dim, 2, False, torch.float32))
    turn, at = rotary(head_dim, False, torch.float32), positions(max(rows, 1))[:rows]
    results = on_both(use_kernels, lambda: hils_ops.norm_rotary(q, k, None, turn, at))
    for ours, expected in zip(*results):
        if ours is not None:
            check(ours, expected)


def test_a_norm_over_several_ranks_is_on_torch(use_kernels, monkeypatch):
    """The squares of the heads of all ranks are summed before any of them is scaled."""
    q_of_all, k_of_all = qkv_rows(ROWS, 2 * HEADS, 4, 16, torch.float32)
    parts = (q_of_all, HEADS), (k_of_all, 2)
    ours, expected, others = [], [], []
    for rows, heads in parts:
        both, own = (norm(16, n, True, torch.float32) for n in (2 * heads, heads))
        own.weight.data.copy_(both.weight[: heads * 16])
        own.ranks, own.width = 2, both.width
        others.append(rows[:, heads:].flatten(1).square().sum(-1, keepdim=True))
        ours.append(HeadRows(rows[:, :heads], own))
        expected.append(both(rows)[:, :heads])
    remaining = iter(others)
    monkeypatch.setattr(
        hils_ops,
        "tensor_model_parallel_all_reduce",
        lambda squares: squares + next(remaining),
    )
    use_kernels(True)
    found = hils_ops.norm_rotary(*ours, None, None, positions(ROWS))
    for one, other in zip(found[:2], expected):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows,width", [(0, 64), (1, 1000), (65, 64), (7, 4096)])
def test_hidden_states_are_those_of_torch(use_kernels, dtype, rows, width):
    hidden = HiddenNorm(width, EPS)
    hidden.weight.data = (1 + 0.5 * torch.randn(width)).to(DEVICE, dtype)
    hidden.requires_grad_(False)
    x, residual = torch.randn(2, rows, width).to(DEVICE, dtype)
    for compute in (
        lambda: hidden(x),
        lambda: hidden(x, residual),
        lambda: (hidden.add_to(residual, x),),
    ):
        for ours, expected in zip(*on_both(use_kernels, compute)):
            check(ours, expected)


def test_the_residual_is_kept(use_kernels):
    """Both are inputs of other layers, and hidden states without a residual are the sum."""
    hidden = HiddenNorm(64, EPS).to(DEVICE).requires_grad_(False)
    x, residual = torch.randn(2, 3, 64).to(DEVICE)
    before = x.clone(), residual.clone()
    use_kernels(True)
    assert hidden(x)[1] is x
    _, total = hidden(x, residual)
    assert torch.equal(total, x + residual)
    hidden.add_to(residual, x)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_a_cuda_device_has_the_kernels(monkeypatch):
    calls = []
    monkeypatch.setattr(hils_kernels, "norm", lambda *given: calls.append(given))
    HiddenNorm(64, EPS).to(DEVICE)(torch.zeros(1, 64, device=DEVICE))
    assert len(calls) == 1


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
