# SPDX-License-Identifier: Apache-2.0
"""``--hsa-prefill``: the first tokens of a prompt attend their whole past, the others select pages, decode selects.

The references run anywhere; the kernels on a CUDA device, or under TRITON_INTERPRET=1.
"""

import dataclasses

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.test.attention.hsa_device import ON_GPU, needs_kernels
from sglang.test.attention.hsa_harness import Harness
from sglang.test.attention.hsa_release import DRAFT_EXTEND

KERNELS = pytest.param(True, id="kernels", marks=needs_kernels)
BOTH = pytest.mark.parametrize("kernels", [pytest.param(False, id="references"), KERNELS])  # fmt: skip
BELOW = 100


def harness(kernels, **options):
    options = {"prefill": str(BELOW), "topk": 2, **options}
    return Harness(
        device="cuda" if kernels and ON_GPU else "cpu", decode_kernels=kernels, extend_kernels=kernels, **options
    )  # fmt: skip


def check(h, sequences, new, decode=False):
    q, o = h.step(sequences, new, decode=decode)
    sparse = h.oracle
    h.oracle = dataclasses.replace(sparse, dense_below=0 if decode else BELOW)
    expected = h.expected(q, sequences, new)
    h.oracle = sparse
    np.testing.assert_allclose(o.float().numpy(), expected, atol=1e-4)


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(page_size=32, sink_pages=2, window_size=0, chunk_repr="mean_std", logit_cap=5.0),
        dict(chunk_repr="mean_std", selection_strategy="softmax_head"),
        dict(mask_last_slot=True),
        dict(chunk_repr="mean_std", selection_strategy="group", weight_mode="score"),
    ],
)  # fmt: skip
def test_the_position_alone_decides(kernels, options):
    """Whatever the chunks: wholly below, across, beyond; then decode selects at every position."""
    h = harness(kernels, **options)
    sequences = [h.new_sequence() for _ in range(2)]
    for new in ([40, 90], [120, 90], [30, 1]):
        check(h, sequences, new)
    for _ in range(2):
        check(h, sequences, [1, 1], decode=True)
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    assert counts["reprs_healed"] == 0


@BOTH
def test_a_chunk_below_goes_to_the_dense_backend(kernels, monkeypatch):
    h = harness(kernels)
    s = h.new_sequence()
    check(h, [s], [BELOW])
    counts = h.backend.counters.snapshot()
    assert counts["rows_dense"] == BELOW and counts["rows_sparse"] == 0
    assert h.backend.goes_dense and counts["reprs_written"] == BELOW // 16
    check(h, [s], [1])
    assert not h.backend.goes_dense
    assert h.backend.counters.snapshot()["rows_sparse"] == 1


@BOTH
def test_an_8_bit_cache_stays_with_hsa(kernels):
    """Dense backends differ in how they read it."""
    h = harness(kernels, kv_cache_dtype=torch.float8_e4m3fn, kv_scales=(0.5, 2.0))
    s = h.new_sequence()
    check(h, [s], [70])
    assert not h.backend.goes_dense
    check(h, [s], [50])


@pytest.mark.parametrize("mode", [DRAFT_EXTEND, ForwardMode.TARGET_VERIFY])
def test_draft_tokens_are_no_prompt(mode):
    """They attend as decode does, also where the extend kernels run the pass."""
    h, sparse = harness(False), harness(False, prefill="sparse")
    outputs = []
    for world in (h, sparse):
        s = world.new_sequence()
        world.step([s], [90])
        batch = world.batch({0: 4}, [s], decode=False)
        batch.forward_mode = mode
        world.backend.init_forward_metadata(batch)
        assert world.backend.forward_pass.max_candidates > 0
        outputs.append(world.forward(batch, *world.inputs([s], [4])))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    "text,below", [("sparse", 0), ("dense", 1 << 30), ("0", 0), ("8192", 8192), (None, 0)]
)  # fmt: skip
def test_spellings(text, below):
    assert HSAConfig(prefill=text).dense_below == below


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
