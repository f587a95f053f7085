# SPDX-License-Identifier: Apache-2.0
"""Pieces of the extend selection kernel: scores of some pages for a tile of queries, to float32 accuracy on the tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import rank_unknown_first


@triton.jit
def _dot_terms(e, f):
    """``[C, K]`` in half precision times ``[K, R]`` float32, as three terms of that type, which hold its 24 bits."""
    high = f.to(e.dtype)
    rest = f - high.to(tl.float32)
    middle = rest.to(e.dtype)
    low = (rest - middle.to(tl.float32)).to(e.dtype)
    # Sums of products: a chain of accumulators would get a layout of its own.
    return tl.dot(e, low) + tl.dot(e, middle) + tl.dot(e, high)


@triton.jit
def _exact_dot(e, f):
    """``[C, K]`` in its storage dtype times ``[K, R]`` float32, to float32 accuracy."""
    if e.dtype == tl.bfloat16:
        c = _dot_terms(e, f)
    elif e.dtype == tl.float32:
        c = tl.dot(e, f, input_precision="ieee")
    else:
        # float16 lacks the range: a power of two takes each row's largest feature to 2^14 or more.
        largest = tl.max(tl.abs(f), axis=0)
        exponent = largest.to(tl.int32, bitcast=True) >> 23  # plus 127
        exponent = tl.minimum(tl.maximum(268 - exponent, 1), 253)
        factor = (exponent << 23).to(tl.float32, bitcast=True)
        inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
        c = _dot_terms(e.to(tl.float16), f * factor[None, :]) * inverse[None, :]
    return c


@triton.jit
def raw_scores(
    index,
    most,
    repr_head,
    repr_version,
    page_version,
    table_row,
    first,
    second,
    stride_repr_page,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
):
    """Scores of candidate pages ``index`` ``[C]`` for features ``[D, R]``: ``[R, C]``, -inf from ``most`` on.

    ``rank_unknown_first`` where a page has no valid representation.
    """
    d = tl.arange(0, BLOCK_D)
    inside = index < most
    page = tl.load(table_row + index, mask=inside, other=0).to(tl.int64)
    e_ptr = repr_head + page[:, None] * stride_repr_page + d[None, :]
    # What is not valid may hold anything, NaN included: it never enters a score that counts.
    mask = inside[:, None] & (d[None, :] < HEAD_DIM)
    raw = _exact_dot(tl.load(e_ptr, mask=mask, other=0.0), first)
    if WIDTH == 2:
        raw += _exact_dot(tl.load(e_ptr + HEAD_DIM, mask=mask, other=0.0), second)
    if HAS_VERSIONS:
        stamp = tl.load(repr_version + page, mask=inside, other=0)
        current = tl.load(page_version + page, mask=inside, other=0)
        raw = rank_unknown_first(raw, stamp[:, None], current[:, None])
    return tl.trans(tl.where(inside[:, None], raw, float("-inf")))
