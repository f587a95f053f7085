# SPDX-License-Identifier: Apache-2.0
"""Scratch memory that passes take turns with."""

import pytest
import torch

from sglang.srt.layers.attention.hsa.ops.extend import kernel as extend
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select import slow_extend
from sglang.test.attention.hsa_device import DEVICE, ON_GPU, needs_kernels
from sglang.test.attention.hsa_harness import Harness


def test_a_buffer_serves_all_that_fit_into_it():
    scratch = Scratch("cpu")
    first = scratch.take("keys", (6, 50), torch.float32)
    again = scratch.take("keys", (40, 2, 3), torch.int64)
    assert first.shape == (6, 50) and again.shape == (40, 2, 3)
    other = scratch.take("lists", (6, 50), torch.float32)
    assert again.data_ptr() != other.data_ptr() and again.is_contiguous()
    held = scratch.nbytes()
    assert scratch.take("keys", (480,), torch.int32).data_ptr() == again.data_ptr()
    assert scratch.nbytes() == held


def test_a_long_prompt_allocates_a_few_times():
    """Chunk by chunk a prompt needs more; a shorter one after it nothing."""
    scratch, sizes = Scratch("cpu"), set()
    for pages in range(16, 16 * 513, 16):
        scratch.take("keys", (64, pages), torch.uint32)
        sizes.add(scratch.nbytes())
    assert len(sizes) < 20 and max(sizes) < 1.5 * 64 * 16 * 512 * 4
    scratch.take("keys", (64, 16), torch.uint32)
    assert scratch.nbytes() == max(sizes)


def test_nothing_of_nothing():
    assert Scratch("cpu").take("peaks", (0, 128), torch.uint32).numel() == 0


@needs_kernels
@pytest.mark.parametrize("chunk_repr", ["slow_keys", "mean"])
def test_a_prompt_takes_what_start_up_reserved(chunk_repr):
    h = Harness(device=DEVICE, extend_kernels=True, chunk_repr=chunk_repr)
    reserved = h.backend.scratch.nbytes()
    s = h.new_sequence()
    for _ in range(5):
        h.step([s], [64])
    assert h.backend.counters.snapshot()["pages_selected"] > 0
    assert h.backend.scratch.nbytes() == reserved > 0


@pytest.mark.skipif(not ON_GPU, reason="compiles for a CUDA device")
def test_start_up_compiled_the_kernels_of_prompts():
    """Or the first long prompt would wait for the compiler, and all requests beside it."""
    kernels = (
        slow_extend.expand_slow_kernel,
        slow_extend.score_slow_kernel,
        slow_extend.rank_slow_kernel,
        extend._extend_hsa_kernel,
    )

    def variants():
        return [sum(len(c[0]) for c in k.device_caches.values()) for k in kernels]

    for kernel in kernels:  # of other tests in this process
        kernel.device_caches.clear()
    h = Harness(
        num_pages=300, num_heads=16, num_kv_heads=2, head_dim=64, device="cuda", dtype=torch.bfloat16,
        page_size=64, window_size=512, topk=32, chunk_repr="slow_keys", selection_strategy="head",
    )  # fmt: skip
    compiled = variants()
    assert compiled == [1] * len(kernels)
    sequences = [h.new_sequence() for _ in range(3)]
    h.step(sequences, [9000, 65, 1])
    h.step(sequences, [100, 700, 2])
    assert h.backend.counters.snapshot()["pages_selected"] > 0
    assert variants() == compiled


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
