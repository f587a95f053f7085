# SPDX-License-Identifier: Apache-2.0
"""The linear kinds of ``page_repr.KINDS`` inside a Triton program: what they keep of a page, and of a query."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def page_features(keys, PAGE_SIZE: tl.constexpr, KIND: tl.constexpr):
    """Both halves of E ``[D]`` float32 from a page's keys ``[P, D]`` float32; a kind of width 1 has no second one."""
    mean = tl.sum(keys, axis=0) / PAGE_SIZE
    second = mean
    if KIND == "mean_std":
        centred = keys - mean[None, :]
        second = tl.sqrt(tl.sum(centred * centred, axis=0) / PAGE_SIZE)
    return mean, second


@triton.jit
def query_features(q, scale, KIND: tl.constexpr):
    """The factors of both halves of E, float32, of queries of any shape; 0 for a half that the kind lacks."""
    first = scale * q
    second = 0.0 * q
    if KIND == "mean_std":
        second = scale * tl.abs(q)
    return first, second


@triton.jit
def head_features(
    q_row,
    scale,
    stride_q_head,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
):
    """``query_features`` ``[BLOCK_G, BLOCK_D]`` of the heads at ``q_row``; 0 for those of padding."""
    head = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    heads = tl.load(
        q_row + head[:, None] * stride_q_head + d[None, :],
        mask=(head < GROUP)[:, None] & (d < HEAD_DIM)[None, :],
        other=0.0,
    )
    return query_features(heads.to(tl.float32), scale, KIND)
