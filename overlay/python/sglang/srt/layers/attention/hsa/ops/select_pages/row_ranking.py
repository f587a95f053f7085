# SPDX-License-Identifier: Apache-2.0
"""What separates the k best scores of several query rows from the rest, inside a Triton program, for any number of pages.

Scores live as unsigned keys in the order of the scores; key 0 is a page that cannot be selected. A threshold is found by
bisection between two keys, and as soon as exactly k keys reach it, it need not be exact. Up to ``wide`` pages of a row
are ranked in registers. Beyond that a lower bound of the k-th key drops nearly all pages first: of the maxima of
disjoint groups of pages, k reach the k-th largest maximum, so at least k pages do. Where too many remain (fewer groups
than k, or many equal keys) every step of the bisection is one pass over the row's keys. Every path is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

RANK_ROWS = 8  # rows that a program ranks at a time: 2048 pages of each in registers
# Keys of a row in registers where that is enough, and keys of all rows together where it is not.
NARROW: tl.constexpr = tl.constexpr(256)
MAX_KEYS = 16384
# Keys live in blocks [rows, N, LANES]: the compiler spreads LANES over a warp and rows over the warps, so that each
# warp counts its rows without the others.
LANES: tl.constexpr = tl.constexpr(128)
GROUP_PAGES: tl.constexpr = tl.constexpr(16)  # pages that share a maximum


def wide(rows: int) -> int:
    """Keys of each of ``rows`` rows that a program ranks in registers; also the most groups that give a maximum."""
    return MAX_KEYS // rows


@triton.jit
def ordered_keys(score):
    """Unsigned keys in the order of float32 scores without NaN; 0 for -inf."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # -0 is 0
    key = (bits ^ tl.where(bits < 0, -1, -2147483648)).to(tl.uint32, bitcast=True)
    return tl.where(score > float("-inf"), key, tl.zeros_like(key))


