# SPDX-License-Identifier: Apache-2.0
"""Eager batches of data-parallel attention: rows that fill them up to the size of other ranks, and ranks without requests."""

import dataclasses

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.test.attention.hsa_device import ATOL, DEVICE, needs_kernels
from sglang.test.attention.hsa_fixtures import server_args, write_model_config
from sglang.test.attention.hsa_harness import Harness

pytestmark = pytest.mark.skipif(
    not compat.graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier"
)
REFERENCES, KERNELS = dict(strict=True), dict(
    device=DEVICE, decode_kernels=True, extend_kernels=True
)
either = pytest.mark.parametrize(
    "options",
    [
        pytest.param(REFERENCES, id="references"),
        pytest.param(KERNELS, id="kernels", marks=needs_kernels),
    ],
)
MORE = 3


def filled_up(batch, requests, rows):
    """A batch with so many requests and rows more, as SGLang fills it up: length 1, row 0 of the table, slot 0."""

    def longer(x, more, value=0):
        return torch.nn.functional.pad(x, (0, more), value=value)

    return dataclasses.replace(
        batch,
        batch_size=batch.batch_size + requests,
        req_pool_indices=longer(batch.req_pool_indices, requests),
        seq_lens=longer(batch.seq_lens, requests, 1),
        seq_lens_cpu=longer(batch.seq_lens_cpu, requests, 1),
        out_cache_loc=longer(batch.out_cache_loc, rows),
        input_ids=longer(batch.input_ids, rows),
        _original_batch_size=batch.batch_size,
    )


def step(h, sequences, new, decode):
    """A pass with rows that belong to no request; those of requests are the oracle's."""
    batch = h.batch(dict(enumerate(new)), sequences, decode)
    batch = filled_up(batch, MORE if decode else 0, MORE)
    h.backend.init_forward_metadata(batch)
    q, k, v = (
        torch.cat([x, x.new_full((MORE, *x.shape[1:]), 7.0)])
        for x in h.inputs(sequences, new)
    )
    o = h.forward(batch, q, k, v)
    assert o.shape == q.shape and o.isfinite().all()
    expected = h.expected(q.cpu(), sequences, new)
    np.testing.assert_allclose(o[:-MORE].float().numpy(), expected, atol=ATOL)


@either
def test_rows_of_no_request(options):
    h = Harness(**options)
    sequences = [h.new_sequence() for _ in range(2)]
    step(h, sequences, [130, 70], False)
    step(h, sequences, [17, 3], False)
    for _ in range(12):  # both complete a page
        step(h, sequences, [1, 1], True)
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    if "strict" in options:  # the kernels count every row of a launch
        assert counts["rows_sparse"] + counts["rows_dense"] == 130 + 70 + 20 + 24
    assert counts["reprs_healed"] == 0


@either
def test_a_rank_without_requests(options):
    """Its rows are those of other ranks; what it keeps stays as it is."""
    h = Harness(**options)
    sequences = [h.new_sequence() for _ in range(2)]
    step(h, sequences, [130, 70], False)
    before = h.backend.counters.snapshot()
    batch = filled_up(h.batch({}, [], True), MORE, MORE)
    batch.forward_mode = ForwardMode.IDLE
    h.backend.init_forward_metadata(batch)
    x = torch.full((MORE, h.num_heads, h.head_dim), 7.0, device=h.device)
    kept = [buffer.clone() for buffer in h.pool.k_buffer]
    assert h.forward(batch, x, x[:, :2], x[:, :2]).shape == x.shape
    for buffer, was in zip(h.pool.k_buffer, kept):
        torch.testing.assert_close(buffer, was, equal_nan=True)
    assert h.backend.counters.snapshot() == before
    step(h, sequences, [1, 1], True)


@pytest.mark.parametrize("size", [64, 100, 200, 1000, -1])
def test_chunks_of_each_rank_end_on_page_boundaries(tmp_path, size):
    options = dict(enable_dp_attention=True, tp_size=2, dp_size=2)
    path = write_model_config(tmp_path)
    chunk = server_args(path, chunked_prefill_size=size, **options).chunked_prefill_size
    expected = -1 if size < 0 else max(size // 128, 1) * 64
    assert chunk == expected


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
