# SPDX-License-Identifier: Apache-2.0
"""Top-k of one row of page scores inside a Triton program: a total order, score first, then the smaller page."""

from __future__ import annotations

import triton
import triton.language as tl

# Up to PAIRWISE pages every pair is compared; up to DIGITS pages the k-th score is found four bits at a time with all
# sixteen trials in registers; above that, one bit at a time.
PAIRWISE: tl.constexpr = tl.constexpr(128)
DIGITS: tl.constexpr = tl.constexpr(1024)


@triton.jit
def _kth_largest(key, TOPK: tl.constexpr, WIDTH: tl.constexpr):
    """The TOPK-th largest of the unsigned keys ``[WIDTH]``, or 0 if there are fewer."""
    threshold = tl.full((), 0, tl.uint32)
    if WIDTH <= DIGITS:
        digit = tl.arange(0, 16)
        for step in tl.static_range(8):
            trial = threshold | (digit << (28 - 4 * step)).to(tl.uint32)
            reached = tl.sum((key[:, None] >= trial[None, :]).to(tl.int32), axis=0)
            best = tl.max(tl.where(reached >= TOPK, digit, 0))
            threshold = threshold | (best << (28 - 4 * step)).to(tl.uint32)
    else:
        bit = tl.full((), 2147483648, tl.uint32)
        for _ in range(32):
            trial = threshold | bit
            reached = tl.sum((key >= trial).to(tl.int32))
            threshold = tl.where(reached >= TOPK, trial, threshold)
            bit = bit >> 1
    return threshold


@triton.jit
def store_best(
    scores_row,
    table_row,
    out_row,
    count,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Store the physical pages of the TOPK best of ``count`` scores, ascending, -1 padded; returns how many."""
    index = tl.arange(0, WIDTH)
    live = index < count
    # Written by other programs of this launch: .cg reads past the L1 cache.
    score = tl.load(
        scores_row + index, mask=live, other=float("-inf"), cache_modifier=".cg"
    )
    page = tl.load(table_row + index, mask=live, other=0)
    if WIDTH <= PAIRWISE:
        ahead = (score[None, :] > score[:, None]) | (
            (score[None, :] == score[:, None]) & (index[None, :] < index[:, None])
        )
        chosen = tl.sum(ahead.to(tl.int32), axis=1) < TOPK
    else:
        # Unsigned keys in the order of the scores; -inf maps below every finite score.
        bits = score.to(tl.int32, bitcast=True)
        flip = tl.where(bits < 0, -1, -2147483648)
        key = (bits ^ flip).to(tl.uint32, bitcast=True)
        threshold = _kth_largest(key, TOPK, WIDTH)
        above = key > threshold
        tie = key == threshold
        room = TOPK - tl.sum(above.to(tl.int32))
        chosen = above | (tie & (tl.cumsum(tie.to(tl.int32)) <= room))
    chosen = chosen & (score > float("-inf"))
    rank = tl.cumsum(chosen.to(tl.int32)) - 1
    tl.store(out_row + rank, page, mask=chosen)
    found = tl.sum(chosen.to(tl.int32))
    slot = tl.arange(0, TOPK_BLOCK)
    tl.store(
        out_row + slot,
        tl.full((TOPK_BLOCK,), -1, tl.int32),
        mask=(slot >= found) & (slot < TOPK),
    )
    return found
