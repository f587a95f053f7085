# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the select op for extend and linear kinds: page lists of all new tokens of a batch in one launch.

A program takes a tile of consecutive queries of one sequence and one KV head: scores of their candidate pages on
the tensor cores, each row's k best, and then, for each run of a few rows, the union of their pages in ascending order,
each with the set of rows that selected it. Attention reads K and V once per page of that union. Scores live in scratch
that belongs to the program, which takes one tile after another: memory follows the device and the longest sequence of
the batch, not the number of new tokens.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import shared_bytes
from sglang.srt.layers.attention.hsa.ops.extend.plan import ExtendPlan
from sglang.srt.layers.attention.hsa.ops.linear_kinds import query_features
from sglang.srt.layers.attention.hsa.ops.select.extend_lists import (
    num_candidates,
    rank_and_list,
)
from sglang.srt.layers.attention.hsa.ops.select.extend_ranking import (
    WIDTHS,
    ordered_keys,
    rows_at_a_time,
)
from sglang.srt.layers.attention.hsa.ops.select.extend_scores import raw_scores
from sglang.srt.layers.attention.hsa.ops.select.page_lists import (
    PAGES_PER_STEP,
    ExtendSelectWorkspace,
    PageLists,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

MIN_PAGES = 16  # of a matrix product
BARRIERS = 2 << 10  # bytes of shared memory for what is neither features nor pages


@triton.jit(do_not_specialize=["items"])
def _select_pages_extend_kernel(
    q,
    repr_buffer,
    repr_version,
    page_version,
    page_table,
    tiles,
    local_lse,
    list_pages,
    list_rows,
    list_lengths,
    keys,
    peaks,
    kept,
    ranks,
    counters,
    sm_scale,
    items,
    stride_q_row,
    stride_q_head,
    stride_repr_page,
    stride_repr_head,
    stride_table,
    stride_lse_row,
    stride_list,
    stride_keys,
    stride_kept,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_H: tl.constexpr,
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
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    STRATEGY: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    PAGES: tl.constexpr,
):
    FEATURE_ROWS: tl.constexpr = ROWS * BLOCK_H
    # A set whose best key is a peak: pages that lie a multiple of PAGES apart, in one part of a row's pages.
    PARTS: tl.constexpr = PEAKS // PAGES
    program = tl.program_id(0)
    m = tl.arange(0, ROWS)
    own = program.to(tl.int64) * ROWS  # this program's rows of the scratch
    keys += own * stride_keys
    peaks += own * PEAKS
    kept += program.to(tl.int64) * stride_kept
    ranks += own * 3
    r = tl.arange(0, FEATURE_ROWS)
    h = r % BLOCK_H
    d = tl.arange(0, BLOCK_D)
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
        repr_head = repr_buffer + g * stride_repr_head

        # The strategy group adds up the features of the heads before they meet E.
        heads = GROUP if STRATEGY == "group" else 1
        q_ptr = (
            q
            + (row + r // BLOCK_H)[:, None] * stride_q_row
            + (g * GROUP + h)[:, None] * stride_q_head
            + d[None, :]
        )
        real = (r // BLOCK_H < rows) & (h < GROUP)
        q_mask = real[:, None] & (d[None, :] < HEAD_DIM)
        first = tl.zeros((FEATURE_ROWS, BLOCK_D), tl.float32)
        second = tl.zeros((FEATURE_ROWS, BLOCK_D), tl.float32)
        for _ in range(heads):
            query = tl.load(q_ptr, mask=q_mask, other=0.0).to(tl.float32)
            one, two = query_features(query, sm_scale, KIND)
            first += one
            second += two
            q_ptr += stride_q_head
        first, second = tl.trans(first), tl.trans(second)
        norm = tl.zeros((FEATURE_ROWS,), tl.float32)
        if STRATEGY == "softmax_head":
            lse_ptr = local_lse + (row + r // BLOCK_H) * stride_lse_row
            norm = tl.load(lse_ptr + g * GROUP + h, mask=real, other=0.0)
            last = tl.reshape(
                tl.broadcast_to(lengths[:, None], (ROWS, BLOCK_H)), (FEATURE_ROWS,)
            )
            for lo in range(0, most, PAGES):
                index = lo + tl.arange(0, PAGES)
                raw = raw_scores(
                    index, most, repr_head, repr_version, page_version, table_row, first, second,
                    stride_repr_page, HEAD_DIM, BLOCK_D, WIDTH, HAS_VERSIONS,
                )  # fmt: skip
                counts = (index[None, :] < last[:, None]) & (raw < float("inf"))
                raw = tl.where(counts, raw, float("-inf"))
                top = tl.maximum(norm, tl.max(raw, axis=1))
                total = tl.exp(norm - top) + tl.sum(tl.exp(raw - top[:, None]), axis=1)
                norm = top + tl.log(total)

        part_pages = tl.cdiv(tl.cdiv(most, PAGES), PARTS) * PAGES
        for part in range(0, PARTS):
            peak = tl.zeros((ROWS, PAGES), tl.uint32)
            part_end = tl.minimum((part + 1) * part_pages, most)
            for lo in range(part * part_pages, part_end, PAGES):
                index = lo + tl.arange(0, PAGES)
                score = raw_scores(
                    index, most, repr_head, repr_version, page_version, table_row, first, second,
                    stride_repr_page, HEAD_DIM, BLOCK_D, WIDTH, HAS_VERSIONS,
                )  # fmt: skip
                if STRATEGY != "group":
                    score -= norm[:, None]
                    score = tl.where((h < GROUP)[:, None], score, float("-inf"))
                    score = tl.max(tl.reshape(score, (ROWS, BLOCK_H, PAGES)), axis=1)
                key = ordered_keys(score)
                key = tl.where(index[None, :] < lengths[:, None], key, 0)
                tl.store(keys + m[:, None] * stride_keys + index[None, :], key)
                peak = tl.maximum(peak, key)
            if most > WIDTHS[len(WIDTHS) - 1]:
                place = part * PAGES + tl.arange(0, PAGES)
                tl.store(peaks + m[:, None] * PEAKS + place[None, :], peak)
        rank_and_list(
            item, g, rows, lengths, keys, peaks, kept, ranks, table_row, list_pages, list_rows, list_lengths,
            counters, stride_list, stride_keys, ROWS, WIDTHS, RANKED, PEAKS, LIST_ROWS, TOPK, TOPK_BLOCK,
        )  # fmt: skip


def pages_per_step(rows: int, block_d: int, shared: int) -> tuple[int, bool]:
    """(pages that a matrix product takes, whether two programs share a multiprocessor: one scores while the other ranks).

    Args:
        rows: feature rows of a tile.
        shared: bytes that a program may take.

    Raises:
        ValueError: for a device whose shared memory does not hold the features.
    """
    # Three terms of either half of the features, and two halves of each page's representation.
    features = 3 * 2 * rows * block_d * 2
    pages, room = PAGES_PER_STEP, shared - BARRIERS
    while pages >= MIN_PAGES and features + 4 * pages * block_d > room:
        pages //= 2
    if pages < MIN_PAGES:
        raise ValueError(
            f"--hsa-chunk-repr: selection for heads of {block_d} dimensions needs more shared memory than the "
            f"{shared >> 10} KB that this device has; use slow_keys."
        )
    return pages, features + 4 * PAGES_PER_STEP * block_d <= room // 2


def feature_rows(group: int, strategy: str) -> int:
    """Feature rows of a token."""
    return 1 if strategy == "group" else triton.next_power_of_2(group)


def select_pages_extend(
    q: torch.Tensor,
    cache: LayerCache,
    page_table: torch.Tensor,
    plan: ExtendPlan,
    out: PageLists,
    workspace: ExtendSelectWorkspace,
    counters: torch.Tensor,
    params: AttentionParams,
    local_lse: Optional[torch.Tensor] = None,
) -> PageLists:
    """Select pages for all new tokens of a batch by a linear kind.

    Args:
        q: packed queries ``[T, H_q, D]``, last dimension contiguous.
        cache: of the layer, versions included.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        plan: of the pass, with at least one candidate page.
        out: written whole.
        workspace: made for plans of at least this size.
        counters: ``HSACounters.values``, added to.
        local_lse: log-sum-exp of window and sinks ``[T, H_q]`` float32; needed by ``softmax_head``.

    Returns:
        ``out``.
    """
    num_heads, head_dim = q.shape[1:]
    reprs, strategy, topk = cache.reprs, params.strategy, params.topk
    num_kv_heads = reprs.shape[1]
    group = num_heads // num_kv_heads
    items = len(plan.tiles) * num_kv_heads
    block_d = triton.next_power_of_2(head_dim)
    block_h = feature_rows(group, strategy)
    pages, two = pages_per_step(
        plan.tiling.tile_rows * block_h, block_d, shared_bytes(q.device)
    )
    programs = min(items, workspace.programs)
    if not two:
        programs = min(programs, workspace.processors)
    _select_pages_extend_kernel[(programs,)](
        q,
        reprs,
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
        params.score_scale,
        items,
        q.stride(0),
        q.stride(1),
        reprs.stride(0),
        reprs.stride(1),
        page_table.stride(0),
        0 if local_lse is None else local_lse.stride(0),
        out.pages.shape[-1],
        workspace.keys.shape[1],
        workspace.kept.shape[1],
        KV_HEADS=num_kv_heads,
        GROUP=group,
        BLOCK_H=block_h,
        ROWS=plan.tiling.tile_rows,
        WIDTHS=WIDTHS,
        RANKED=rows_at_a_time(plan.tiling.tile_rows),
        PEAKS=workspace.peaks.shape[1],
        LIST_ROWS=out.list_rows,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, block_d),
        **params.layout,
        TOPK=topk,
        TOPK_BLOCK=triton.next_power_of_2(topk),
        KIND=params.kind.name,
        WIDTH=params.kind.width,
        STRATEGY=strategy,
        HAS_VERSIONS=cache.stamps is not None,
        PAGES=pages,
        num_warps=4 if two else 8,
        num_stages=1,  # shared memory holds no second step
    )
    return out
