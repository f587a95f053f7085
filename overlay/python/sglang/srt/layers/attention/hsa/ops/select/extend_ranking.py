# SPDX-License-Identifier: Apache-2.0
"""What separates the k best scores of several query rows from the rest, inside a Triton program, for any number of pages.

Scores live as unsigned keys in the order of the scores; key 0 is a page that cannot be selected. A threshold is found by
bisection between two keys, and as soon as exactly k keys reach it, it need not be exact. Rows of up to WIDTHS[-1] pages are
ranked in registers, the more at a time the fewer their pages. Beyond that a lower bound of the k-th key drops nearly all
pages first: of the peaks, which are the maxima of disjoint sets of pages, k reach the k-th largest peak, so at least k
pages do. Where too many remain (the best ones all in fewer sets than k, or many equal keys) every step of the bisection
is one pass over the row's keys. Every path is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Keys live in blocks [rows, N, LANES]: the compiler spreads LANES over a warp and rows over the warps, so that each
# warp counts its rows without the others.
LANES: tl.constexpr = tl.constexpr(128)
# Pages of a row that registers are laid out for, and keys of all rows together.
WIDTHS = (256, 512, 1024, 2048)
MAX_KEYS = 8192


def rows_at_a_time(rows: int) -> tuple[int, ...]:
    """Rows of a tile that a program ranks together, for each of WIDTHS; the last for longer rows as well."""
    return tuple(min(rows, MAX_KEYS // width) for width in WIDTHS)


def num_peaks(topk: int) -> int:
    """Peaks of a row: twice as many as bound its k-th key, a multiple of LANES, but no more than registers hold."""
    return min(max(2 * triton.next_power_of_2(topk), LANES.value), WIDTHS[-1])


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
    for lo in range(0, most, LANES):
        reached += _count(load_keys(row_ptr, lengths, lo, most, LANES), least)
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
def _rank_in_registers(
    keys,
    lengths,
    thresholds,
    reached,
    rows,
    most,
    stride_keys,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    RANKED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``rank_rows`` of at most WIDTH keys per row."""
    for at in range(0, rows, RANKED):
        m = at + tl.arange(0, RANKED)
        key = load_keys(keys + m * stride_keys, tl.load(lengths + m), 0, most, WIDTH)
        threshold, count = _thresholds(key, TOPK, TOPK_BLOCK, RANKED)
        tl.store(thresholds + m, threshold.to(tl.int32, bitcast=True))
        tl.store(reached + m, count)


@triton.jit
def _rank_sieved(
    keys,
    peaks,
    kept,
    lengths,
    thresholds,
    reached,
    rows,
    most,
    stride_keys,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    RANKED: tl.constexpr,
    WIDE: tl.constexpr,
    NARROW: tl.constexpr,
    PEAKS: tl.constexpr,
):
    """``rank_rows`` of any number of keys per row."""
    n = tl.arange(0, RANKED)
    for at in range(0, rows, RANKED):
        length = tl.load(lengths + at + n)
        row_ptr = keys + (at + n) * stride_keys
        all_peaks = tl.zeros_like(n) + PEAKS
        peak = load_keys(peaks + (at + n) * PEAKS, all_peaks, 0, PEAKS, PEAKS)
        bound, _ = _thresholds(peak, TOPK, TOPK_BLOCK, RANKED)
        kept_ptr = kept + n * WIDE
        left = _keep_from(bound, row_ptr, kept_ptr, length, most, RANKED, WIDE)
        tl.debug_barrier()
        if tl.max(left) <= NARROW:
            few = load_keys(kept_ptr, left, 0, NARROW, NARROW)
            threshold, count = _thresholds(few, TOPK, TOPK_BLOCK, RANKED)
        elif tl.max(left) <= WIDE:
            many = load_keys(kept_ptr, left, 0, WIDE, WIDE)
            threshold, count = _thresholds(many, TOPK, TOPK_BLOCK, RANKED)
        else:
            high = tl.full((RANKED,), 4294967295, tl.uint32)
            threshold, count = bisect(
                _count_streaming, (row_ptr, length, most), bound, high, TOPK
            )
        tl.debug_barrier()  # the next rows write over what was kept
        threshold = tl.maximum(threshold, bound)  # below are keys that were dropped
        tl.store(thresholds + at + n, threshold.to(tl.int32, bitcast=True))
        tl.store(reached + at + n, count)


@triton.jit
def rank_rows(
    keys,
    peaks,
    kept,
    lengths,
    thresholds,
    reached,
    rows,
    most,
    stride_keys,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTHS: tl.constexpr,
    RANKED: tl.constexpr,
    PEAKS: tl.constexpr,
):
    """Find a threshold for each of ``rows`` rows: a row selects its keys above 0 that reach it.

    ``reached`` of them do: all that can be selected if they are fewer than TOPK (threshold 0), else TOPK; or more, and then
    those that equal the threshold are ties for the last places. If no row has more than TOPK, both are 0.

    Args:
        keys: ``[ROWS, stride_keys]`` uint32, written by this program before a barrier and readable up to a multiple of LANES.
        peaks: maxima of disjoint sets of each row's keys ``[ROWS, PEAKS]`` uint32; read above WIDTHS[-1] keys only.
        kept: scratch ``[RANKED[-1], WIDTHS[-1]]`` uint32; only then needed as well.
        lengths: keys of each row ``[ROWS]`` int32, 0 past ``rows``.
        thresholds, reached: ``[ROWS]`` int32, written; a threshold holds the bits of a uint32.
        most: the largest length.
        TOPK_BLOCK: the power of two from TOPK on.
        RANKED: ``rows_at_a_time`` of ROWS.
    """
    LAST: tl.constexpr = len(WIDTHS) - 1
    WIDE: tl.constexpr = WIDTHS[LAST]
    if most <= TOPK:
        m = tl.arange(0, ROWS)
        tl.store(thresholds + m, tl.zeros_like(m))
        tl.store(reached + m, tl.zeros_like(m))
    elif most > WIDE:
        _rank_sieved(
            keys, peaks, kept, lengths, thresholds, reached, rows, most, stride_keys, TOPK, TOPK_BLOCK,
            RANKED[LAST], WIDE, WIDTHS[0], PEAKS,
        )  # fmt: skip
    else:
        for i in tl.static_range(len(WIDTHS)):
            if (most <= WIDTHS[i]) & (most > (WIDTHS[i - 1] if i > 0 else 0)):
                _rank_in_registers(
                    keys, lengths, thresholds, reached, rows, most, stride_keys, TOPK, TOPK_BLOCK,
                    RANKED[i], WIDTHS[i],
                )  # fmt: skip
