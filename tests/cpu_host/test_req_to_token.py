# SPDX-License-Identifier: Apache-2.0
"""Request-to-token writes and positions: torch on a CPU for every backend name, equal to the Triton kernels."""

from types import SimpleNamespace

import pytest
import torch
from host_release import allocation, choose_backend, last_locations_on_a_cpu

from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor import forward_batch_info
from sglang.srt.utils import support_triton

ROWS, CONTEXT = 16, 2304
LENGTHS = (1, 63, 64, 65, 127, 1000)
UNTOUCHED = -7


def batch(bs, seed):
    """Random requests: prefixes of any length, aligned to a page of 64 or not."""
    generator = torch.Generator().manual_seed(seed)
    extend = torch.tensor(LENGTHS)[torch.randint(len(LENGTHS), (bs,), generator=generator)]
    prefix = torch.randint(0, 1200, (bs,), generator=generator)
    prefix[::3] = prefix[::3] // 64 * 64
    if bs > 1:
        prefix[1] = 0
    slots = torch.randperm(1 << 16, generator=generator)[: int((prefix + extend).sum())]
    prefix_tensors = list(slots[: int(prefix.sum())].split(prefix.tolist()))
    return SimpleNamespace(
        rows=torch.randperm(ROWS, generator=generator)[:bs],
        prefix=prefix,
        seq=prefix + extend,
        prefix_tensors=prefix_tensors,
        out_cache_loc=slots[int(prefix.sum()) :],
    )


BATCHES = [batch(bs, seed=10 * bs + n) for bs in (1, 2, 5, 16) for n in range(3)]


last_locations = pytest.mark.skipif(not last_locations_on_a_cpu(), reason="the release looks none up on a CPU")


@pytest.fixture
def backend_elsewhere(cpu_host, monkeypatch):
    """A CPU host whose attention backend has a name that SGLang does not know."""
    choose_backend(monkeypatch, "elsewhere")
    for module, name in (
        (allocation, "write_req_to_token_pool_triton"),
        (allocation, "get_last_loc_triton"),
        (forward_batch_info, "compute_position_triton"),
    ):
        monkeypatch.setattr(module, name, None)  # a launch is a TypeError


def empty_table():
    return torch.full((ROWS, CONTEXT), UNTOUCHED, dtype=torch.int32)


def test_write_cache_indices(backend_elsewhere, triton_interpreter):
    cases = [
        ("write_req_to_token", (empty_table(), b.rows, b.prefix_tensors, b.prefix, b.seq, b.out_cache_loc))
        for b in BATCHES
    ]
    for b, expected in zip(BATCHES, triton_interpreter(cases), strict=True):
        pool = ReqToTokenPool(ROWS, CONTEXT, device="cpu", enable_memory_saver=False)
        pool.req_to_token.fill_(UNTOUCHED)
        extend = b.seq - b.prefix
        tensors = (b.rows, b.rows, b.prefix, b.prefix, b.seq, b.seq, extend, extend)
        allocation.write_cache_indices(b.out_cache_loc, *tensors, b.prefix_tensors, pool)
        assert torch.equal(pool.req_to_token[:ROWS], expected)  # later releases have a row for padding, too
        assert int((expected != UNTOUCHED).sum()) == int(b.seq.sum())


@last_locations
def test_get_last_loc(backend_elsewhere, triton_interpreter):
    table = torch.randperm(ROWS * CONTEXT).view(ROWS, CONTEXT).to(torch.int32)
    cases = [("get_last_loc", (table, b.rows, b.prefix)) for b in BATCHES]
    for b, expected in zip(BATCHES, triton_interpreter(cases), strict=True):
        out = allocation.get_last_loc(table, b.rows, b.prefix)
        assert torch.equal(out, expected) and out.dtype == expected.dtype
        assert torch.equal(out == -1, b.prefix == 0)


@last_locations
def test_get_last_loc_can_be_compiled(backend_elsewhere):
    """Speculative decoding compiles its caller; a predicate that Dynamo cannot trace would break it on newer torch."""
    table = torch.randperm(ROWS * CONTEXT).view(ROWS, CONTEXT).to(torch.int32)
    compiled = torch.compile(allocation.get_last_loc, fullgraph=True, backend="eager")
    for b in BATCHES:
        assert torch.equal(compiled(table, b.rows, b.prefix), allocation.get_last_loc(table, b.rows, b.prefix))


def test_compute_position(cpu_host, backend_elsewhere, triton_interpreter):
    cases = []
    for b in BATCHES:
        extend = (b.seq - b.prefix).to(torch.int32)
        cases.append(("compute_position", (b.prefix.to(torch.int32), extend, int(extend.sum()))))
    for (_, args), expected in zip(cases, triton_interpreter(cases), strict=True):
        for out, want in zip(forward_batch_info.compute_position("elsewhere", *args), expected, strict=True):
            assert torch.equal(out, want) and out.dtype == want.dtype


def test_support_triton_on_cpu(cpu_host):
    assert not any(map(support_triton, ("elsewhere", "triton", "torch_native", "intel_amx")))


def test_support_triton_on_gpu(monkeypatch):
    monkeypatch.setattr("sglang.srt.utils.common.is_cpu", lambda: False)
    assert support_triton("elsewhere") and support_triton("triton")
    assert not support_triton("torch_native") and not support_triton("intel_amx")
