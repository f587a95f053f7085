# SPDX-License-Identifier: Apache-2.0
"""From scores to page lists, inside a Triton program of the extend selection: each row's k best, and the union of a run of rows."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    PAGES_CANDIDATE,
    PAGES_SELECTED,
    ROWS_DENSE,
    ROWS_SPARSE,
    add_count,
    window_start,
)
from sglang.srt.layers.attention.hsa.ops.select.extend_ranking import LANES, rank_rows

LISTED_KEYS: tl.constexpr = tl.constexpr(4096)  # rows times pages per step of a union


@triton.jit
def num_candidates(
    m,
    rows,
    position,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
):
    """Candidate pages of the rows ``m`` of a tile whose first row is at ``position``; 0 past its ``rows``."""
    start = window_start(position + m, PAGE_SIZE, WINDOW, DENSE_BELOW)
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


@triton.jit
def rank_and_list(
    item,
    g,
    rows,
    lengths,
    keys,
    peaks,
    kept,
    ranks,
    table_row,
    list_pages,
    list_rows,
    list_lengths,
    counters,
    stride_list,
    stride_keys,
    ROWS: tl.constexpr,
    WIDTHS: tl.constexpr,
    RANKED: tl.constexpr,
    PEAKS: tl.constexpr,
    LIST_ROWS: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
):
    """Rank the keys of a tile's rows, store the lists of its runs, and count.

    Args:
        item: number of the tile and KV head, which ``list_*`` are indexed by.
        rows: of the tile. lengths: candidate pages of each row ``[ROWS]``.
        keys, peaks, kept: of ``rank_rows``. ranks: scratch ``[3 * ROWS]`` int32.
    """
    LISTS: tl.constexpr = ROWS // LIST_ROWS
    # Of each row its number of candidates, its threshold, and how many keys reach that.
    row_lengths = ranks
    thresholds = row_lengths + ROWS
    reached = thresholds + ROWS
    tl.store(row_lengths + tl.arange(0, ROWS), lengths)
    tl.debug_barrier()
    rank_rows(
        keys, peaks, kept, row_lengths, thresholds, reached, rows, tl.max(lengths), stride_keys,
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
    tl.debug_barrier()  # the next tile writes over the scratch

    add_count(counters + PAGES_CANDIDATE, tl.sum(lengths).to(tl.int64))
    add_count(counters + PAGES_SELECTED, selected.to(tl.int64))
    if g == 0:
        sparse = tl.sum((lengths > 0).to(tl.int64))
        add_count(counters + ROWS_SPARSE, sparse)
        add_count(counters + ROWS_DENSE, rows.to(tl.int64) - sparse)
