# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the page_repr op: page representations and their version stamps, predicated on the device."""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence, Union

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    REPRS_HEALED,
    REPRS_WRITTEN,
    add_count,
)
from sglang.srt.layers.attention.hsa.ops.page_repr.store import (
    heads_at_once,
    store_representations,
)
from sglang.srt.layers.attention.hsa.page_repr import num_channels
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

PAGES_PER_SEARCH = 64
# Of a thread with slow_keys. Most programs find nothing to represent, and more of them fit on a multiprocessor.
SEARCH_REGISTERS = 128
LEAST_SEARCHERS = 4  # programs that share the search of a sequence and layer


@triton.jit
def _slots_in(page, slots, num_slots, PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """How many of ``slots`` ``[num_slots]`` lie in the page."""
    found = tl.zeros((BLOCK,), tl.int32)
    for lo in range(0, num_slots, BLOCK):
        n = lo + tl.arange(0, BLOCK)
        slot = tl.load(slots + n, mask=n < num_slots, other=0)
        found += (slot // PAGE_SIZE == page).to(tl.int32)
    return tl.sum(found)


@triton.jit(do_not_specialize=["num_slots"])
def _write_committed_pages_kernel(
    k_ptrs,
    repr_ptrs,
    stamp_ptrs,
    page_version,
    req_to_token,
    req_pool_indices,
    seq_lens,
    new_lens,
    out_slots,
    k_scales,
    channels,
    counters,
    num_slots,
    stride_k_slot,
    stride_k_head,
    stride_repr_page,
    stride_repr_head,
    stride_tokens,
    K_DTYPE: tl.constexpr,
    REPR_DTYPE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
    AT_ONCE: tl.constexpr,
    NEW: tl.constexpr,
    RECENT: tl.constexpr,
    PAGES: tl.constexpr,
):
    b = tl.program_id(0)
    g = tl.program_id(1)
    layer = tl.program_id(2)
    # Tokens whose keys earlier passes wrote.
    committed = tl.load(seq_lens + b).to(tl.int64)
    if NEW is None:
        committed -= tl.load(new_lens + b)
    else:
        committed -= NEW
    pages = tl.maximum(committed, 0) // PAGE_SIZE
    if pages > 0:
        row = tl.load(req_pool_indices + b).to(tl.int64)
        tokens = req_to_token + row * stride_tokens
        k = tl.load(k_ptrs + layer).to(tl.pointer_type(K_DTYPE))
        e = tl.load(repr_ptrs + layer).to(tl.pointer_type(REPR_DTYPE))
        stamps = tl.load(stamp_ptrs + layer).to(tl.pointer_type(tl.int64))
        k_scale = tl.load(k_scales + layer)
        layer_channels = channels
        if WIDTH == 0:
            layer_channels += layer * KEPT

        # The page that the previous pass completed: a program for each of its heads.
        recent = pages - 1
        if committed % PAGE_SIZE < RECENT:
            page = tl.load(tokens + recent * PAGE_SIZE).to(tl.int64) // PAGE_SIZE
            version = tl.load(page_version + page)
            # A page without a version belongs to a later batch: this row's request has ended. One that another row
            # still writes, whose request the scheduler has ended, gets its last key in this pass.
            complete = (version >= 0) & (g < KV_HEADS)
            if complete:
                new_keys = _slots_in(page, out_slots, num_slots, PAGE_SIZE, PAGES)
                complete = new_keys == 0
            if complete:
                store_representations(
                    k + page * PAGE_SIZE * stride_k_slot + g * stride_k_head,
                    e + page * stride_repr_page + g * stride_repr_head,
                    layer_channels, k_scale, stride_k_slot, stride_k_head, stride_repr_head,
                    HEAD_DIM, BLOCK_D, PAGE_SIZE, KIND, WIDTH, KEPT, 1, 1,
                )  # fmt: skip
                # Written once more while the page is recent, and by every sequence that shares it: the same bytes,
                # one count.
                if g == 0:
                    if tl.atomic_xchg(stamps + page, version) != version:
                        add_count(counters + REPRS_WRITTEN, tl.full((), 1, tl.int64))
        else:
            recent = pages

        # The other pages have a representation, but for one that a request filled in its last pass before this one
        # found it in the radix tree, and those whose keys came from elsewhere. The programs share the search.
        n = tl.arange(0, PAGES)
        for lo in range(g * PAGES, recent, tl.num_programs(1) * PAGES):
            index = lo + n
            inside = index < recent
            page = tl.load(
                tokens + index.to(tl.int64) * PAGE_SIZE, mask=inside, other=0
            )
            page = page.to(tl.int64) // PAGE_SIZE
            version = tl.load(page_version + page, mask=inside, other=-1)
            stamp = tl.load(stamps + page, mask=inside, other=-1)
            missing = (stamp != version) & (version >= 0)
            lane = tl.max(tl.where(missing, n, -1))
            while lane >= 0:
                lost = tl.sum(tl.where(n == lane, page, 0))
                current = tl.sum(tl.where(n == lane, version, 0))
                if _slots_in(lost, out_slots, num_slots, PAGE_SIZE, PAGES) == 0:
                    store_representations(
                        k + lost * PAGE_SIZE * stride_k_slot, e + lost * stride_repr_page,
                        layer_channels, k_scale, stride_k_slot, stride_k_head, stride_repr_head,
                        HEAD_DIM, BLOCK_D, PAGE_SIZE, KIND, WIDTH, KEPT, KV_HEADS, AT_ONCE,
                    )  # fmt: skip
                    if tl.atomic_xchg(stamps + lost, current) != current:
                        one = tl.full((), 1, tl.int64)
                        add_count(counters + REPRS_HEALED, one)
                missing = missing & (n != lane)
                lane = tl.max(tl.where(missing, n, -1))


@triton.jit
def _write_pages_kernel(
    k_buffer,
    repr_buffer,
    stamps,
    page_version,
    page_table,
    pages,
    counters,
    channels,
    k_scale,
    stride_k_slot,
    stride_k_head,
    stride_repr_page,
    stride_repr_head,
    stride_table,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    entry = pages + tl.program_id(0) * 3
    b = tl.load(entry).to(tl.int64)
    page = tl.load(page_table + b * stride_table + tl.load(entry + 1)).to(tl.int64)
    completed_now = tl.load(entry + 2) != 0
    version = tl.load(page_version + page)
    # Programs of other sequences that share the page may stamp it meanwhile. An atomic is asked by one thread, so that all
    # warps take the same branch; each of them would load for itself.
    stamp = tl.atomic_add(stamps + page, tl.full((), 0, tl.int64))
    # A page without a version belongs to a later batch: this row's request has ended.
    if (version >= 0) & (completed_now | (stamp != version)):
        store_representations(
            k_buffer + page * PAGE_SIZE * stride_k_slot, repr_buffer + page * stride_repr_page,
            channels, k_scale, stride_k_slot, stride_k_head, stride_repr_head,
            HEAD_DIM, BLOCK_D, PAGE_SIZE, KIND, WIDTH, KEPT, KV_HEADS, AT_ONCE,
        )  # fmt: skip
        # Sequences that share the page write the same bytes; the first to stamp it counts it.
        if tl.atomic_xchg(stamps + page, version) != version:
            add_count(
                counters + tl.where(completed_now, REPRS_WRITTEN, REPRS_HEALED),
                tl.full((), 1, tl.int64),
            )


TL_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
    torch.uint8: tl.uint8,
}


def addresses_of(
    tensors: Sequence[torch.Tensor], device: Union[torch.device, str]
) -> torch.Tensor:
    """Addresses of tensors ``[L]`` uint64, for a kernel on ``device``."""
    addresses = [t.data_ptr() for t in tensors]
    return torch.tensor(addresses, dtype=torch.uint64, device=device)


class AllLayers(NamedTuple):
    """The caches of all HSA layers of a model, for one launch over them.

    Attributes:
        keys, reprs, stamps: ``addresses_of`` each layer's tensors.
        k_scales: dequantisation factor of each layer's keys ``[L]`` float32.
        channels: that a kind which keeps some of them takes of each layer ``[L, R]`` int32, or None.
        first: one of the layers, for dtypes and strides.
    """

    keys: torch.Tensor
    reprs: torch.Tensor
    stamps: torch.Tensor
    k_scales: torch.Tensor
    channels: Optional[torch.Tensor]
    first: LayerCache


def _constants(cache: LayerCache, params: AttentionParams) -> dict:
    (kv_heads, head_dim), kind = cache.keys.shape[1:], params.kind
    kept = num_channels(head_dim)
    return dict(
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        PAGE_SIZE=params.page_size,
        KIND=kind.name,
        WIDTH=0 if kind.slow else kind.width,
        KEPT=kept,
        KV_HEADS=kv_heads,
        AT_ONCE=heads_at_once(kv_heads, kept),
        enable_fp_fusion=not kind.slow,  # a key is rounded after its scale, as in torch
    )


def write_committed_pages(
    layers: AllLayers,
    page_version: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    new_lens: Union[int, torch.Tensor],
    out_slots: torch.Tensor,
    counters: torch.Tensor,
    params: AttentionParams,
    recent: int,
) -> None:
    """Represent the page that each request completed in its previous pass, and heal: all layers in one launch.

    In decode a page becomes a candidate at the earliest one step after its last token was written, and in
    speculative decoding one pass after its last token was accepted, so this runs at the start of a pass and needs no
    launch per layer. Every other complete page of the batch whose stamp is not its version is represented as well.

    Args:
        page_version: ``LayerCache.versions``, read before ``req_to_token``.
        req_to_token: slot of each position of each request ``[num_requests, context]`` int32.
        req_pool_indices: the batch's requests ``[B]``.
        seq_lens: ``[B]``.
        new_lens: tokens in ``seq_lens`` that are this pass's own, for all requests or for each ``[B]``; the others are
            committed. Requests without a complete page, such as padding, write nothing.
        out_slots: where this pass writes keys ``[T]``: pages that hold one of them are not complete yet.
        counters: ``HSACounters.values``, added to.
        params: of any layer; its key scale is not used.
        recent: most tokens that a pass commits, at most ``page_size``: the last complete page may be new while fewer
            than that many tokens follow it.
    """
    keys, reprs = layers.first.keys, layers.first.reprs
    per_request = isinstance(new_lens, torch.Tensor)
    programs = max(keys.shape[1], LEAST_SEARCHERS)
    _write_committed_pages_kernel[(len(seq_lens), programs, len(layers.keys))](
        layers.keys,
        layers.reprs,
        layers.stamps,
        page_version,
        req_to_token,
        req_pool_indices,
        seq_lens,
        new_lens if per_request else None,
        out_slots,
        layers.k_scales,
        layers.channels,
        counters,
        len(out_slots),
        keys.stride(0),
        keys.stride(1),
        reprs.stride(0),
        reprs.stride(1),
        req_to_token.stride(0),
        K_DTYPE=TL_DTYPES[keys.dtype],
        REPR_DTYPE=TL_DTYPES[reprs.dtype],
        **_constants(layers.first, params),
        NEW=None if per_request else new_lens,
        RECENT=recent,
        PAGES=PAGES_PER_SEARCH,
        maxnreg=SEARCH_REGISTERS if params.kind.slow else None,
    )


def write_pages(
    cache: LayerCache,
    page_table: torch.Tensor,
    pages: torch.Tensor,
    counters: torch.Tensor,
    params: AttentionParams,
) -> None:
    """Represent one layer's pages that an extend pass completes, and heal those whose stamp is not theirs.

    Args:
        cache: of the layer, versions included; the keys of the pass are written.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        pages: ``ExtendPlan.pages``.
        counters: ``HSACounters.values``, added to.
    """
    if len(pages) == 0:
        return
    keys, reprs = cache.keys, cache.reprs
    _write_pages_kernel[(len(pages),)](
        keys,
        reprs,
        cache.stamps,
        cache.versions,
        page_table,
        pages,
        counters,
        cache.channels,
        params.k_scale,
        keys.stride(0),
        keys.stride(1),
        reprs.stride(0),
        reprs.stride(1),
        page_table.stride(0),
        **_constants(cache, params),
    )
