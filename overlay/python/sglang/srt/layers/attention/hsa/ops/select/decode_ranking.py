# SPDX-License-Identifier: Apache-2.0
"""Top-k of one row of page scores inside a Triton program: a total order, score first, then the smaller page."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    PAGES_CANDIDATE,
    PAGES_SELECTED,
    ROWS_DENSE,
    ROWS_SPARSE,
    add_count,
)
from sglang.srt.layers.attention.hsa.ops.select.extend_ranking import ordered_keys

# A row is ranked in registers, in the least of these numbers of them that its pages fit into.
WIDTHS = (256, 1024, 2048, 4096, 8192)
MAX_WARPS = 32
KEYS_PER_THREAD = 32  # more do not fit into the registers of the widest row
EARLY: tl.constexpr = tl.constexpr(
    4096
)  # widest row that has registers for its pages while it is ranked


def ranking_widths(candidates: int) -> tuple[int, ...]:
    """Numbers of pages that rankings are compiled for, ascending; the last takes as many candidates of a row."""
    widest = triton.next_power_of_2(max(candidates, 1))
    return (*(width for width in WIDTHS if width < widest), widest)


def ranking_warps(widths: tuple[int, ...]) -> int:
    """Warps of a program that ranks rows of these widths; more than MAX_WARPS do not fit into one."""
    return min(MAX_WARPS, max(4, widths[-1] // (32 * KEYS_PER_THREAD)))


@triton.jit
def _count(keys, least):
    """Keys ``[WIDTH]`` of at least ``least`` ``[1]``: ``[1]``."""
    return tl.sum((keys >= least).to(tl.int32), axis=0, keep_dims=True)


@triton.jit
def _count_two(keys, first, second, WIDTH: tl.constexpr):
    """``_count`` of two bounds by one sum over the warps, the second in the upper half of its numbers."""
    if WIDTH < 65536:
        both = (keys >= first).to(tl.uint32) + ((keys >= second).to(tl.uint32) << 16)
        both = tl.sum(both, axis=0, keep_dims=True)
        return (both & 0xFFFF).to(tl.int32), (both >> 16).to(tl.int32)
    return _count(keys, first), _count(keys, second)


@triton.jit
def _threshold(keys, low, high, TOPK: tl.constexpr, WIDTH: tl.constexpr):
    """(threshold ``[1]``, how many keys reach it), as ``bisect``, by thirds: the sums over the warps take its time.

    Args:
        keys: uint32 ``[WIDTH]``.
        low, high: bounds of the TOPK-th largest key, uint32 ``[1]``.
    """
    reached = tl.full(low.shape, TOPK + 1, tl.int32)
    unsettled = low < high
    while tl.max(unsettled.to(tl.int32)) > 0:
        between = high - low
        first, second = low + (between + 2) // 3, high - between // 3
        at_first, at_second = _count_two(keys, first, second, WIDTH)
        lower, upper = at_first >= TOPK, at_second >= TOPK  # upper only if lower
        high = tl.where(upper, high, tl.where(lower, second, first) - 1)
        low = tl.where(upper, second, tl.where(lower, first, low))
        reached = tl.where(upper, at_second, tl.where(lower, at_first, reached))
        unsettled = (low < high) & (reached != TOPK)
    return low, _count(keys, tl.maximum(low, 1))


@triton.jit
def _store_best(
    scores_row,
    table_row,
    out_row,
    count,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``store_best`` of at most WIDTH scores."""
    index = tl.arange(0, WIDTH)
    live = index < count
    # Written by other programs of this launch: .cg reads past the L1 cache.
    score = tl.load(
        scores_row + index, mask=live, other=float("-inf"), cache_modifier=".cg"
    )
    if WIDTH <= EARLY:
        page = tl.load(table_row + index, mask=live, other=0)
    key = ordered_keys(score)
    high = tl.max(key, axis=0, keep_dims=True)
    low = tl.zeros_like(high)
    if TOPK_BLOCK <= WIDTH:  # the least of TOPK maxima or more bounds the TOPK-th key
        best = tl.max(tl.reshape(key, (WIDTH // TOPK_BLOCK, TOPK_BLOCK)), axis=0)
        low = tl.min(best, axis=0, keep_dims=True)
    threshold, reached = _threshold(key, low, high, TOPK, WIDTH)
    chosen = key >= threshold
    if tl.max(reached) > TOPK:
        tie = key == threshold
        room = TOPK - _count(key, threshold + 1)
        chosen = chosen & ((key != threshold) | (tl.cumsum(tie.to(tl.int32)) <= room))
    chosen = chosen & (key > 0)
    rank = tl.cumsum(chosen.to(tl.int32)) - 1
    if WIDTH > EARLY:
        page = tl.load(table_row + index, mask=chosen, other=0)
    tl.store(out_row + rank, page, mask=chosen)
    found = tl.sum(chosen.to(tl.int32))
    slot = tl.arange(0, TOPK_BLOCK)
    tl.store(
        out_row + slot,
        tl.full((TOPK_BLOCK,), -1, tl.int32),
        mask=(slot >= found) & (slot < TOPK),
    )
    return found


@triton.jit
def store_best(
    scores_row,
    table_row,
    out_row,
    count,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    WIDTHS: tl.constexpr,
):
    """Store the physical pages of the TOPK best of ``count`` scores, ascending, -1 padded; returns how many.

    WIDTHS are ``ranking_widths``.
    """
    found = tl.zeros((), tl.int32)
    for i in tl.static_range(len(WIDTHS)):
        if (count <= WIDTHS[i]) & (count > (WIDTHS[i - 1] if i > 0 else -1)):
            found = _store_best(
                scores_row, table_row, out_row, count, TOPK, TOPK_BLOCK, WIDTHS[i]
            )
    return found


@triton.jit
def rank_and_count(
    scores_row,
    table_row,
    out_row,
    counters,
    count,
    position,
    g,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    WIDTHS: tl.constexpr,
):
    """``store_best`` of the row at ``position`` and KV head ``g``, and its counts."""
    found = store_best(scores_row, table_row, out_row, count, TOPK, TOPK_BLOCK, WIDTHS)
    if count > 0:
        add_count(counters + PAGES_CANDIDATE, count.to(tl.int64))
        add_count(counters + PAGES_SELECTED, found.to(tl.int64))
    # Rows of length 1 pad the batch of a CUDA graph.
    if (g == 0) & (position > 0):
        add_count(
            counters + tl.where(count > 0, ROWS_SPARSE, ROWS_DENSE),
            tl.full((), 1, tl.int64),
        )
