# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the select op for ``prior``: page lists of all rows of a pass in one launch.

As ``extend_kernel``, but every query head has a representation of its own: a program takes a tile of consecutive rows and
one KV head, and scores candidate pages with one matrix product per query head. With several of them their scores are
compared after the normaliser of each, which takes a pass over all candidates before the ranking.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    REPRS_MISSING,
    add_count,
    dot_precision,
)
from sglang.srt.layers.attention.hsa.ops.extend.plan import ExtendPlan
from sglang.srt.layers.attention.hsa.ops.select.extend_lists import (
    num_candidates,
    rank_and_list,
)
from sglang.srt.layers.attention.hsa.ops.select.extend_ranking import (
    WIDTHS,
    ordered_keys,
    rows_at_a_time,
)
from sglang.srt.layers.attention.hsa.ops.select.page_lists import (
    PAGES_PER_STEP,
    ExtendSelectWorkspace,
    PageLists,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache


@triton.jit
def _scores_of_head(
    query_ptr,
    query_mask,
    repr_head,
    bias_head,
    page,
    inside,
    scale,
    stride_repr_page,
    stride_bias_page,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores ``[R, C]`` of pages ``page`` ``[C]`` by the queries of one head, b' included."""
    d = tl.arange(0, BLOCK_D)
    query = tl.load(query_ptr, mask=query_mask, other=0.0)
    e = tl.load(
        repr_head + page[None, :] * stride_repr_page + d[:, None],
        mask=inside[None, :] & (d[:, None] < HEAD_DIM),
        other=0.0,
    )
    bias = tl.load(bias_head + page * stride_bias_page, mask=inside, other=0.0)
    raw = tl.dot(query, e.to(query.dtype), input_precision=PRECISION)
    return raw * scale + bias[None, :]


@triton.jit(do_not_specialize=["items"])
def _select_prior_pages_kernel(
    select_q,
    repr_buffer,
    biases,
    repr_version,
    page_version,
    page_table,
    tiles,
    norms,
    list_pages,
    list_rows,
    list_lengths,
    keys,
    peaks,
    kept,
    ranks,
    counters,
    scale,
    items,
    stride_q_row,
    stride_q_head,
    stride_repr_page,
    stride_repr_head,
    stride_table,
    stride_norm_row,
    stride_list,
    stride_keys,
    stride_kept,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTHS: tl.constexpr,
    RANKED: tl.constexpr,
    PEAKS: tl.constexpr,
    LIST_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    PAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # A set whose best key is a peak: pages that lie a multiple of PAGES apart, in one part of a row's pages.
    PARTS: tl.constexpr = PEAKS // PAGES
    stride_bias_page: tl.constexpr = KV_HEADS * GROUP
    program = tl.program_id(0)
    m = tl.arange(0, ROWS)
    n = tl.arange(0, PAGES)
    d = tl.arange(0, BLOCK_D)
    own = program.to(tl.int64) * ROWS  # this program's rows of the scratch
    keys += own * stride_keys
    peaks += own * PEAKS
    kept += program.to(tl.int64) * stride_kept
    ranks += own * 3
    for item in range(program, items, tl.num_programs(0)):
        tile = tiles + (item // KV_HEADS) * 4
        g = item % KV_HEADS
        b = tl.load(tile).to(tl.int64)
        row = tl.load(tile + 1).to(tl.int64)
        rows = tl.load(tile + 2)
        position = tl.load(tile + 3)
        lengths = num_candidates(
            m, rows, position, PAGE_SIZE, WINDOW, SINKS, DENSE_BELOW
        )
        most = tl.max(lengths)
        table_row = page_table + b * stride_table + SINKS
        repr_group = repr_buffer + g * stride_repr_head
        bias_group = biases + g * GROUP
        query_ptr = select_q + (row + m)[:, None] * stride_q_row + d[None, :]
        query_ptr += g * GROUP * stride_q_head
        query_mask = (m < rows)[:, None] & (d[None, :] < HEAD_DIM)
        norm_ptr = None
        if GROUP > 1:
            norm_ptr = norms + (row + m) * stride_norm_row + g * GROUP

        # The log-sum-exp of a head's candidates joins that of its window. All pages are chosen where they are few enough.
        if GROUP > 1:
            if most > TOPK:
                for h in range(GROUP):
                    norm = tl.load(norm_ptr + h, mask=m < rows, other=0.0)
                    for lo in range(0, most, PAGES):
                        inside = lo + n < most
                        page = tl.load(table_row + lo + n, mask=inside, other=0)
                        page = page.to(tl.int64)
                        stamp = tl.load(repr_version + page, mask=inside, other=0)
                        current = tl.load(page_version + page, mask=inside, other=-1)
                        raw = _scores_of_head(
                            query_ptr + h * stride_q_head, query_mask, repr_group + h * HEAD_DIM, bias_group + h,
                            page, inside, scale, stride_repr_page, stride_bias_page, HEAD_DIM, BLOCK_D, PRECISION,
                        )  # fmt: skip
                        counts = (lo + n)[None, :] < lengths[:, None]
                        counts = counts & (stamp == current)[None, :]
                        raw = tl.where(counts, raw, float("-inf"))
                        top = tl.maximum(norm, tl.max(raw, axis=1))
                        total = tl.sum(tl.exp(raw - top[:, None]), axis=1)
                        norm = top + tl.log(tl.exp(norm - top) + total)
                    tl.store(norm_ptr + h, norm, mask=m < rows)
                tl.debug_barrier()

        part_pages = tl.cdiv(tl.cdiv(most, PAGES), PARTS) * PAGES
        missing = tl.zeros((PAGES,), tl.int32)
        for part in range(0, PARTS):
            peak = tl.zeros((ROWS, PAGES), tl.uint32)
            part_end = tl.minimum((part + 1) * part_pages, most)
            for lo in range(part * part_pages, part_end, PAGES):
                inside = lo + n < most
                page = tl.load(table_row + lo + n, mask=inside, other=0).to(tl.int64)
                stamp = tl.load(repr_version + page, mask=inside, other=0)
                current = tl.load(page_version + page, mask=inside, other=-1)
                missing += (inside & (current >= 0) & (stamp != current)).to(tl.int32)
                score = tl.zeros((ROWS, PAGES), tl.float32)
                if most > TOPK:
                    score += float("-inf")
                    for h in range(GROUP):
                        raw = _scores_of_head(
                            query_ptr + h * stride_q_head, query_mask, repr_group + h * HEAD_DIM, bias_group + h,
                            page, inside, scale, stride_repr_page, stride_bias_page, HEAD_DIM, BLOCK_D, PRECISION,
                        )  # fmt: skip
                        if GROUP > 1:
                            norm = tl.load(norm_ptr + h, mask=m < rows, other=0.0)
                            raw -= norm[:, None]
                        score = tl.maximum(score, raw)
                # What has no landmark's representation weighs nothing, whatever its bytes say.
                score = tl.where((stamp == current)[None, :], score, float("-inf"))
                key = ordered_keys(score)
                key = tl.where((lo + n)[None, :] < lengths[:, None], key, 0)
                tl.store(keys + m[:, None] * stride_keys + (lo + n)[None, :], key)
                peak = tl.maximum(peak, key)
            if most > WIDTHS[len(WIDTHS) - 1]:
                place = part * PAGES + n
                tl.store(peaks + m[:, None] * PEAKS + place[None, :], peak)
        lost = tl.sum(missing)
        if (g == 0) & (lost > 0):
            add_count(counters + REPRS_MISSING, lost.to(tl.int64))
        rank_and_list(
            item, g, rows, lengths, keys, peaks, kept, ranks, table_row, list_pages, list_rows, list_lengths,
            counters, stride_list, stride_keys, ROWS, WIDTHS, RANKED, PEAKS, LIST_ROWS, TOPK, TOPK_BLOCK,
        )  # fmt: skip


def select_prior_pages_extend(
    select_q: torch.Tensor,
    cache: LayerCache,
    page_table: torch.Tensor,
    plan: ExtendPlan,
    out: PageLists,
    workspace: ExtendSelectWorkspace,
    counters: torch.Tensor,
    params: AttentionParams,
    local_lse: Optional[torch.Tensor] = None,
) -> PageLists:
    """Select pages for all rows of a pass by ``prior`` and the strategy ``softmax_head``.

    Args:
        select_q: packed queries that choose ``[T, H_q, D]``, last dimension contiguous.
        local_lse: log-sum-exp of the window ``[T, H_q]`` float32, written over; None with one query head per KV head.
        Others as of ``select_pages_extend``.

    Returns:
        ``out``.
    """
    num_heads, head_dim = select_q.shape[1:]
    reprs, topk = cache.reprs, params.topk
    num_kv_heads = reprs.shape[1]
    group = num_heads // num_kv_heads
    items = len(plan.tiles) * num_kv_heads
    rows = plan.tiling.tile_rows
    _select_prior_pages_kernel[(min(items, workspace.programs),)](
        select_q,
        reprs,
        cache.biases,
        cache.stamps,
        cache.versions,
        page_table,
        plan.tiles,
        local_lse,
        out.pages,
        out.rows,
        out.lengths,
        workspace.keys,
        workspace.peaks,
        workspace.kept,
        workspace.ranks,
        counters,
        params.sm_scale,
        items,
        select_q.stride(0),
        select_q.stride(1),
        reprs.stride(0),
        reprs.stride(1),
        page_table.stride(0),
        0 if local_lse is None else local_lse.stride(0),
        out.pages.shape[-1],
        workspace.keys.shape[1],
        workspace.kept.shape[1],
        KV_HEADS=num_kv_heads,
        GROUP=group,
        ROWS=rows,
        WIDTHS=WIDTHS,
        RANKED=rows_at_a_time(rows),
        PEAKS=workspace.peaks.shape[1],
        LIST_ROWS=out.list_rows,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        **params.layout,
        TOPK=topk,
        TOPK_BLOCK=triton.next_power_of_2(topk),
        PAGES=PAGES_PER_STEP,
        PRECISION=dot_precision(select_q.dtype),
        num_warps=4,
        num_stages=2,
    )
    return out
