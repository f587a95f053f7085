# SPDX-License-Identifier: Apache-2.0
"""The representation of one page and KV head inside a Triton program: from its keys to what is stored."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa import page_repr
from sglang.srt.layers.attention.hsa.ops.linear_kinds import page_features

LEVELS: tl.constexpr = tl.constexpr(float(page_repr.LEVELS))
SMALLEST_STEP: tl.constexpr = tl.constexpr(page_repr.SMALLEST_STEP)


@triton.jit
def _upper_half(x):
    """Upper 16 bits of the float32 ``x``, rounded to nearest even: the bits of a bfloat16."""
    bits = x.to(tl.uint32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@triton.jit
def _store_bounds(keys, bounds, kept, KEPT: tl.constexpr):
    """Store lowest values and steps of keys ``[P, C]`` float32 at ``bounds`` ``[C]``; returns their codes ``[P, C]`` uint8."""
    low_bits = _upper_half(tl.min(keys, axis=0))
    low = (low_bits << 16).to(tl.float32, bitcast=True)
    step = tl.div_rn(tl.max(keys, axis=0) - low, LEVELS)
    step_bits = _upper_half(tl.maximum(step, SMALLEST_STEP))
    step = (step_bits << 16).to(tl.float32, bitcast=True)
    tl.store(bounds, low_bits.to(tl.uint16), mask=kept)
    tl.store(bounds + KEPT, step_bits.to(tl.uint16), mask=kept)
    shape: tl.constexpr = keys.shape
    code = tl.div_rn(keys - low[None, :], tl.broadcast_to(step[None, :], shape))
    code = tl.floor(code + 0.5)
    return tl.minimum(tl.maximum(code, 0.0), LEVELS).to(tl.uint8)


@triton.jit
def _store_slow_keys(
    keys_ptr,
    target,
    channels,
    k_scale,
    stride_k_slot,
    PAGE_SIZE: tl.constexpr,
    KEPT: tl.constexpr,
):
    """``SlowKeys.represent`` of one page and head, whose first key is at ``keys_ptr``, into the bytes at ``target``."""
    HALF: tl.constexpr = KEPT // 2
    slot = tl.arange(0, PAGE_SIZE)[:, None]
    c = tl.arange(0, HALF)
    row = keys_ptr + slot * stride_k_slot
    bounds = target.to(tl.pointer_type(tl.uint16)) + c
    first = tl.load(row + tl.load(channels + c)[None, :]).to(tl.float32) * k_scale
    code = _store_bounds(first, bounds, c < HALF, KEPT)
    second = tl.load(row + tl.load(channels + HALF + c)[None, :])
    second = second.to(tl.float32) * k_scale
    code |= _store_bounds(second, bounds + HALF, c < HALF, KEPT) << 4
    tl.store(target + 4 * KEPT + slot * HALF + c[None, :], code)


@triton.jit
def _store_linear(
    keys_ptr,
    target,
    k_scale,
    stride_k_slot,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A linear kind's representation of one page and head, whose first key is at ``keys_ptr``, at ``target``."""
    d = tl.arange(0, BLOCK_D)
    in_head = d < HEAD_DIM
    slot = tl.arange(0, PAGE_SIZE)[:, None]
    keys = tl.load(
        keys_ptr + slot * stride_k_slot + d[None, :], mask=in_head[None, :], other=0.0
    )
    first, second = page_features(keys.to(tl.float32) * k_scale, PAGE_SIZE, KIND)
    dtype: tl.constexpr = target.dtype.element_ty
    tl.store(target + d, first.to(dtype), mask=in_head)
    if WIDTH == 2:
        tl.store(target + HEAD_DIM + d, second.to(dtype), mask=in_head)


@triton.jit
def store_representation(
    keys_ptr,
    target,
    channels,
    k_scale,
    stride_k_slot,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
):
    """E of one page and head, whose first key is at ``keys_ptr``, at ``target``. WIDTH is 0 for slow_keys."""
    if WIDTH == 0:
        _store_slow_keys(
            keys_ptr, target, channels, k_scale, stride_k_slot, PAGE_SIZE, KEPT
        )
    else:
        _store_linear(
            keys_ptr, target, k_scale, stride_k_slot, HEAD_DIM, BLOCK_D, PAGE_SIZE, KIND, WIDTH
        )  # fmt: skip
