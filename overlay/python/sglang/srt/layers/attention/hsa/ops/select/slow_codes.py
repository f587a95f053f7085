# SPDX-License-Identifier: Apache-2.0
"""Reading slow_keys inside a Triton program: codes back to keys, and the channels of queries that meet them.

A byte holds the codes of two channels, one of either half of the kept ones, so keys come as two tiles. Lowest values and
steps are read as integers, the bits of a bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Four bytes to four keys of either half, two bfloat16 in a register: 0x4300 with a code in its low bits is 128 + code.
UNPACK: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, t, magic, one, less;
    mov.b32 magic, 0x43004300;
    mov.b32 one, 0x3F803F80;
    mov.b32 less, 0xC300C300;
    prmt.b32 a, $4, 0, 0x4140;
    prmt.b32 b, $4, 0, 0x4342;
    and.b32 t, a, 0x000F000F;
    or.b32 t, t, magic;
    fma.rn.bf16x2 t, t, one, less;
    fma.rn.bf16x2 $0, t, $7, $5;
    and.b32 t, b, 0x000F000F;
    or.b32 t, t, magic;
    fma.rn.bf16x2 t, t, one, less;
    fma.rn.bf16x2 $1, t, $8, $6;
    shr.b32 a, a, 4;
    and.b32 t, a, 0x000F000F;
    or.b32 t, t, magic;
    fma.rn.bf16x2 t, t, one, less;
    fma.rn.bf16x2 $2, t, $11, $9;
    shr.b32 b, b, 4;
    and.b32 t, b, 0x000F000F;
    or.b32 t, t, magic;
    fma.rn.bf16x2 t, t, one, less;
    fma.rn.bf16x2 $3, t, $12, $10;
    }"""
)


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
def _load_bounds(page_ptr, c, mask, HALF: tl.constexpr):
    """Bits of lowest value and step of channels ``c`` of the first half, then of the second: four tiles."""
    at = page_ptr.to(tl.pointer_type(tl.uint16)) + c
    return (
        tl.load(at, mask=mask, other=0),
        tl.load(at + 2 * HALF, mask=mask, other=0),
        tl.load(at + HALF, mask=mask, other=0),
        tl.load(at + 3 * HALF, mask=mask, other=0),
    )


@triton.jit
def _as_float(bits):
    return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def unpack(packed, low, step, low_2, step_2, DTYPE: tl.constexpr):
    """Keys of both halves in DTYPE from their codes; the bits of lowest values and steps broadcast to the codes."""
    if DTYPE == tl.bfloat16:
        key, key_2 = tl.inline_asm_elementwise(
            UNPACK,
            "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r",
            [
                packed,
                low.to(tl.bfloat16, bitcast=True),
                step.to(tl.bfloat16, bitcast=True),
                low_2.to(tl.bfloat16, bitcast=True),
                step_2.to(tl.bfloat16, bitcast=True),
            ],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        key = _as_float(low) + _as_float(step) * (packed & 15).to(tl.float32)
        key_2 = _as_float(low_2) + _as_float(step_2) * (packed >> 4).to(tl.float32)
        key, key_2 = key.to(DTYPE), key_2.to(DTYPE)
    return key, key_2


@triton.jit
def load_page(
    page_ptr, PAGE_SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr
):
    """Codes ``[PAGE_SIZE, BLOCK_HALF]`` of the page and KV head at ``page_ptr``, and ``_load_bounds`` ``[1, BLOCK_HALF]``."""
    c = tl.arange(0, BLOCK_HALF)[None, :]
    slot = tl.arange(0, PAGE_SIZE)[:, None]
    packed = tl.load(page_ptr + 8 * HALF + slot * HALF + c, mask=c < HALF, other=0)
    low, step, low_2, step_2 = _load_bounds(page_ptr, c, c < HALF, HALF)
    return packed, low, step, low_2, step_2
