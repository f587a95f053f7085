# SPDX-License-Identifier: Apache-2.0
"""Deterministic inference: no bit of a row's result depends on its neighbours, or on how its prompt was cut.

On a CUDA device, or under TRITON_INTERPRET=1.
"""

import copy
from typing import List, Sequence, Tuple

import pytest
import torch

from sglang.test.attention.hsa_device import DEVICE, ON_GPU, needs_kernels
from sglang.test.attention.hsa_harness import Harness

pytestmark = needs_kernels

# Kinds that deterministic inference takes, with every strategy and weight mode of theirs.
by_kind = pytest.mark.parametrize(
    "kind,strategy,weights",
    [
        ("slow_keys", "head", "mass"),
        ("slow_keys", "group", "mass"),
        ("landmark", "group", "score"),
        ("landmark", "softmax_head", "mass"),
    ],
)
LENGTHS = (333, 15, 142, 79, 201, 64, 1)
REAL = dict(num_heads=16, num_kv_heads=2, head_dim=128, window_size=200)
on_a_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
of_real_shapes = pytest.mark.parametrize(
    "dtype,page_size",
    [(torch.float16, 16), (torch.bfloat16, 64), (torch.bfloat16, 128)],
    ids=str,
)


def harness(**options) -> Harness:
    return Harness(
        **{"num_pages": 100, **options}, device=DEVICE, decode_kernels=True, extend_kernels=True, batch_invariant=True
    )  # fmt: skip


def fill(h: Harness, lengths: Sequence[int]) -> List:
    """Sequences with so many tokens in every layer, on a CPU by the references, which are quick."""
    kernels = h.backend.kernels
    if not ON_GPU:
        h.backend.kernels = frozenset()
    sequences = [h.new_sequence() for _ in lengths]
    batch = h.batch(dict(enumerate(lengths)), sequences, decode=False)
    h.backend.init_forward_metadata(batch)
    inputs = h.inputs(sequences, lengths)
    for layer in range(len(h.layers)):
        h.forward(batch, *inputs, layer)
    h.backend.kernels = kernels
    return sequences


def only(batch, rows: Sequence[int]):
    """A decode batch of some rows of another."""
    part = copy.copy(batch)
    for name in ("req_pool_indices", "seq_lens", "seq_lens_cpu", "out_cache_loc"):
        setattr(part, name, getattr(batch, name)[list(rows)])
    part.batch_size = len(rows)
    return part


def check_decode(h: Harness, lengths: Sequence[int]) -> None:
    """A step of each row alone, of some and of all, in other places of the batch."""
    sequences = fill(h, lengths)
    every = list(range(len(lengths)))
    batch = h.batch(dict.fromkeys(every, 1), sequences, decode=True)
    q, k, v = h.inputs(sequences, [1] * len(lengths))

    def run(rows):
        part = only(batch, rows)
        h.backend.init_forward_metadata(part)
        outputs = [
            h.forward(part, q[rows], k[rows], v[rows], layer)
            for layer in range(len(h.layers))
        ]
        selected = h.backend.decode.buffers.attention.selected[: len(rows)]
        return torch.stack(outputs, 1), selected.cpu().clone()

    outputs, selected = run(every)
    assert (selected >= 0).any()
    for rows in (*([row] for row in every), [2, 0, 4], every[::-1]):
        o, chosen = run(rows)
        assert torch.equal(o, outputs[rows])
        assert torch.equal(chosen, selected[rows])


@by_kind
def test_a_decoded_row_does_not_depend_on_its_batch(kind, strategy, weights):
    h = harness(chunk_repr=kind, selection_strategy=strategy, weight_mode=weights)
    check_decode(h, LENGTHS)


def test_a_decoded_row_of_a_dense_layer_does_not_depend_on_its_batch():
    check_decode(harness(layers=2, hsa_layer_ids=[0]), LENGTHS)


@on_a_gpu
@of_real_shapes
@by_kind
def test_decode_at_real_shapes(dtype, page_size, kind, strategy, weights):
    h = harness(
        num_pages=40_000 // page_size, layers=2, hsa_layer_ids=[0], dtype=dtype, page_size=page_size, topk=24,
        chunk_repr=kind, selection_strategy=strategy, weight_mode=weights, **REAL,
    )  # fmt: skip
    check_decode(h, (9000, 65, 4000, 1, 700, 12_000, 2048))


