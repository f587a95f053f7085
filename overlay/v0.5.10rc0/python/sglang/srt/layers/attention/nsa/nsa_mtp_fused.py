# SPDX-License-Identifier: Apache-2.0
"""Metadata of NSA's draft steps before a CUDA graph replay: one launch instead of precompute and N copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

import torch

from sglang.jit_kernel.attention import fused_metadata_precompute_and_broadcast_cuda

if TYPE_CHECKING:
    from sglang.srt.layers.attention.nsa_backend import (
        NativeSparseAttnBackend,
        NSAMetadata,
    )
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def replay_draft_metadata(
    backends: List[NativeSparseAttnBackend], forward_batch: ForwardBatch, bs: int
) -> None:
    """Fill the metadata that the captured graphs of all draft steps read, for decode.

    Args:
        backends: one per draft step; all get the same values.
        forward_batch: its ``seq_lens``, ``seq_lens_cpu`` and ``req_pool_indices`` have at least ``bs`` elements.
        bs: batch size of the graph.
    """
    first = backends[0]
    metadata = [backend.decode_cuda_graph_metadata[bs] for backend in backends]
    # With pages of one token the real page table is the page table itself.
    paged = first.real_page_size > 1
    fused_metadata_precompute_and_broadcast_cuda(
        seq_lens=forward_batch.seq_lens[:bs],
        req_pool_indices=forward_batch.req_pool_indices[:bs],
        req_to_token=first.req_to_token,
        cache_seqlens_list=[m.cache_seqlens_int32 for m in metadata],
        cu_seqlens_k_list=[m.cu_seqlens_k for m in metadata],
        page_indices_list=[m.page_table_1 for m in metadata],
        nsa_cache_seqlens_list=[m.nsa_cache_seqlens_int32 for m in metadata],
        nsa_cu_seqlens_k_list=[m.nsa_cu_seqlens_k for m in metadata],
        real_page_table_list=[m.real_page_table for m in metadata] if paged else None,
        max_len=int(forward_batch.seq_lens_cpu[:bs].max()),
        nsa_index_topk=first.nsa_index_topk,
        real_page_size=first.real_page_size,
    )
    if first.nsa_decode_impl == "flashmla_kv":
        _broadcast_flashmla_metadata(first, metadata, bs)
    for backend, own in zip(backends, metadata):
        backend.set_nsa_prefill_impl(forward_batch=None)
        backend.forward_metadata = own


def _broadcast_flashmla_metadata(
    first: NativeSparseAttnBackend, metadata: List[NSAMetadata], bs: int
) -> None:
    """FlashMLA's schedule comes from its own library; all steps get it with one launch."""
    schedule = first._compute_flashmla_metadata(
        cache_seqlens=metadata[0].nsa_cache_seqlens_int32, seq_len_q=1
    )
    own = [m.flashmla_metadata.slice(slice(0, bs + 1)) for m in metadata]
    torch._foreach_copy_(
        [o.flashmla_metadata for o in own] + [o.num_splits for o in own],
        [schedule.flashmla_metadata] * len(own) + [schedule.num_splits] * len(own),
    )
