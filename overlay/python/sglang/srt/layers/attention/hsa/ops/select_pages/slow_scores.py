# SPDX-License-Identifier: Apache-2.0
"""Scores of pages whose representation is slow_keys, inside a Triton program: the largest of the page's approximate logits.

A program holds its queries as two tiles, one for each half of the kept channels, because a byte holds one code of either
half. Lowest values and steps are read as integers: bfloat16 is the upper half of a float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_halves(
    q_ptr, channels, mask, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr
):
    """The kept channels of queries ``q_ptr`` ``[R]``: two tiles ``[R, BLOCK_HALF]`` in their dtype, 0 where not ``mask`` ``[R]``."""
    c = tl.arange(0, BLOCK_HALF)
    kept = c < HALF
    first = tl.load(channels + c, mask=kept, other=0)
    second = tl.load(channels + HALF + c, mask=kept, other=0)
    inside = mask[:, None] & kept[None, :]
    return (
        tl.load(q_ptr[:, None] + first[None, :], mask=inside, other=0.0),
        tl.load(q_ptr[:, None] + second[None, :], mask=inside, other=0.0),
    )


@triton.jit
def _from_upper_half(bits):
    """The float32 whose upper 16 bits these are, and whose others are 0."""
    return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _load_bounds(page_ptr, mask, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Lowest values and steps of both halves of the channels of pages ``page_ptr``: four tiles of the mask's shape.

    ``page_ptr`` and ``mask`` broadcast to a tile whose first dimension is BLOCK_HALF.
    """
    c = tl.arange(0, BLOCK_HALF)[:, None]
    at = page_ptr.to(tl.pointer_type(tl.uint16)) + c
    return (
        _from_upper_half(tl.load(at, mask=mask, other=0)),
        _from_upper_half(tl.load(at + 2 * HALF, mask=mask, other=0)),
        _from_upper_half(tl.load(at + HALF, mask=mask, other=0)),
        _from_upper_half(tl.load(at + 3 * HALF, mask=mask, other=0)),
    )


@triton.jit
def _logits(
    query,
    query_2,
    packed,
    low,
    step,
    low_2,
    step_2,
    PRECISION: tl.constexpr,
):
    """Products ``[R, N]`` of queries ``[R, BLOCK_HALF]`` twice and coded keys ``[BLOCK_HALF, N]``, not scaled."""
    key = low + step * (packed & 15).to(tl.float32)
    key_2 = low_2 + step_2 * (packed >> 4).to(tl.float32)
    logits = tl.dot(query, key.to(query.dtype), input_precision=PRECISION)
    return tl.dot(query_2, key_2.to(query.dtype), logits, input_precision=PRECISION)


@triton.jit
def score_page_block(
    lo,
    bound,
    query,
    query_2,
    repr_head,
    table_row,
    stride_repr_page,
    PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Largest logits ``[R, PAGES]`` of the pages from number ``lo`` on, in one product; undefined from ``bound`` on."""
    BLOCK_HALF: tl.constexpr = query.shape[1]
    token = tl.arange(0, PAGES * PAGE_SIZE)
    index = lo + token // PAGE_SIZE
    page = tl.load(table_row + index, mask=index < bound, other=0).to(tl.int64)
    page_ptr = repr_head + page * stride_repr_page
    c = tl.arange(0, BLOCK_HALF)
    mask = (index < bound)[None, :] & (c < HALF)[:, None]
    codes = 8 * HALF + (token % PAGE_SIZE)[None, :] * HALF + c[:, None]
    packed = tl.load(page_ptr[None, :] + codes, mask=mask, other=0)
    low, step, low_2, step_2 = _load_bounds(page_ptr[None, :], mask, HALF, BLOCK_HALF)
    logits = _logits(query, query_2, packed, low, step, low_2, step_2, PRECISION)
    return tl.max(tl.reshape(logits, (query.shape[0], PAGES, PAGE_SIZE)), axis=2)


@triton.jit
def score_pages_in_turn(
    lo,
    most,
    query,
    query_2,
    repr_head,
    repr_version,
    page_version,
    table_row,
    stride_repr_page,
    PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Largest logits ``[R, PAGES]`` of the pages from number ``lo`` on, a product each; -inf if not valid or from ``most`` on.

    The codes of the next page are on their way while those of a page are multiplied.
    """
    BLOCK_HALF: tl.constexpr = query.shape[1]
    c = tl.arange(0, BLOCK_HALF)[:, None]
    slot = tl.arange(0, PAGE_SIZE)[None, :]
    kept = c < HALF
    codes = 8 * HALF + slot * HALF + c
    column = tl.arange(0, PAGES)[None, :]
    scores = tl.full((query.shape[0], PAGES), float("-inf"), tl.float32)
    count = tl.minimum(most - lo, PAGES)
    page = tl.load(table_row + lo, mask=count > 0, other=0).to(tl.int64)
    page_ptr = repr_head + page * stride_repr_page
    packed = tl.load(page_ptr + codes, mask=kept, other=0)
    low, step, low_2, step_2 = _load_bounds(page_ptr, kept, HALF, BLOCK_HALF)
    for i in range(0, count):
        valid = True
        if HAS_VERSIONS:
            valid = tl.load(repr_version + page) == tl.load(page_version + page)
        now, now_low, now_step, now_low_2, now_step_2 = packed, low, step, low_2, step_2
        page = tl.load(table_row + lo + i + 1, mask=i + 1 < count, other=0)
        page = page.to(tl.int64)
        page_ptr = repr_head + page * stride_repr_page
        packed = tl.load(page_ptr + codes, mask=kept, other=0)
        low, step, low_2, step_2 = _load_bounds(page_ptr, kept, HALF, BLOCK_HALF)
        logits = _logits(
            query, query_2, now, now_low, now_step, now_low_2, now_step_2, PRECISION
        )
        best = tl.where(valid, tl.max(logits, axis=1), float("-inf"))
        scores = tl.where(column == i, best[:, None], scores)
    return scores
