# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the page_repr op for ``prior``: what the queries of landmarks make of their pages' keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.landmark_rows import LandmarkRows
from sglang.srt.layers.attention.hsa.ops.common import REPRS_WRITTEN, ROWS_LANDMARK
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache


@triton.jit
def represent_landmark_page(
    query_ptr,
    page,
    g,
    k_buffer,
    repr_buffer,
    biases,
    stamps,
    page_version,
    counters,
    scale,
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
    """Write k' and b' of one page and KV head, by the landmark's queries at ``query_ptr``, and count them.

    A page without a version belongs to a later batch: the row's request has ended, and nothing is written.
    """
    version = tl.load(page_version + page)
    if version >= 0:
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
            tl.atomic_add(counters + REPRS_WRITTEN, one)
            tl.atomic_add(counters + ROWS_LANDMARK, one)


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
    page = tl.load(out_slots + tl.load(last_tokens + i)).to(tl.int64) // SLOTS
    represent_landmark_page(
        select_q + row * stride_q_row + g * GROUP * stride_q_head, page, g,
        k_buffer, repr_buffer, biases, stamps, page_version, counters, scale,
        stride_q_head, stride_k_slot, stride_k_head, stride_repr_page, stride_repr_head,
        KV_HEADS, GROUP, HEAD_DIM, BLOCK_D, PLACES, SLOTS,
    )  # fmt: skip


def write_landmark_pages(
    select_q: torch.Tensor,
    cache: LayerCache,
    rows: LandmarkRows,
    out_slots: torch.Tensor,
    counters: torch.Tensor,
    params: AttentionParams,
) -> None:
    """Represent one layer's pages that an extend pass completes; decode does so while it selects (``prior_decode``).

    Args:
        select_q: queries that choose pages, of all rows ``[T, H_q, D]``, last dimension contiguous.
        cache: of the layer, versions included; the keys of the pass are written.
        rows: of the pass.
        out_slots: where it writes its tokens' keys ``[tokens]``.
        counters: ``HSACounters.values``, added to.
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
