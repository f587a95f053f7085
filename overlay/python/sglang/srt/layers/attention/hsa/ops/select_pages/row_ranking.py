# SPDX-License-Identifier: Apache-2.0
"""The k-th best score of several query rows at once inside a Triton program, over any number of pages.

Scores live as unsigned keys in the order of the scores; key 0 is a page that cannot be selected. Up to ``wide`` pages of
a row are ranked in registers. Beyond that a lower bound of the k-th key drops nearly all pages first: of the maxima of
disjoint groups of pages, k reach the k-th largest maximum, so at least k pages do. Where too many remain (fewer groups
than k, or many equal keys) every bit of the k-th key costs one pass over the row's keys. Every path is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Keys of a row in registers where that is enough, and keys of all rows together where it is not.
NARROW: tl.constexpr = tl.constexpr(256)
MAX_KEYS = 16384
COLUMNS: tl.constexpr = tl.constexpr(256)  # pages per step of a pass over the keys
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
    """Keys ``lo .. lo + WIDTH - 1`` of each row, 0 past its length. ``end`` is at least the longest row's length."""
    # One mask for all rows whose end is a multiple of 128: a mask per key would forbid wide loads.
    column = lo + tl.arange(0, WIDTH)
    end = (end + 127) // 128 * 128
    key = tl.load(
        row_ptr[:, None] + column[None, :], mask=(column < end)[None, :], other=0
    )
    return tl.where(column[None, :] < lengths[:, None], key, 0)


@triton.jit
def _kth_largest(
    count_at_least: tl.constexpr, keys, TOPK: tl.constexpr, ROWS: tl.constexpr
):
    """The TOPK-th largest key of each of ROWS rows, 0 where a row has fewer keys above 0.

    ``count_at_least(trial, keys)`` counts each row's keys of at least ``trial`` ``[ROWS]``: ``_in_registers`` or
    ``_streaming``.
    """
    threshold = tl.zeros((ROWS,), tl.uint32)
    bit = tl.full((), 2147483648, tl.uint32)
    for _ in range(32):
        trial = threshold | bit
        reached = count_at_least(trial, keys)
        threshold = tl.where(reached >= TOPK, trial, threshold)
        bit = bit >> 1
    return threshold


@triton.jit
def _in_registers(trial, keys):
    """``keys``: ``[ROWS, N]``."""
    return tl.sum((keys >= trial[:, None]).to(tl.int32), axis=1)


@triton.jit
def _streaming(trial, keys):
    """``keys``: what ``load_keys`` takes, and the largest length."""
    row_ptr, lengths, most = keys
    reached = tl.zeros_like(lengths)
    for lo in range(0, most, COLUMNS):
        reached += _in_registers(trial, load_keys(row_ptr, lengths, lo, most, COLUMNS))
    return reached


@triton.jit
def _keep_from(
    bound, row_ptr, kept_ptr, lengths, most, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    """Copy each row's keys of at least ``bound``, up to WIDE of them; returns how many there are ``[ROWS]``."""
    kept = tl.zeros((ROWS,), tl.int32)
    for lo in range(0, most, COLUMNS):
        key = load_keys(row_ptr, lengths, lo, most, COLUMNS)
        keep = (key >= bound[:, None]) & (key > 0)
        place = kept[:, None] + tl.cumsum(keep.to(tl.int32), axis=1) - 1
        tl.store(kept_ptr[:, None] + place, key, mask=keep & (place < WIDE))
        kept += tl.sum(keep.to(tl.int32), axis=1)
    return kept


@triton.jit
def row_thresholds(
    row_ptr,
    maxima_ptr,
    kept_ptr,
    lengths,
    most,
    TOPK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The TOPK-th largest key of each row, 0 where all selectable pages of the row are selected.

    Args:
        row_ptr: each row's keys ``[ROWS]`` pointers, written by this program before a barrier and readable up to a
            multiple of 128.
        maxima_ptr: the maxima of each row's groups ``[ROWS]`` pointers; read above WIDE keys only.
        kept_ptr: scratch for WIDE keys per row; WIDE is ``wide(ROWS)``.
        lengths: keys of each row ``[ROWS]``; most: the largest of them.
    """
    threshold = tl.zeros((ROWS,), tl.uint32)
    if most > WIDE:
        # The maxima of some groups bound the k-th key as well.
        groups = tl.minimum((lengths + GROUP_PAGES - 1) // GROUP_PAGES, WIDE)
        maxima = load_keys(maxima_ptr, groups, 0, WIDE, WIDE)
        bound = _kth_largest(_in_registers, maxima, TOPK, ROWS)
        kept = _keep_from(bound, row_ptr, kept_ptr, lengths, most, ROWS, WIDE)
        tl.debug_barrier()
        if tl.max(kept) <= WIDE:
            key = load_keys(kept_ptr, kept, 0, WIDE, WIDE)
            threshold = _kth_largest(_in_registers, key, TOPK, ROWS)
        else:
            source = (row_ptr, lengths, most)
            threshold = _kth_largest(_streaming, source, TOPK, ROWS)
    elif most > NARROW:
        key = load_keys(row_ptr, lengths, 0, most, WIDE)
        threshold = _kth_largest(_in_registers, key, TOPK, ROWS)
    elif most > TOPK:
        key = load_keys(row_ptr, lengths, 0, most, NARROW)
        threshold = _kth_largest(_in_registers, key, TOPK, ROWS)
    return threshold
