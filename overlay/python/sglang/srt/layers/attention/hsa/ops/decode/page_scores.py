# SPDX-License-Identifier: Apache-2.0
"""Parts of the decode kernel: what a selected page weighs where it weighs exp(its score)."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.extend.attention_step import linear_score


@triton.jit
def page_score(
    first_feature,
    second_feature,
    page,
    g,
    wanted,
    repr_buffer,
    biases,
    stride_repr_page,
    stride_repr_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Scores ``[BLOCK_G]`` of one page by the features of ``linear_kinds.head_features``; of no meaning unless ``wanted``."""
    e = repr_buffer + page * stride_repr_page + g * stride_repr_head
    if KIND == "prior":  # a vector per query head
        head = tl.arange(0, BLOCK_G)
        d = tl.arange(0, BLOCK_D)
        mean = tl.load(
            e + head[:, None] * HEAD_DIM + d[None, :],
            mask=(head < GROUP)[:, None] & (d < HEAD_DIM)[None, :] & wanted,
            other=0.0,
        ).to(tl.float32)
        bias_ptr = biases + (page * KV_HEADS + g) * GROUP + head
        score = tl.sum(first_feature * mean, axis=1)
        score += tl.load(bias_ptr, mask=(head < GROUP) & wanted, other=0.0)
    else:
        score = linear_score(first_feature, second_feature, e, HEAD_DIM, BLOCK_D, WIDTH)
    return score
