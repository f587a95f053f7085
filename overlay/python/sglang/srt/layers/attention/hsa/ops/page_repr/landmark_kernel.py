# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the page_repr op for ``prior``: what the queries of landmarks make of their pages' keys."""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.landmark_rows import LandmarkRows
from sglang.srt.layers.attention.hsa.ops.common import (
    REPRS_WRITTEN,
    ROWS_LANDMARK,
    add_count,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache


@triton.jit
def _write_landmark_pages_kernel(
    select_q,
    k_buffer,
    repr_buffer,
    biases,
    stamps,
    page_version,
    landmarks,
    last_tokens,
    out_slots,
    lengths,
    counters,
    scale,
    stride_q_row,
    stride_q_head,
    stride_k_slot,
    stride_k_head,
    stride_repr_page,
    stride_repr_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PLACES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    i = tl.program_id(0)
    g = tl.program_id(1)
    row = tl.load(landmarks + i)
    completes = True
    if lengths is not None:
        completes = tl.load(lengths + row) > 0
    # Where the token was written, and not the page table, which may name another request's page once this one has ended.
    page = tl.load(out_slots + tl.load(last_tokens + i)).to(tl.int64) // SLOTS
    version = tl.load(page_version + page)
    # A page without a version belongs to a later batch: this row's request has ended.
    if completes & (version >= 0):
        offset = tl.arange(0, PLACES)
        d = tl.arange(0, BLOCK_D)
        in_head = d < HEAD_DIM
        key_ptr = k_buffer + (page * SLOTS + offset)[:, None] * stride_k_slot
        keys = tl.load(
            key_ptr + g * stride_k_head + d[None, :],
            mask=(offset < SLOTS)[:, None] & in_head[None, :],
            other=0.0,
        ).to(tl.float32)
        dtype: tl.constexpr = repr_buffer.dtype.element_ty
        query_ptr = select_q + row * stride_q_row + g * GROUP * stride_q_head
        for h in range(GROUP):
            query = tl.load(query_ptr + h * stride_q_head + d, mask=in_head, other=0.0)
            logits = scale * tl.sum(keys * query.to(tl.float32)[None, :], axis=1)
            logits = tl.where(offset < SLOTS, logits, float("-inf"))
            top = tl.max(logits, axis=0)
            lse = top + tl.log(tl.sum(tl.exp(logits - top), axis=0))
            share = tl.exp(logits - lse)
            entropy = tl.sum(tl.where(offset < SLOTS, share * (lse - logits), 0.0))
            mean = tl.sum(keys * share[:, None], axis=0)
            target = repr_buffer + page * stride_repr_page + g * stride_repr_head
            tl.store(target + h * HEAD_DIM + d, mean.to(dtype), mask=in_head)
            tl.store(biases + (page * KV_HEADS + g) * GROUP + h, entropy)
        if g == 0:
            tl.store(stamps + page, version)
            one = tl.full((), 1, tl.int64)
            add_count(counters + REPRS_WRITTEN, one)
            add_count(counters + ROWS_LANDMARK, one)


def write_landmark_pages(
    select_q: torch.Tensor,
    cache: LayerCache,
    rows: LandmarkRows,
    out_slots: torch.Tensor,
    counters: torch.Tensor,
    params: AttentionParams,
    lengths: Optional[torch.Tensor] = None,
) -> None:
    """Represent one layer's pages that a pass completes.

    Args:
        select_q: queries that choose pages, of all rows ``[T, H_q, D]``, last dimension contiguous.
        cache: of the layer, versions included; the keys of the pass are written.
        rows: of the pass.
        out_slots: where it writes its tokens' keys ``[tokens]``.
        counters: ``HSACounters.values``, added to.
        lengths: places that each row sees ``[T]`` int32, of a pass with a landmark's row for each sequence: those with 0
            have no page. None if all rows have one.
    """
    if len(rows.landmarks) == 0:
        return
    keys, reprs = cache.keys, cache.reprs
    num_kv_heads, head_dim = keys.shape[1:]
    _write_landmark_pages_kernel[(len(rows.landmarks), num_kv_heads)](
        select_q,
        keys,
        reprs,
        cache.biases,
        cache.stamps,
        cache.versions,
        rows.landmarks,
        rows.last_tokens,
        out_slots,
        lengths,
        counters,
        params.sm_scale,
        select_q.stride(0),
        select_q.stride(1),
        keys.stride(0),
        keys.stride(1),
        reprs.stride(0),
        reprs.stride(1),
        KV_HEADS=num_kv_heads,
        GROUP=select_q.shape[1] // num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        PLACES=params.page_size,
        SLOTS=params.slots_per_page,
    )