Pass = Sequence[Tuple[int, int]]  # sequences and their new tokens


def answers(passes: Sequence[Pass], **options) -> torch.Tensor:
    """Outputs of sequence 0 in every layer ``[T, layers, H_q, D]`` after these passes.

    The tokens of a sequence are the same in every call, whatever the passes.
    """
    h = harness(**options)
    tokens = {}
    for i in {i for one in passes for i, _ in one}:
        rng = torch.Generator().manual_seed(i)
        total = sum(new for one in passes for j, new in one if i == j)
        heads = h.num_heads + 2 * h.num_kv_heads
        tokens[i] = torch.randn(total, heads, h.head_dim, generator=rng)
        # Pages differ, as those of real text do.
        drift = torch.sin(torch.arange(total) // h.config.page_size * 2.3 + i)
        tokens[i][:, h.num_heads :] += drift[:, None, None]
    sequences = {i: h.new_sequence() for i in sorted(tokens)}
    outputs = []
    for one in passes:
        own = [sequences[i] for i, _ in one]
        begins = [s.length for s in own]
        news = [new for _, new in one]
        batch = h.batch(dict(enumerate(news)), own, decode=False)
        h.backend.init_forward_metadata(batch)
        assert not h.backend.goes_dense
        packed = torch.cat(
            [tokens[i][at : at + new] for (i, new), at in zip(one, begins)]
        )
        q, k, v = packed.to(DEVICE, h.dtype).split(
            [h.num_heads, h.num_kv_heads, h.num_kv_heads], dim=1
        )
        o = torch.stack(
            [h.forward(batch, q, k, v, layer) for layer in range(len(h.layers))], 1
        )
        place = [i for i, _ in one].index(0)
        outputs.append(o.split(news)[place])
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    return torch.cat(outputs)


def schedules(total: int, page: int) -> List[Sequence[Pass]]:
    """Ways to run a prompt: whole, beside others, in chunks that end on pages, in chunks beside others."""
    first, second = 3 * page, 5 * page
    last = total - first - second
    return [
        [[(0, total)]],
        [[(1, 2 * page + 3), (0, total), (2, 7)]],
        [[(0, first)], [(0, second)], [(0, last)]],
        [[(0, first), (1, 9 * page + 5)], [(1, 7), (0, second)], [(2, 70), (0, last), (1, 1)]],  # fmt: skip
    ]


def check_extend(total: int, page_size: int, **options) -> None:
    whole, *others = schedules(total, page_size)
    expected = answers(whole, page_size=page_size, **options)
    for passes in others:
        assert torch.equal(answers(passes, page_size=page_size, **options), expected)


@by_kind
def test_a_row_of_a_prompt_does_not_depend_on_its_batch(kind, strategy, weights):
    """Pages smaller than what attention reads at once, where rows do not share a step with the pages of others."""
    check_extend(
        203, 16, chunk_repr=kind, selection_strategy=strategy, weight_mode=weights
    )


@pytest.mark.parametrize("prefill", ["sparse", "100", "300"])
def test_nor_on_who_attends_short_prompts(prefill):
    """Passes without a page to select stay on the kernels, since a longer prompt would keep them there."""
    check_extend(700, 64, prefill=prefill, num_pages=30, num_heads=2, num_kv_heads=1)


@on_a_gpu
@of_real_shapes
@by_kind
def test_prompts_at_real_shapes(dtype, page_size, kind, strategy, weights):
    check_extend(
        6000, page_size, num_pages=40_000 // page_size, dtype=dtype, topk=24, prefill="1000",
        chunk_repr=kind, selection_strategy=strategy, weight_mode=weights, **REAL,
    )  # fmt: skip


@pytest.mark.parametrize("scales", [None, (0.5, 2.0)])
def test_decode_and_prefill_represent_a_page_alike(scales):
    """To the byte, so that it does not matter in which pass a page was completed or found without a representation."""
    h = harness(window_size=1, kv_scales=scales)
    (s,) = fill(h, [80])
    page = h.pages_of(s)[2].long()
    of_prefill = h.pool.repr_buffers[0][page].clone()
    h.pool.repr_stamps[0][page] -= 1
    h.pool.repr_buffers[0][page] = 255
    h.step([s], [1], decode=True)
    assert h.pool.repr_valid(0, page)
    assert torch.equal(h.pool.repr_buffers[0][page], of_prefill)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