@triton.jit
def load_keys(row_ptr, lengths, lo, end, WIDTH: tl.constexpr):
    """Keys ``lo .. lo + WIDTH - 1`` of each row ``[rows, WIDTH / LANES, LANES]``, 0 past the row's length.

    ``end`` is at least the longest row's length.
    """
    # One mask for all rows whose end is a multiple of LANES: a mask per key would forbid wide loads.
    block = tl.arange(0, WIDTH // LANES)[None, :, None]
    column = lo + block * LANES + tl.arange(0, LANES)[None, None, :]
    end = (end + LANES - 1) // LANES * LANES
    key = tl.load(row_ptr[:, None, None] + column, mask=column < end, other=0)
    return tl.where(column < lengths[:, None, None], key, 0)


@triton.jit
def _count(keys, least):
    """Keys ``[rows, N, LANES]`` of at least ``least`` ``[rows]``, per row."""
    reached = (keys >= least[:, None, None]).to(tl.int32)
    return tl.sum(tl.sum(reached, axis=1), axis=1)


@triton.jit
def _count_streaming(keys, least):
    """As ``_count``; ``keys``: what ``load_keys`` takes, and the largest length."""
    row_ptr, lengths, most = keys
    reached = tl.zeros_like(lengths)
    for lo in range(0, most, NARROW):
        reached += _count(load_keys(row_ptr, lengths, lo, most, NARROW), least)
    return reached


@triton.jit
def bisect(count: tl.constexpr, keys, low, high, TOPK: tl.constexpr):
    """(threshold ``[rows]``, how many keys reach it): at least TOPK, and if more, then its own equals tie.

    Args:
        count: ``_count`` or ``_count_streaming``, of ``keys``.
        low, high: bounds of the TOPK-th largest key, uint32 ``[rows]``. Where low is 0, fewer than TOPK keys above 0
            give threshold 0.
    """
    reached = tl.full(low.shape, TOPK + 1, tl.int32)
    unsettled = low < high
    while tl.max(unsettled.to(tl.int32)) > 0:
        between = high - low
        middle = low + (between >> 1) + (between & 1)
        now = count(keys, middle)
        enough = unsettled & (now >= TOPK)
        high = tl.where(unsettled & (now < TOPK), middle - 1, high)
        low = tl.where(enough, middle, low)
        reached = tl.where(enough, now, reached)
        unsettled = (low < high) & (reached != TOPK)
    return low, count(keys, tl.maximum(low, 1))


@triton.jit
def _thresholds(keys, TOPK: tl.constexpr, TOPK_BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """``bisect`` of keys ``[ROWS, N, LANES]`` in registers."""
    best = tl.max(keys, axis=1)  # [ROWS, LANES]
    high = tl.max(best, axis=1)
    low = tl.zeros_like(high)
    if TOPK_BLOCK <= LANES:  # the least of TOPK maxima or more bounds the TOPK-th key
        best = tl.reshape(best, (ROWS, TOPK_BLOCK, LANES // TOPK_BLOCK))
        low = tl.min(tl.max(best, axis=2), axis=1)
    return bisect(_count, keys, low, high, TOPK)


@triton.jit
def _keep_from(
    bound, row_ptr, kept_ptr, lengths, most, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    """Copy each row's keys of at least ``bound``, up to WIDE of them; returns how many there are ``[ROWS]``."""
    kept = tl.zeros((ROWS,), tl.int32)
    for lo in range(0, most, WIDE):
        key = load_keys(row_ptr, lengths, lo, most, WIDE)
        keep = key >= tl.maximum(bound, 1)[:, None, None]
        # In any order: first all of a lane, then those of the next.
        inside = tl.cumsum(keep.to(tl.int32), axis=1)
        lane = tl.sum(keep.to(tl.int32), axis=1)  # [ROWS, LANES]
        before = kept[:, None] + tl.cumsum(lane, axis=1) - lane
        place = before[:, None, :] + inside - 1
        tl.store(kept_ptr[:, None, None] + place, key, mask=keep & (place < WIDE))
        kept += tl.sum(lane, axis=1)
    return kept


@triton.jit
def row_thresholds(
    row_ptr,
    maxima_ptr,
    kept_ptr,
    lengths,
    most,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """(threshold, reached) of each row ``[ROWS]`` uint32 and int32: the row selects its keys above 0 that reach the threshold.

    ``reached`` of them do: all that can be selected if they are fewer than TOPK (threshold 0), else TOPK; or more, and then
    those that equal the threshold are ties for the last places.

    Args:
        row_ptr: each row's keys ``[ROWS]`` pointers, written by this program before a barrier and readable up to a
            multiple of LANES.
        maxima_ptr: the maxima of each row's groups ``[ROWS]`` pointers; read above WIDE keys only.
        kept_ptr: scratch for WIDE keys per row, free again afterwards; WIDE is ``wide(ROWS)``.
        lengths: keys of each row ``[ROWS]``; most: the largest of them.
        TOPK_BLOCK: the power of two from TOPK on.
    """
    threshold = tl.zeros((ROWS,), tl.uint32)
    reached = tl.zeros((ROWS,), tl.int32)  # of at most TOPK pages
    if most > WIDE:
        # The maxima of some groups bound the k-th key as well.
        groups = tl.minimum((lengths + GROUP_PAGES - 1) // GROUP_PAGES, WIDE)
        maxima = load_keys(maxima_ptr, groups, 0, WIDE, WIDE)
        bound, _ = _thresholds(maxima, TOPK, TOPK_BLOCK, ROWS)
        kept = _keep_from(bound, row_ptr, kept_ptr, lengths, most, ROWS, WIDE)
        tl.debug_barrier()
        if tl.max(kept) <= WIDE:
            key = load_keys(kept_ptr, kept, 0, WIDE, WIDE)
            tl.debug_barrier()  # the next rows write over them
            threshold, reached = _thresholds(key, TOPK, TOPK_BLOCK, ROWS)
            threshold = tl.maximum(threshold, bound)  # below are keys that were dropped
        else:
            high = tl.full((ROWS,), 4294967295, tl.uint32)
            threshold, reached = bisect(
                _count_streaming, (row_ptr, lengths, most), tl.zeros_like(high), high, TOPK
            )  # fmt: skip
    elif most > NARROW:
        key = load_keys(row_ptr, lengths, 0, most, WIDE)
        threshold, reached = _thresholds(key, TOPK, TOPK_BLOCK, ROWS)
    elif most > TOPK:
        key = load_keys(row_ptr, lengths, 0, most, NARROW)
        threshold, reached = _thresholds(key, TOPK, TOPK_BLOCK, ROWS)
    return threshold, reached
