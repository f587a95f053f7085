# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the page_table op: writes a static table in place, so that a CUDA graph can hold it."""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

PAGES_PER_STEP = 256
PROGRAMS_PER_ROW = 4


@triton.jit
def _page_table_kernel(
    req_to_token,
    req_pool_indices,
    seq_lens,
    out,
    window_slots,
    window_out,
    stride_tokens,
    stride_out,
    stride_window,
    PAGE_SIZE: tl.constexpr,
    PAGES: tl.constexpr,
    APART: tl.constexpr,
):
    b = tl.program_id(0)
    pages = tl.cdiv(tl.load(seq_lens + b), PAGE_SIZE)
    tokens = req_to_token + tl.load(req_pool_indices + b).to(tl.int64) * stride_tokens
    for lo in range(tl.program_id(1) * PAGES, pages, tl.num_programs(1) * PAGES):
        page = lo + tl.arange(0, PAGES)
        live = page < pages
        slot = tl.load(tokens + page.to(tl.int64) * PAGE_SIZE, mask=live, other=0)
        tl.store(out + b.to(tl.int64) * stride_out + page, slot // PAGE_SIZE, mask=live)
        if APART:
            at = tl.load(window_slots + slot.to(tl.int64), mask=live, other=0)
            window_row = window_out + b.to(tl.int64) * stride_window
            tl.store(window_row + page, (at // PAGE_SIZE).to(tl.int32), mask=live)


def build_page_table(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    page_size: int,
    window_slots: Optional[torch.Tensor] = None,
    window_out: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Physical page of each logical page of the batch, and of layers whose sliding windows have a pool of their own.

    Args:
        req_to_token: slot of each position of each request ``[num_requests, context]`` int32.
        req_pool_indices: the batch's requests ``[B]``.
        seq_lens: ``[B]``, any integer dtype.
        out: ``[B, max_pages]`` int32; columns past a sequence's pages are left alone.
        page_size: slots per page.
        window_slots: slot in that pool of each slot ``[num_slots]`` int64; None without one.
        window_out: as ``out``, of that pool.

    Returns:
        ``out``.
    """
    _page_table_kernel[(len(req_pool_indices), PROGRAMS_PER_ROW)](
        req_to_token,
        req_pool_indices,
        seq_lens,
        out,
        window_slots,
        window_out,
        req_to_token.stride(0),
        out.stride(0),
        0 if window_out is None else window_out.stride(0),
        PAGE_SIZE=page_size,
        PAGES=PAGES_PER_STEP,
        APART=window_slots is not None,
    )
    return out
