# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the norms and rotary embeddings of ``hils_ops``: the same values, rounded in the same places.

No product is contracted with a sum (``enable_fp_fusion``), since torch rounds both. Rows do not depend on each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Tuple

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from sglang.srt.layers.hils_ops import HeadRows, Rotary


@triton.jit
def _round(x, DTYPE: tl.constexpr):
    """float32 values with the precision of a dtype."""
    return x.to(DTYPE).to(tl.float32)


@triton.jit
def _load(x, mask):
    return tl.load(x, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_heads(x, stride_row, added, stride_added, row, offsets, mask):
    values = _load(x + row * stride_row + offsets, mask)
    if added is not None:
        more = _load(added + row * stride_added + offsets, mask)
        values = _round(values + more, x.dtype.element_ty)
    return values


@triton.jit
def _norm_rotate_heads(
    x,
    stride_row,
    added,
    stride_added,
    weight,
    eps,
    out,
    positions,
    cos,
    sin,
    IN_FLOAT32: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    PAIRS: tl.constexpr = HEAD_DIM // 2
    head = tl.arange(0, BLOCK_H)[:, None]
    pair = tl.arange(0, BLOCK_PAIRS)[None, :]
    mask = (head < HEADS) & (pair < PAIRS)
    dtype: tl.constexpr = x.dtype.element_ty
    lower = head * HEAD_DIM + pair
    upper = lower + PAIRS
    first = _load_heads(x, stride_row, added, stride_added, row, lower, mask)
    second = _load_heads(x, stride_row, added, stride_added, row, upper, mask)

    squares = tl.sum(first * first + second * second, axis=1)
    if ALL_HEADS:
        scale = tl.rsqrt(tl.sum(squares, axis=0) / (HEADS * HEAD_DIM) + eps)
        first_weight, second_weight = _load(weight + lower, mask), _load(weight + upper, mask)  # fmt: skip
    else:
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        first_weight = _load(weight + pair, pair < PAIRS)
        second_weight = _load(weight + pair + PAIRS, pair < PAIRS)
    first = _round(_round(first * scale, dtype) * first_weight, dtype)
    second = _round(_round(second * scale, dtype) * second_weight, dtype)

    if cos is not None:
        turn: tl.constexpr = tl.float32 if IN_FLOAT32 else cos.dtype.element_ty
        angle = tl.load(positions + row).to(tl.int64) * PAIRS + pair
        cosine, sine = _load(cos + angle, pair < PAIRS), _load(sin + angle, pair < PAIRS)  # fmt: skip
        turned = _round(first * cosine, turn) - _round(second * sine, turn)
        second = _round(second * cosine, turn) + _round(first * sine, turn)
        first = turned
    out += row * (HEADS * HEAD_DIM)
    tl.store(out + lower, first.to(dtype), mask=mask)
    tl.store(out + upper, second.to(dtype), mask=mask)


@triton.jit
def _norm_rotary_kernel(
    q,
    stride_q,
    q_weight,
    q_eps,
    q_out,
    k,
    stride_k,
    k_weight,
    k_eps,
    k_out,
    select_q,
    stride_select_q,
    select_weight,
    select_eps,
    select_out,
    added,
    stride_added,
    positions,
    cos,
    sin,
    Q_ALL_HEADS: tl.constexpr,
    K_ALL_HEADS: tl.constexpr,
    SELECT_ALL_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    part = tl.program_id(1)
    if part == 0:
        _norm_rotate_heads(
            q, stride_q, None, 0, q_weight, q_eps, q_out, positions, cos, sin,
            False, Q_ALL_HEADS, HEADS, HEAD_DIM, BLOCK_H, BLOCK_PAIRS,
        )  # fmt: skip
    elif part == 1:
        _norm_rotate_heads(
            k, stride_k, None, 0, k_weight, k_eps, k_out, positions, cos, sin,
            False, K_ALL_HEADS, KV_HEADS, HEAD_DIM, BLOCK_KV, BLOCK_PAIRS,
        )  # fmt: skip
    else:
        if select_q is not None:
            _norm_rotate_heads(
                select_q, stride_select_q, added, stride_added, select_weight, select_eps, select_out,
                positions, cos, sin, True, SELECT_ALL_HEADS, HEADS, HEAD_DIM, BLOCK_H, BLOCK_PAIRS,
            )  # fmt: skip


def norm_rotary(
    q: HeadRows,
    k: HeadRows,
    select_q: Optional[HeadRows],
    rotary: Optional[Rotary],
    positions: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
    """``hils_ops.norm_rotary`` in one launch, for norms whose heads this rank has all.

    Args:
        q, k, select_q: of one dtype, also their weights; the heads of a row, and what is added, are contiguous.
        positions: ``[T]`` int32 or int64.

    Returns:
        (q, k, select_q) ``[T, H, D]``, contiguous.
    """
    rows, heads, head_dim = q.x.shape
    kv_heads = k.x.shape[1]
    parts = [q, k] if select_q is None else [q, k, select_q]
    outputs = [part.x.new_empty(part.x.shape) for part in parts]
    arguments = [
        argument
        for part, out in zip(parts, outputs)
        for argument in (part.x, part.x.stride(0), part.norm.weight, part.norm.eps, out)
    ]
    added = None
    if select_q is None:
        arguments += [None, 0, None, 0.0, None]
        outputs.append(None)
    else:
        added = select_q.added
    block_h = triton.next_power_of_2(heads)
    block_pairs = triton.next_power_of_2(head_dim // 2)
    _norm_rotary_kernel[(rows, len(parts))](
        *arguments,
        added,
        0 if added is None else added.stride(0),
        positions,
        None if rotary is None else rotary.cos,
        None if rotary is None else rotary.sin,
        Q_ALL_HEADS=q.norm.all_heads,
        K_ALL_HEADS=k.norm.all_heads,
        SELECT_ALL_HEADS=select_q is not None and select_q.norm.all_heads,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_H=block_h,
        BLOCK_KV=triton.next_power_of_2(kv_heads),
        BLOCK_PAIRS=block_pairs,
        num_warps=_num_warps(2 * block_h * block_pairs),
        enable_fp_fusion=False,
    )
    return tuple(outputs)


@triton.jit
def _norm_kernel(
    x,
    stride_x,
    residual,
    stride_residual,
    weight,
    eps,
    out,
    total,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """With ``total`` the residual is added before the norm and the sum written there, else after it."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    dtype: tl.constexpr = x.dtype.element_ty
    values = _load(x + row * stride_x + column, mask)
    if total is not None:
        more = _load(residual + row * stride_residual + column, mask)
        values = _round(values + more, dtype)
        tl.store(total + row * WIDTH + column, values.to(dtype), mask=mask)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    values = _round(_round(values * scale, dtype) * _load(weight + column, mask), dtype)
    if residual is not None:
        if total is None:
            values += _load(residual + row * stride_residual + column, mask)
    tl.store(out + row * WIDTH + column, values.to(dtype), mask=mask)


def norm(
    x: torch.Tensor, residual: Optional[torch.Tensor], weight: torch.Tensor, eps: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """(norm of x, x) ``[T, hidden_size]``; with a residual (norm of their sum, their sum)."""
    total = None if residual is None else x.new_empty(x.shape)
    return _norm(x, residual, weight, eps, total), x if total is None else total


def norm_add(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """The residual and the norm of x, added ``[T, hidden_size]``."""
    return _norm(x, residual, weight, eps, None)


def _norm(
    x: torch.Tensor,
    residual: Optional[torch.Tensor],
    weight: torch.Tensor,
    eps: float,
    total: Optional[torch.Tensor],
) -> torch.Tensor:
    rows, width = x.shape
    out = x.new_empty(x.shape)
    block = triton.next_power_of_2(width)
    _norm_kernel[(rows,)](
        x,
        x.stride(0),
        residual,
        0 if residual is None else residual.stride(0),
        weight,
        eps,
        out,
        total,
        WIDTH=width,
        BLOCK=block,
        num_warps=_num_warps(block),
        enable_fp_fusion=False,
    )
    return out


def _num_warps(elements: int) -> int:
    """Of a program with so many: each thread loads 16 bytes of half precision at once."""
    return min(16, max(1, elements // 256))
