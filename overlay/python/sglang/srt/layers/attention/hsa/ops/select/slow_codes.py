# SPDX-License-Identifier: Apache-2.0
"""Reading slow_keys inside a Triton program: codes back to keys, and the channels of queries that meet them.

A byte holds the codes of two channels, one of either half of the kept ones, so keys come as two tiles. Lowest values and
steps are read as integers, the bits of a bfloat16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# bfloat16 with a code in its low bits is code * 2^-133, with a code four bits higher code * 2^-129: numbers without an offset
# to subtract. So keys are made 2^-33 times as large, and by powers of two, which round nothing.
SCALE_BACK = {torch.bfloat16: 2.0**33}
# Lowest values times 2^-33, steps of the first half times 2^100 and of the second times 2^96; -0 adds nothing.
SCALE: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, factor, none;
    mov.b32 none, 0x80008000;
    mov.b32 factor, 0x2F002F00;
    mov.b64 {a, b}, $4;
    fma.rn.bf16x2 a, a, factor, none;
    fma.rn.bf16x2 b, b, factor, none;
    mov.b64 $0, {a, b};
    mov.b64 {a, b}, $6;
    fma.rn.bf16x2 a, a, factor, none;
    fma.rn.bf16x2 b, b, factor, none;
    mov.b64 $2, {a, b};
    mov.b32 factor, 0x71807180;
    mov.b64 {a, b}, $5;
    fma.rn.bf16x2 a, a, factor, none;
    fma.rn.bf16x2 b, b, factor, none;
    mov.b64 $1, {a, b};
    mov.b32 factor, 0x6F806F80;
    mov.b64 {a, b}, $7;
    fma.rn.bf16x2 a, a, factor, none;
    fma.rn.bf16x2 b, b, factor, none;
    mov.b64 $3, {a, b};
    }"""
)
# A word of codes to eight keys, two bfloat16 in a register.
UNPACK: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, t, first, second, low, low_b, step, step_b;
    mov.b32 first, 0x000F000F;
    mov.b32 second, 0x00F000F0;
    prmt.b32 a, $8, 0, 0x4140;
    prmt.b32 b, $8, 0, 0x4342;
    mov.b64 {low, low_b}, $9;
    mov.b64 {step, step_b}, $10;
    and.b32 t, a, first;
    fma.rn.bf16x2 t, t, step, low;
    mov.b32 {$0, $1}, t;
    and.b32 t, b, first;
    fma.rn.bf16x2 t, t, step_b, low_b;
    mov.b32 {$2, $3}, t;
    mov.b64 {low, low_b}, $11;
    mov.b64 {step, step_b}, $12;
    and.b32 t, a, second;
    fma.rn.bf16x2 t, t, step, low;
    mov.b32 {$4, $5}, t;
    and.b32 t, b, second;
    fma.rn.bf16x2 t, t, step_b, low_b;
    mov.b32 {$6, $7}, t;
    }"""
)


def scale_back(dtype: torch.dtype) -> float:
    """What products with keys that ``unpack`` made in this dtype are multiplied by."""
    return SCALE_BACK.get(dtype, 1.0)


@triton.jit
def load_halves(q_ptr, channels, mask, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
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
def load_kept(q_ptr, channels, mask, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Both tiles of ``load_halves`` side by side: ``[R, 2 * BLOCK_HALF]``."""
    c = tl.arange(0, 2 * BLOCK_HALF)
    within = c % BLOCK_HALF
    kept = within < HALF
    channel = tl.load(channels + c // BLOCK_HALF * HALF + within, mask=kept, other=0)
    inside = mask[:, None] & kept[None, :]
    return tl.load(q_ptr[:, None] + channel[None, :], mask=inside, other=0.0)


@triton.jit
def load_page(
    page_ptr, PAGE_SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr
):
    """What ``unpack`` takes of the page and KV head at ``page_ptr``.

    Words of codes ``[PAGE_SIZE, BLOCK_HALF / 4]``, each of four channels of either half, then lowest values and steps of
    these channels of the first half, and of the second: four ``[1, BLOCK_HALF / 4]`` of 64 bits.
    """
    w = tl.arange(0, BLOCK_HALF // 4)[None, :]
    slot = tl.arange(0, PAGE_SIZE)[:, None]
    kept = w < HALF // 4
    words = page_ptr.to(tl.pointer_type(tl.uint32)) + 2 * HALF
    codes = tl.load(words + slot * (HALF // 4) + w, mask=kept, other=0)
    fours = page_ptr.to(tl.pointer_type(tl.uint64)) + w
    return (
        codes,
        tl.load(fours, mask=kept, other=0),
        tl.load(fours + HALF // 2, mask=kept, other=0),
        tl.load(fours + HALF // 4, mask=kept, other=0),
        tl.load(fours + 3 * (HALF // 4), mask=kept, other=0),
    )


@triton.jit
def _key(codes, low, step, N: tl.constexpr, SHIFT: tl.constexpr, DTYPE: tl.constexpr):
    """Keys of the codes at bit SHIFT, whose lowest values and steps are the N-th of four."""
    low = ((low >> (16 * N)).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    step = ((step >> (16 * N)).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return (low + step * ((codes >> SHIFT) & 15).to(tl.float32)).to(DTYPE)


@triton.jit
def _side_by_side(a, b, c, d):
    """Columns of four tiles ``[P, W]`` in turns: ``[P, 4 * W]``."""
    tile = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(tile, (a.shape[0], 4 * a.shape[1]))


@triton.jit
def unpack(codes, low, step, low_2, step_2, DTYPE: tl.constexpr):
    """Keys ``[PAGE_SIZE, BLOCK_HALF]`` of either half in DTYPE from what ``load_page`` returns, to be scaled by ``scale_back``."""
    if DTYPE == tl.bfloat16:
        low, step, low_2, step_2 = tl.inline_asm_elementwise(
            SCALE,
            "=l,=l,=l,=l,l,l,l,l",
            [low, step, low_2, step_2],
            dtype=(tl.uint64,) * 4,
            is_pure=True,
            pack=1,
        )
        a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
            UNPACK,
            "=h,=h,=h,=h,=h,=h,=h,=h,r,l,l,l,l",
            [codes, low, step, low_2, step_2],
            dtype=(tl.bfloat16,) * 8,
            is_pure=True,
            pack=1,
        )
    else:
        a = _key(codes, low, step, 0, 0, DTYPE)
        b = _key(codes, low, step, 1, 8, DTYPE)
        c = _key(codes, low, step, 2, 16, DTYPE)
        d = _key(codes, low, step, 3, 24, DTYPE)
        e = _key(codes, low_2, step_2, 0, 4, DTYPE)
        f = _key(codes, low_2, step_2, 1, 12, DTYPE)
        g = _key(codes, low_2, step_2, 2, 20, DTYPE)
        h = _key(codes, low_2, step_2, 3, 28, DTYPE)
    return _side_by_side(a, b, c, d), _side_by_side(e, f, g, h)
