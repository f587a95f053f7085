# SPDX-License-Identifier: Apache-2.0
"""Selection of decode on a CUDA device, or interpreted (TRITON_INTERPRET=1): programs that share a row, and rankings."""

import pytest
import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.ops.extend.reference import extend_local_fwd
from sglang.srt.layers.attention.hsa.ops.select.decode_kernel import (
    SelectPagesWorkspace,
    select_pages_decode,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_ranking import (
    ranking_widths,
    store_best,
)
from sglang.srt.layers.attention.hsa.params import LayerCache
from sglang.srt.layers.attention.hsa.selector import HSASelector
from sglang.test.attention.hsa_device import DEVICE, needs_kernels
from sglang.test.attention.hsa_fixtures import make_batch, make_params

pytestmark = needs_kernels
PAGE, WINDOW, SINKS, TOPK, HEADS, KV_HEADS = 16, 40, 1, 6, 4, 2


@pytest.mark.parametrize("programs", [1, 4])
@pytest.mark.parametrize(
    "strategy,dim", [("group", 256), ("group", 16), ("softmax_head", 32)]
)
def test_programs_share_the_pages_of_a_row(strategy, dim, programs):
    """Rows whose pages need no program, one, several, and more than there are: each ranks all of them, twice in a row."""
    torch.manual_seed(1)
    k, v, table, lens = (
        x.to(DEVICE)
        for x in make_batch(
            [n * PAGE - 5 for n in (1, 3, 20, 37, 70, 300, 620)],
            page_size=PAGE, num_kv_heads=KV_HEADS, head_dim=dim,
        )[:4]
    )  # fmt: skip
    batch, widest = table.shape
    num_pages = len(k) // PAGE
    q = torch.randn(batch, HEADS, dim, device=DEVICE)
    reprs = torch.randn(num_pages, KV_HEADS, 2 * dim, device=DEVICE)
    version = torch.ones(num_pages, dtype=torch.int64, device=DEVICE)
    stamps = version - (torch.rand(num_pages, device=DEVICE) < 0.1).long()
    params = make_params(
        dim**-0.5, page_size=PAGE, window_size=WINDOW, sink_pages=SINKS, topk=TOPK, chunk_repr="mean_std",
        selection_strategy=strategy,
    )  # fmt: skip
    cu_seqlens_q = torch.arange(batch + 1, dtype=torch.int32)
    _, lse = extend_local_fwd(q, k, v, table, cu_seqlens_q, lens, params)
    expected, _ = HSASelector(params).select(
        q, reprs, (stamps == version)[table.long()], table, cu_seqlens_q, lens, lse
    )
    cache = LayerCache(k, v, reprs, stamps, version)
    rows = batch * KV_HEADS
    workspace = SelectPagesWorkspace(
        batch, KV_HEADS, widest, DEVICE, HEADS // KV_HEADS, rows * programs
    )
    counters = HSACounters(DEVICE)
    for repeat in (1, 2):
        got = torch.full((batch, KV_HEADS, TOPK), -7, dtype=torch.int32, device=DEVICE)
        select_pages_decode(
            q, cache, table, lens, got, workspace, counters.values, params, processors=programs * rows
        )  # fmt: skip
        assert got.tolist() == expected.tolist()
        counts = counters.snapshot()
        assert counts["pages_selected"] == repeat * int((expected >= 0).sum())
        assert (
            counts["rows_sparse"] == repeat * 5 and counts["rows_dense"] == repeat * 2
        )


@triton.jit
def _rank_kernel(
    scores,
    table,
    out,
    found,
    count,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    WIDTHS: tl.constexpr,
):
    best = store_best(scores, table, out, count, TOPK, TOPK_BLOCK, WIDTHS)
    tl.store(found, best)


@pytest.mark.parametrize(
    "max_pages,counts",
    [(16, (0, 1, 16)), (128, (1, 5, 100, 128)), (5000, (6, 257, 1025, 3000, 5000))],
)
@pytest.mark.parametrize("topk", [1, 6, 32])
def test_ranking_is_the_total_order_of_the_reference(max_pages, counts, topk):
    """Many ties, negative scores and pages that cannot be selected, in every width."""
    for count in counts:
        scores = torch.randint(-20, 20, (count,)).float() / 4
        scores[torch.rand(count) < 0.2] = float("-inf")
        table = torch.randperm(count).int()
        selector = HSASelector(make_params(topk=topk))
        _, expected = selector.topk_transform(scores.view(1, 1, -1), table)
        out = torch.full((topk,), -7, dtype=torch.int32, device=DEVICE)
        found = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        _rank_kernel[(1,)](
            scores.to(DEVICE),
            table.to(DEVICE),
            out,
            found,
            count,
            TOPK=topk,
            TOPK_BLOCK=triton.next_power_of_2(topk),
            WIDTHS=ranking_widths(max_pages),
        )
        pages = expected.flatten().tolist()
        assert out.tolist() == pages + [-1] * (topk - len(pages)), count
        assert found.item() == sum(page >= 0 for page in pages)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
