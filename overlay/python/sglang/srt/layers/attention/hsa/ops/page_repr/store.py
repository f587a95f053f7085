# SPDX-License-Identifier: Apache-2.0
"""Representations of one page inside a Triton program: from its keys to what is stored."""

from __future__ import annotations

import triton
import triton.language as tl
from packaging.version import Version

from sglang.srt.layers.attention.hsa import page_repr
from sglang.srt.layers.attention.hsa.ops.linear_kinds import page_features

LEVELS: tl.constexpr = tl.constexpr(float(page_repr.LEVELS))
SMALLEST_STEP: tl.constexpr = tl.constexpr(page_repr.SMALLEST_STEP)
MOST_COLUMNS = 32  # of a tile, unless a head has more: pairs of a head and a channel
# Dimensions of a tile of slow_keys. Where addresses follow each other in neither, Triton lays a warp along the first
# dimension up to 3.6, along the last in 3.8. So a thread has some slots of a channel, and few lanes share its bounds.
COLUMNS: tl.constexpr = tl.constexpr(int(Version(triton.__version__) >= Version("3.7")))
SLOTS: tl.constexpr = tl.constexpr(1 - COLUMNS.value)


def heads_at_once(kv_heads: int, kept: int) -> int:
    """Heads of one tile of slow_keys that keeps so many channels: a power of two."""
    return min(triton.next_power_of_2(kv_heads), max(2 * MOST_COLUMNS // kept, 1))


@triton.jit
def _upper_half(x):
    """Upper 16 bits of the float32 ``x``, rounded to nearest even: the bits of a bfloat16."""
    bits = x.to(tl.uint32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@triton.jit
def _store_bounds(keys, bounds, inside, KEPT: tl.constexpr):
    """Store lowest values and steps of a tile of keys, float32, at ``bounds`` ``[C]``; returns their codes, uint8."""
    low_bits = _upper_half(tl.min(keys, axis=SLOTS))
    low = (low_bits << 16).to(tl.float32, bitcast=True)
    step = tl.div_rn(tl.max(keys, axis=SLOTS) - low, LEVELS)
    step_bits = _upper_half(tl.maximum(step, SMALLEST_STEP))
    step = (step_bits << 16).to(tl.float32, bitcast=True)
    tl.store(bounds, low_bits.to(tl.uint16), mask=inside)
    tl.store(bounds + KEPT, step_bits.to(tl.uint16), mask=inside)
    # A division for each key would cost most of the kernel; the products below are exact.
    above = keys - tl.expand_dims(low, SLOTS)
    step = tl.expand_dims(step, SLOTS)
    code = tl.floor(above * tl.div_rn(1.0, step) + 0.5)
    code += (above >= (code + 0.5) * step).to(tl.float32)
    code -= (above < (code - 0.5) * step).to(tl.float32)
    return tl.minimum(tl.maximum(code, 0.0), LEVELS).to(tl.uint8)


@triton.jit
def _store_slow_keys(
    keys_ptr,
    target,
    channels,
    k_scale,
    stride_k_slot,
    stride_k_head,
    stride_repr_head,
    PAGE_SIZE: tl.constexpr,
    KEPT: tl.constexpr,
    HEADS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """``SlowKeys.represent`` of the heads from that at ``keys_ptr``, into the bytes at ``target``; AT_ONCE in a tile."""
    HALF: tl.constexpr = KEPT // 2
    slot = tl.expand_dims(tl.arange(0, PAGE_SIZE), COLUMNS)
    # Without the hint a thread would take the neighbouring channels that it could store at once.
    column = tl.max_contiguous(tl.arange(0, AT_ONCE * HALF), 1)
    c = column % HALF
    for lo in range(0, HEADS, AT_ONCE):
        head = lo + column // HALF
        inside = head < HEADS
        mask = tl.expand_dims(inside, SLOTS)
        keys = keys_ptr + head * stride_k_head
        bytes_ptr = target + head * stride_repr_head
        bounds = bytes_ptr.to(tl.pointer_type(tl.uint16)) + c
        first = tl.expand_dims(keys + tl.load(channels + c), SLOTS)
        first = tl.load(first + slot * stride_k_slot, mask=mask, other=0.0)
        code = _store_bounds(first.to(tl.float32) * k_scale, bounds, inside, KEPT)
        second = tl.expand_dims(keys + tl.load(channels + HALF + c), SLOTS)
        second = tl.load(second + slot * stride_k_slot, mask=mask, other=0.0)
        second = second.to(tl.float32) * k_scale
        code |= _store_bounds(second, bounds + HALF, inside, KEPT) << 4
        codes = tl.expand_dims(bytes_ptr + 4 * KEPT + c, SLOTS) + slot * HALF
        tl.store(codes, code, mask=mask)


@triton.jit
def _store_linear(
    keys_ptr,
    target,
    k_scale,
    stride_k_slot,
    stride_k_head,
    stride_repr_head,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
):
    """A linear kind's representations of the heads from that at ``keys_ptr``, at ``target``; one after the other."""
    d = tl.arange(0, BLOCK_D)
    in_head = d < HEAD_DIM
    slot = tl.arange(0, PAGE_SIZE)[:, None]
    dtype: tl.constexpr = target.dtype.element_ty
    for head in range(HEADS):
        keys = keys_ptr + head * stride_k_head + slot * stride_k_slot + d[None, :]
        keys = tl.load(keys, mask=in_head[None, :], other=0.0).to(tl.float32)
        first, second = page_features(keys * k_scale, PAGE_SIZE, KIND)
        e = target + head * stride_repr_head + d
        tl.store(e, first.to(dtype), mask=in_head)
        if WIDTH == 2:
            tl.store(e + HEAD_DIM, second.to(dtype), mask=in_head)


@triton.jit
def store_representations(
    keys_ptr,
    target,
    channels,
    k_scale,
    stride_k_slot,
    stride_k_head,
    stride_repr_head,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
    HEADS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """E of so many KV heads of one page, the first of which has its first key at ``keys_ptr`` and its E at ``target``.

    WIDTH is 0 for slow_keys, which takes AT_ONCE heads at a time.
    """
    if WIDTH == 0:
        _store_slow_keys(
            keys_ptr, target, channels, k_scale, stride_k_slot, stride_k_head, stride_repr_head, PAGE_SIZE, KEPT, HEADS,
            AT_ONCE,
        )  # fmt: skip
    else:
        _store_linear(
            keys_ptr, target, k_scale, stride_k_slot, stride_k_head, stride_repr_head, HEAD_DIM, BLOCK_D, PAGE_SIZE, KIND,
            WIDTH, HEADS,
        )  # fmt: skip
