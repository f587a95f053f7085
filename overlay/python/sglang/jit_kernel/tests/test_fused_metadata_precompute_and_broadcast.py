# SPDX-License-Identifier: Apache-2.0
"""The fused metadata kernel on a GPU: bit for bit the torch reference, one launch, in CUDA graphs, without host syncs."""

import sys

import numpy as np
import pytest
import torch

from sglang.jit_kernel.fused_metadata_checks import (
    DECODE,
    DRAFT_EXTEND,
    FIELDS,
    TARGET_VERIFY,
)
from sglang.jit_kernel.fused_metadata_precompute_and_broadcast import (
    fused_metadata_precompute_and_broadcast_cuda,
    fused_metadata_precompute_and_broadcast_reference,
)
from sglang.test.attention.hsa_release import get_ci_test_range
from sglang.test.ci.ci_register import register_cuda_ci
from sglang.test.fused_metadata_cases import (
    MODES,
    POISON,
    Case,
    capture,
    differences,
    draw,
)

register_cuda_ci(est_time=60, suite="stage-b-kernel-unit-1-gpu-large")
register_cuda_ci(est_time=180, suite="nightly-kernel-1-gpu", nightly=True)

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device and nvcc", allow_module_level=True)

KERNEL = fused_metadata_precompute_and_broadcast_cuda
REFERENCE = fused_metadata_precompute_and_broadcast_reference


def run_on_gpu(case, op):
    """The memory around all destinations after ``op``, left on the GPU."""
    buffers = case.buffers("cuda")
    op(**case.arguments(buffers, "cuda"))
    return buffers


def check(case):
    expected = run_on_gpu(case, REFERENCE)
    found = differences(run_on_gpu(case, KERNEL), expected)
    assert not found, (case, found)


@pytest.mark.parametrize("seed", range(get_ci_test_range([60], [20])[0]))
def test_fuzz(seed):
    """Batch 1-1024, N 1-16, lengths 1-131072, pages of 1, 3, 32 and 64, all modes, int32 and int64, any alignment."""
    rng = np.random.default_rng(seed)
    for _ in range(5):
        check(draw(rng, budget=1 << 25))


def test_fuzz_against_plain_loops():
    rng = np.random.default_rng(1000)
    for _ in range(20):
        case = draw(rng, budget=1 << 21)
        found = differences(case.run(KERNEL, "cuda"), case.expected())
        assert not found, (case, found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", (0, 1, 31, 32, 33, 255, 256, 257, 1000, 1024, 5000))
def test_batches_around_warps_and_blocks(batch, mode):
    rng = np.random.default_rng(batch)
    tokens = 1 if mode == DECODE else 4
    extend = rng.integers(0, tokens + 1, batch) if mode == DRAFT_EXTEND else None
    lengths = rng.integers(1, 500, batch)
    check(Case(batch, 3, lengths, mode, tokens, extend, offsets=[0, 1, 7]))


@pytest.mark.parametrize("ragged", (False, True))
def test_the_largest(ragged):
    """1024 requests of up to 131072 tokens, offsets of rows beyond 2^31 bytes; 2 steps, for memory."""
    lengths = np.random.default_rng(0).integers(1, 131073, 1024)
    lengths[-1] = 131072
    check(Case(1024, 2, lengths, ragged=ragged))


def test_sixteen_steps_of_every_mode():
    lengths = np.random.default_rng(1).integers(1, 4097, 64)
    check(Case(64, 16, lengths))
    check(Case(64, 16, lengths, TARGET_VERIFY, 4))
    check(Case(64, 16, lengths, DRAFT_EXTEND, 4, np.arange(64) % 5))


@pytest.mark.parametrize("steps, launches", ((1, 1), (8, 1), (16, 1), (32, 1), (33, 2)))
@pytest.mark.parametrize("dtype", (torch.int32, torch.int64), ids=str)
def test_launches(steps, launches, dtype):
    """Nothing but the kernel runs: no conversion, no fill, no copy. And the host never waits."""
    case = Case(200, steps, np.arange(1, 201) * 7, dtypes=(dtype,) * 4)
    arguments = case.arguments(case.buffers("cuda"), "cuda")
    KERNEL(**arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        KERNEL(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert capture(lambda: KERNEL(**arguments))[1] == launches


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ragged", (False, True))
def test_in_a_cuda_graph_with_inputs_that_change(mode, ragged):
    """A replay is the kernel alone, and sees new lengths, requests and slots. ``max_len`` is the width of the table."""
    batch, tokens, width = 33, 1 if mode == DECODE else 3, 3000
    rng = np.random.default_rng(7)

    def make(seed):
        return Case(
            batch,
            4,
            rng.integers(1, width - 20, batch),
            mode,
            tokens,
            rng.integers(0, tokens + 1, batch) if mode == DRAFT_EXTEND else None,
            max_len=width,
            ragged=ragged,
            offsets=[1, 2, 3, 4],
            seed=seed,
        )

    case = make(0)
    buffers = case.buffers("cuda")
    arguments = case.arguments(buffers, "cuda")
    inputs = [n for n, v in arguments.items() if isinstance(v, torch.Tensor)]
    graph, nodes = capture(lambda: KERNEL(**arguments))
    assert nodes == 1
    for seed in range(1, 5):
        case = make(seed)
        new = case.arguments(case.buffers("cuda"), "cuda")
        for name in inputs:
            arguments[name].copy_(new[name])
        for steps in buffers.values():
            for buffer in steps:
                buffer.fill_(POISON)
        graph.replay()
        assert not differences(buffers, run_on_gpu(case, REFERENCE))


def test_other_streams():
    case = Case(70, 3, np.arange(1, 71) * 9)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = run_on_gpu(case, KERNEL)
    stream.synchronize()
    assert not differences(got, run_on_gpu(case, REFERENCE))


def test_tensors_of_two_devices_are_refused():
    case = Case(4, 2, np.array([5, 70, 64, 130]))
    arguments = case.arguments(case.buffers("cuda"), "cuda")
    arguments["cu_seqlens_k_list"][1] = arguments["cu_seqlens_k_list"][1].cpu()
    with pytest.raises(
        ValueError, match=r"cu_seqlens_k_list\[1\] must be .* on cuda:0"
    ):
        KERNEL(**arguments)


def test_pages_alone_as_hsa_needs_them():
    fields = ("cache_seqlens_list", "cu_seqlens_k_list", "real_page_table_list")
    lengths = np.array([64, 1, 70000, 131000])
    case = Case(
        4, 4, lengths, offsets=[1, 2, 3, 4], ragged=True, topk=None, fields=fields
    )
    assert set(fields) < set(FIELDS)
    check(case)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v", "-s"]))
