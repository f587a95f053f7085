# SPDX-License-Identifier: Apache-2.0
"""Parts of the extend kernel: what it does with one step of keys."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import LOG2_E, running_max


@triton.jit
def raw_logits(
    query,
    k_head,
    slot,
    inside,
    stride_k_slot,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products ``[R, N]`` of the queries and the keys in ``slot`` ``[N]``."""
    d = tl.arange(0, BLOCK_D)
    key = tl.load(
        k_head + slot[None, :] * stride_k_slot + d[:, None],
        mask=inside[None, :] & (d[:, None] < HEAD_DIM),
        other=0.0,
    )
    return tl.dot(query, key.to(query.dtype), input_precision=PRECISION)


@triton.jit
def load_values(
    v_head, slot, inside, stride_v_slot, V_DIM: tl.constexpr, BLOCK_V: tl.constexpr
):
    """The values in ``slot`` ``[N]``: ``[N, BLOCK_V]``."""
    dv = tl.arange(0, BLOCK_V)
    return tl.load(
        v_head + slot[:, None] * stride_v_slot + dv[None, :],
        mask=inside[:, None] & (dv[None, :] < V_DIM),
        other=0.0,
    )


@triton.jit
def accumulate(
    logits,
    best,
    scale,
    visible,
    v_head,
    slot,
    inside,
    top,
    total,
    acc,
    stride_v_slot,
    DTYPE: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One step of the online softmax, in base 2, over the values in ``slot`` ``[N]``.

    Args:
        logits: ``[R, N]``, which ``scale`` takes to base 2.
        best: the rows' largest, times scale ``[R]``; -inf for a row that sees none.
        visible: rows that see the step ``[R]``. A key that such a row does not see has a logit of -inf.
    """
    value = load_values(v_head, slot, inside, stride_v_slot, V_DIM, BLOCK_V)
    new_top, origin = running_max(top, best)
    rescale = tl.exp2(top - origin)
    # One multiply-add per key, and 0 in the rows that do not see the step.
    shift = tl.where(visible, origin, float("inf"))
    p = tl.exp2(logits * scale - shift[:, None])
    acc = acc * rescale[:, None] + tl.dot(
        p.to(DTYPE), value.to(DTYPE), input_precision=PRECISION
    )
    return new_top, total * rescale + tl.sum(p, axis=1), acc


@triton.jit
def own_softmax(logits, scale):
    """Exponentials ``[R, N]`` of the logits of one page, which ``scale`` takes to base 2.

    Returns:
        (exponentials, the logit ``[R]`` in base 2 that they are measured against, their sums ``[R]``: 0 for a row that
        sees no key).
    """
    highest = tl.max(logits, axis=1) * scale
    highest = tl.where(highest > float("-inf"), highest, 0.0)
    p = tl.exp2(logits * scale - highest[:, None])
    return p, highest, tl.sum(p, axis=1)


@triton.jit
def accumulate_page(
    logits,
    scale,
    score,
    visible,
    v_head,
    slot,
    inside,
    top,
    total,
    acc,
    stride_v_slot,
    DTYPE: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``accumulate`` of one page whose log-sum-exp is to be ``score`` ``[R]``: its own softmax, by that weight."""
    value = load_values(v_head, slot, inside, stride_v_slot, V_DIM, BLOCK_V)
    p, _, norm = own_softmax(logits, scale)
    visible = visible & (norm > 0)
    weight = tl.where(visible, score * LOG2_E, float("-inf"))
    new_top, origin = running_max(top, weight)
    rescale = tl.exp2(top - origin)
    mass = tl.exp2(weight - origin)
    p *= (mass / tl.where(visible, norm, 1.0))[:, None]
    acc = acc * rescale[:, None] + tl.dot(
        p.to(DTYPE), value.to(DTYPE), input_precision=PRECISION
    )
    return new_top, total * rescale + mass, acc


@triton.jit
def linear_score(
    first_feature,
    second_feature,
    e,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Scores ``[R]`` of the page whose representation is at ``e``, by the queries' features ``[R, D]`` of a linear kind."""
    d = tl.arange(0, BLOCK_D)
    first = tl.load(e + d, mask=d < HEAD_DIM, other=0.0).to(tl.float32)
    score = tl.sum(first_feature * first[None, :], axis=1)
    if WIDTH == 2:
        second = tl.load(e + HEAD_DIM + d, mask=d < HEAD_DIM, other=0.0).to(tl.float32)
        score += tl.sum(second_feature * second[None, :], axis=1)
    return score


@triton.jit
def prior_score(
    chooser,
    e,
    bias,
    h,
    scale,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores ``[R]`` of the page whose k' are at ``e`` and b' at ``bias``, by selection queries ``[R, D]`` of heads ``h`` ``[R]``."""
    HEADS: tl.constexpr = GROUP_BLOCK if GROUP_BLOCK >= 16 else 16  # of a product
    d = tl.arange(0, BLOCK_D)
    head = tl.arange(0, HEADS)
    mean = tl.load(
        e + head[None, :] * HEAD_DIM + d[:, None],
        mask=(head[None, :] < GROUP) & (d[:, None] < HEAD_DIM),
        other=0.0,
    )
    scores = scale * tl.dot(chooser, mean.to(chooser.dtype), input_precision=PRECISION)
    scores += tl.load(bias + head, mask=head < GROUP, other=0.0)[None, :]
    return tl.sum(tl.where(h[:, None] == head[None, :], scores, 0.0), axis=1)
