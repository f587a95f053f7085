# SPDX-License-Identifier: Apache-2.0
"""HiSparse's swap-in kernel on a GPU: against the oracle, against the pinned release's kernel, and at its limits."""

import numpy as np
import pytest
import torch
from hisparse_release import KERNEL, oldest
from pin import pin_file
from swap_in import call, compile_kernel, draw_top_k, lengths_for, make_state, ops, run_steps, swap_in_oracle

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device and nvcc", allow_module_level=True)

# Top-k, and buffers from the smallest to the largest that int16 can number. 7232 is the largest that the pinned kernel's
# static arrays allow with top-k 2048, 7296 the first one beyond.
SIZES = [
    *((512, b) for b in (512, 1024, 4096, 32768)),
    *((1024, b) for b in (1024, 2048, 6144, 32768)),
    *((2048, b) for b in (2048, 4096, 7232, 7296, 16384, 32768)),
]
STATIC = [(512, 512), (512, 1024), (512, 4096), (1024, 2048), (1024, 6144), (2048, 2048), (2048, 4096), (2048, 7232)]
# The most and the least that 227 KB of shared memory (Hopper) do and do not hold.
FITS, TOO_LARGE = (9728, 32768), (10240, 32768)
GRAPH = (2048, 7360)  # used nowhere else, so that its first call is the captured one


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64), ids=str)
@pytest.mark.parametrize("top_k, buffer", SIZES)
def test_equals_the_oracle(top_k, buffer, dtype):
    lengths = lengths_for(top_k, buffer, 10 if buffer > 8192 else 40)
    run_steps(compile_kernel(top_k, buffer), make_state(lengths, buffer, dtype, seed=buffer), top_k, buffer, seed=1)


@pytest.mark.parametrize("top_k, buffer", STATIC)
def test_equals_the_pinned_kernel_where_that_one_runs(top_k, buffer):
    pinned = compile_kernel(top_k, buffer, source=pin_file(KERNEL))
    cpu = make_state(lengths_for(top_k, buffer, 40), buffer, torch.int32, seed=2)
    others = [(pinned, cpu.copy("cuda"))]
    run_steps(compile_kernel(top_k, buffer), cpu, top_k, buffer, seed=3, steps=5, others=others)


@oldest
def test_the_pinned_kernel_does_not_compile_one_page_further():
    with pytest.raises(RuntimeError, match="too much shared data"):
        compile_kernel(2048, 7296, source=pin_file(KERNEL))


def test_many_requests():
    lengths = lengths_for(512, 1024, 300)
    run_steps(compile_kernel(512, 1024), make_state(lengths, 1024, torch.int64), 512, 1024, seed=4)


@pytest.mark.parametrize("threads", (32, 256, 512, 960))
def test_blocks_with_fewer_warps_than_chunks(threads):
    """256 is the wrapper's default. The pinned kernel sums chunks twice then and writes out of bounds."""
    module = compile_kernel(512, 1024, block_size=threads)
    run_steps(module, make_state(lengths_for(512, 1024, 20), 1024, torch.int32), 512, 1024, seed=4)


def test_the_wrapper_with_its_default_of_threads():
    """256, with a buffer of more than sixteen chunks."""
    lengths, rng = lengths_for(2048, 4096, 20), np.random.default_rng(10)
    cpu = make_state(lengths, 4096, torch.int64, seed=10)
    gpu, chosen = cpu.copy("cuda"), draw_top_k(lengths, 2048, rng)
    out = torch.full((20, 2048), -1, dtype=torch.int32, device="cuda")
    ops()[0].load_cache_to_device_buffer_mla(
        torch.from_numpy(chosen).cuda(), gpu.device_buffer_tokens, gpu.host_cache_locs, gpu.device_buffer_locs,
        gpu.host_cache, gpu.device_buffer, out, gpu.req_pool_indices, gpu.seq_lens, gpu.lru_slots,
        item_size_bytes=64, num_top_k=2048, hot_buffer_size=4096,
    )  # fmt: skip
    assert torch.equal(out.cpu(), swap_in_oracle(cpu, chosen, 2048, 4096))
    for name in ("device_buffer_tokens", "lru_slots", "device_buffer"):
        assert torch.equal(getattr(gpu, name).cpu(), getattr(cpu, name)), name


def test_padded_requests_are_left_alone():
    lengths = lengths_for(512, 1024, 32)
    run_steps(compile_kernel(512, 1024), make_state(lengths, 1024, torch.int32), 512, 1024, seed=5, real_reqs=19)


def test_large_items():
    """1152 bytes, an MLA entry in bfloat16."""
    lengths = lengths_for(2048, 4096, 12)
    state = make_state(lengths, 4096, torch.int64, item_bytes=1152)
    run_steps(compile_kernel(2048, 4096, item_bytes=1152), state, 2048, 4096, seed=6)


def room():
    return torch.cuda.get_device_properties(0).shared_memory_per_block_optin


hopper = pytest.mark.skipif(not torch.cuda.is_available() or room() != 232448, reason="the sizes are for 227 KB per block")


@hopper
def test_up_to_the_limit_of_the_device():
    lengths = lengths_for(*FITS, 6)
    run_steps(compile_kernel(*FITS), make_state(lengths, FITS[1], torch.int64), *FITS, seed=7)


@oldest
@hopper
def test_not_beyond_the_limit_of_the_device():
    module = compile_kernel(*TOO_LARGE)
    state = make_state([40000], TOO_LARGE[1], torch.int32).copy("cuda")
    chosen = torch.zeros(1, TOO_LARGE[0], dtype=torch.int32, device="cuda")
    with pytest.raises(Exception, match=r"top_k=10240 and device_buffer_size=32768 needs \d+ bytes.*allows 232448"):
        call(module, state, chosen, chosen.clone(), torch.ones(1, dtype=torch.int32, device="cuda"))


@oldest
def test_other_dtypes_of_lengths_are_refused():
    state = make_state([3000] * 4, 1024, torch.int32).copy("cuda")
    state.seq_lens = state.seq_lens.to(torch.float32)
    chosen = torch.zeros(4, 512, dtype=torch.int32, device="cuda")
    with pytest.raises(Exception, match="int32 or int64, got float32"):
        call(compile_kernel(512, 1024), state, chosen, chosen.clone(), torch.ones(1, dtype=torch.int32, device="cuda"))


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64), ids=str)
def test_in_a_cuda_graph_beyond_48_kb(dtype):
    """The kernel's limit is raised while capturing, the first call included."""
    top_k, buffer = GRAPH
    module = compile_kernel(top_k, buffer)
    lengths = lengths_for(top_k, buffer, 16)
    cpu = make_state(lengths, buffer, dtype, seed=8)
    gpu, rng = cpu.copy("cuda"), np.random.default_rng(9)
    chosen = torch.zeros(16, top_k, dtype=torch.int32, device="cuda")
    out, real = torch.full_like(chosen, -1), torch.full((1,), 16, dtype=torch.int32, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(module, gpu, chosen, out, real)
    previous = None
    for _ in range(3):
        previous = draw_top_k(lengths, top_k, rng, previous)
        chosen.copy_(torch.from_numpy(previous))
        out.fill_(-1)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out.cpu(), swap_in_oracle(cpu, previous, top_k, buffer))
        assert torch.equal(gpu.device_buffer.cpu(), cpu.device_buffer)
