# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the select_pages op for extend: page lists of all new tokens of a batch in one launch.

A program takes a tile of consecutive queries of one sequence and one KV head: scores of their candidate pages on
the tensor cores, each row's k best, and then, for each run of a few rows, the union of their pages in ascending order,
each with the set of rows that selected it. Attention reads K and V once per page of that union. Scores live in scratch
that belongs to the program, which takes one tile after another: memory follows the device and the longest sequence of
the batch, not the number of new tokens.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.chunk_repr import num_channels
from sglang.srt.layers.attention.hsa.counters import INDEX
from sglang.srt.layers.attention.hsa.extend_plan import ExtendPlan
from sglang.srt.layers.attention.hsa.ops.select_pages.extend_scores import raw_scores
from sglang.srt.layers.attention.hsa.ops.select_pages.features import query_features
from sglang.srt.layers.attention.hsa.ops.select_pages.page_lists import (
    PAGES_PER_STEP,
    ExtendSelectWorkspace,
    PageLists,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.row_ranking import (
    LANES,
    WIDTHS,
    ordered_keys,
    rank_rows,
    rows_at_a_time,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.slow_scores import load_halves

SHARED_BYTES = 230_000  # for features and the pages in flight
PAGES_IN_TURN = 16  # of slow_keys, whose scores are kept until they are stored together
LISTED_KEYS: tl.constexpr = tl.constexpr(4096)  # rows times pages per step of a union


@triton.jit
def _num_candidates(
    m,
    rows,
    position,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Candidate pages of the rows ``m`` of a tile whose first row is at ``position``; 0 past its ``rows``."""
    start = tl.maximum(position + m - WINDOW + 1, 0) // PAGE_SIZE
    return tl.where(m < rows, tl.maximum(start - SINKS, 0), 0)


@triton.jit
def _store_list(
    keys_row,
    threshold,
    reached,
    lengths,
    table_row,
    pages,
    rows,
    TOPK: tl.constexpr,
    LIST_ROWS: tl.constexpr,
):
    """Store the pages that a run of rows selects, ascending, with the rows that select each.

    Returns:
        (length of the list, pages selected by all rows).
    """
    COLUMNS: tl.constexpr = LISTED_KEYS // LIST_ROWS
    most = tl.max(lengths)
    m = tl.arange(0, LIST_ROWS)
    least = tl.maximum(threshold.to(tl.uint32, bitcast=True), 1)[:, None]
    # Ties: the first of them have the room that is left.
    crowded = tl.max(reached) > TOPK
    room = tl.full((LIST_ROWS,), TOPK, tl.int32)
    if crowded:
        for lo in range(0, most, COLUMNS):
            key = _load_columns(keys_row, lengths, lo, most, COLUMNS)
            room -= tl.sum((key > least).to(tl.int32), axis=1)
    ties = tl.zeros((LIST_ROWS,), tl.int32)
    length = tl.zeros((), tl.int32)
    selected = tl.zeros((), tl.int32)
    for lo in range(0, most, COLUMNS):
        column = lo + tl.arange(0, COLUMNS)
        page = tl.load(table_row + column, mask=column < most, other=0)
        key = _load_columns(keys_row, lengths, lo, most, COLUMNS)
        chosen = key >= least
        if crowded:
            tie = key == least
            order = ties[:, None] + tl.cumsum(tie.to(tl.int32), axis=1)
            chosen = chosen & ((key != least) | (order <= room[:, None]))
            ties += tl.sum(tie.to(tl.int32), axis=1)
        bits = tl.sum(tl.where(chosen, (1 << m)[:, None], 0), axis=0)
        selected += tl.sum(chosen.to(tl.int32))
        listed = (bits != 0).to(tl.int32)
        place = length + tl.cumsum(listed, axis=0) - 1
        tl.store(pages + place, page, mask=bits != 0)
        tl.store(rows + place, bits, mask=bits != 0)
        length += tl.sum(listed)
    return length, selected


@triton.jit
def _load_columns(keys_row, lengths, lo, most, COLUMNS: tl.constexpr):
    """Keys ``[rows, COLUMNS]``, 0 past the row's length; masked in whole lanes as in ``load_keys``."""
    column = lo + tl.arange(0, COLUMNS)[None, :]
    end = (most + LANES - 1) // LANES * LANES
    key = tl.load(keys_row[:, None] + column, mask=column < end, other=0)
    return tl.where(column < lengths[:, None], key, 0)


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
    channels,
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
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    STRATEGY: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    PAGES: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS_DENSE: tl.constexpr,
    ROWS_SPARSE: tl.constexpr,
    PAGES_CANDIDATE: tl.constexpr,
    PAGES_SELECTED: tl.constexpr,
):
    LISTS: tl.constexpr = ROWS // LIST_ROWS
    SLOW: tl.constexpr = KIND == "slow_keys"
    FEATURE_ROWS: tl.constexpr = ROWS * BLOCK_H
    # A set whose best key is a peak: pages that lie a multiple of PAGES apart, in one part of a row's pages.
    PARTS: tl.constexpr = PEAKS // PAGES
    program = tl.program_id(0)
    m = tl.arange(0, ROWS)
    own = program.to(tl.int64) * ROWS  # this program's rows of the scratch
    keys += own * stride_keys
    peaks += own * PEAKS
    kept += program.to(tl.int64) * stride_kept
    # Of each row its number of candidates, its threshold, and how many keys reach that.
    row_lengths = ranks + own * 3
    thresholds = row_lengths + ROWS
    reached = thresholds + ROWS
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
        lengths = _num_candidates(m, rows, position, PAGE_SIZE, WINDOW, SINKS)
        tl.store(row_lengths + m, lengths)
        most = tl.max(lengths)
        table_row = page_table + b * stride_table + SINKS
        repr_head = repr_buffer + g * stride_repr_head

        # Of a linear kind the strategy group adds up the features of the heads before they meet E.
        q_row = (
            q
            + (row + r // BLOCK_H) * stride_q_row
            + (g * GROUP + h) * stride_q_head
        )
        real = (r // BLOCK_H < rows) & (h < GROUP)
        if SLOW:
            first, second = load_halves(q_row, channels, real, HALF, BLOCK_HALF)
        else:
            heads = GROUP if STRATEGY == "group" else 1
            q_ptr = q_row[:, None] + d[None, :]
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
                    lo, most, repr_head, repr_version, page_version, table_row, first, second, sm_scale,
                    stride_repr_page, HEAD_DIM, BLOCK_D, KIND, HAS_VERSIONS, PAGES, PAGE_SIZE, HALF, PRECISION,
                )  # fmt: skip
                raw = tl.where(index[None, :] < last[:, None], raw, float("-inf"))
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
                    lo, most, repr_head, repr_version, page_version, table_row, first, second, sm_scale,
                    stride_repr_page, HEAD_DIM, BLOCK_D, KIND, HAS_VERSIONS, PAGES, PAGE_SIZE, HALF, PRECISION,
                )  # fmt: skip
                if STRATEGY != "group":
                    score -= norm[:, None]
                    score = tl.where((h < GROUP)[:, None], score, float("-inf"))
                    score = tl.max(tl.reshape(score, (ROWS, BLOCK_H, PAGES)), axis=1)
                elif SLOW:
                    score = tl.where((h < GROUP)[:, None], score, 0.0)
                    score = tl.sum(tl.reshape(score, (ROWS, BLOCK_H, PAGES)), axis=1)
                key = ordered_keys(score)
                key = tl.where(index[None, :] < lengths[:, None], key, 0)
                tl.store(keys + m[:, None] * stride_keys + index[None, :], key)
                peak = tl.maximum(peak, key)
            if most > WIDTHS[len(WIDTHS) - 1]:
                place = part * PAGES + tl.arange(0, PAGES)
                tl.store(peaks + m[:, None] * PEAKS + place[None, :], peak)
        tl.debug_barrier()
        rank_rows(
            keys, peaks, kept, row_lengths, thresholds, reached, rows, most, stride_keys,
            TOPK, TOPK_BLOCK, ROWS, WIDTHS, RANKED, PEAKS,
        )  # fmt: skip
        tl.debug_barrier()
        selected = tl.zeros((), tl.int32)
        for run in range(0, LISTS):
            n = run * LIST_ROWS + tl.arange(0, LIST_ROWS)
            which = item * LISTS + run
            length, chosen = _store_list(
                keys + n * stride_keys,
                tl.load(thresholds + n, mask=n < rows, other=0),
                tl.load(reached + n, mask=n < rows, other=0),
                tl.load(row_lengths + n),
                table_row,
                list_pages + which.to(tl.int64) * stride_list,
                list_rows + which.to(tl.int64) * stride_list,
                TOPK,
                LIST_ROWS,
            )
            tl.store(list_lengths + which, length)
            selected += chosen
        tl.debug_barrier()  # the next tile writes over the keys

        tl.atomic_add(counters + PAGES_CANDIDATE, tl.sum(lengths).to(tl.int64))
        tl.atomic_add(counters + PAGES_SELECTED, selected.to(tl.int64))
        if g == 0:
            sparse = tl.sum((lengths > 0).to(tl.int64))
            tl.atomic_add(counters + ROWS_SPARSE, sparse)
            tl.atomic_add(counters + ROWS_DENSE, rows.to(tl.int64) - sparse)


def _shape_of_product(
    kind: str, strategy: str, group: int, block_d: int, tile_rows: int
) -> Tuple[int, int, bool]:
    """(feature rows of a token, pages of a step, whether two programs fit on a multiprocessor)."""
    heads = triton.next_power_of_2(group)
    if kind == "slow_keys":
        return heads, PAGES_IN_TURN, True
    block_h = 1 if strategy == "group" else heads
    # Three terms of either half of the features, and two halves of each page's representation.
    features = 3 * 2 * tile_rows * block_h * block_d * 2
    pages, step = PAGES_PER_STEP, 2 * PAGES_PER_STEP * block_d * 2
    # Two programs on a multiprocessor: one scores while the other ranks.
    two = features + step <= SHARED_BYTES // 2
    while features + step > SHARED_BYTES:
        pages, step = pages // 2, step // 2
    return block_h, pages, two


def select_pages_extend(
    q: torch.Tensor,
    repr_buffer: torch.Tensor,
    repr_version: Optional[torch.Tensor],
    page_version: torch.Tensor,
    page_table: torch.Tensor,
    plan: ExtendPlan,
    out: PageLists,
    workspace: ExtendSelectWorkspace,
    counters: torch.Tensor,
    *,
    page_size: int,
    window_size: int,
    sink_pages: int,
    topk: int,
    kind: str,
    strategy: str,
    sm_scale: float,
    local_lse: Optional[torch.Tensor] = None,
    channels: Optional[torch.Tensor] = None,
) -> PageLists:
    """Select pages for all new tokens of a batch.

    Args:
        q: packed queries ``[T, H_q, D]``, last dimension contiguous.
        repr_buffer: representations by physical page ``[num_pages, H_kv, repr_dim]``, last dimension contiguous.
        repr_version: version each was written for ``[num_pages]`` int64; None if all are valid.
        page_version: versions that were read before the page table ``[num_pages]`` int64.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        plan: of the pass, with at least one candidate page.
        out: written whole.
        workspace: made for plans of at least this size.
        counters: ``HSACounters.values``, added to.
        strategy: ``group``, ``head`` or ``softmax_head``.
        local_lse: log-sum-exp of window and sinks ``[T, H_q]`` float32; needed by ``softmax_head``.
        channels: that the representations are taken from ``[R]`` int32; None for a kind that takes all.

    Returns:
        ``out``.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = repr_buffer.shape[1]
    group = num_heads // num_kv_heads
    items = len(plan.tiles) * num_kv_heads
    block_d = triton.next_power_of_2(head_dim)
    half = num_channels(head_dim) // 2
    block_h, pages, two = _shape_of_product(
        kind, strategy, group, block_d, plan.tiling.tile_rows
    )
    programs = min(items, workspace.programs)
    if not two:
        programs = min(programs, workspace.processors)
    _select_pages_extend_kernel[(programs,)](
        q,
        repr_buffer,
        repr_version,
        page_version,
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
        channels,
        sm_scale,
        items,
        q.stride(0),
        q.stride(1),
        repr_buffer.stride(0),
        repr_buffer.stride(1),
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
        PAGE_SIZE=page_size,
        WINDOW=max(window_size, 1),
        SINKS=sink_pages,
        TOPK=topk,
        TOPK_BLOCK=triton.next_power_of_2(topk),
        KIND=kind,
        STRATEGY=strategy,
        HAS_VERSIONS=repr_version is not None,
        PAGES=pages,
        HALF=half,
        BLOCK_HALF=max(half, 16),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        ROWS_DENSE=INDEX["rows_dense"],
        ROWS_SPARSE=INDEX["rows_sparse"],
        PAGES_CANDIDATE=INDEX["pages_candidate"],
        PAGES_SELECTED=INDEX["pages_selected"],
        num_warps=4 if two else 8,
        num_stages=1,  # shared memory holds no second step
    )
    return out
