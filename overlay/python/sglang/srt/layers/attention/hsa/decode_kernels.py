# SPDX-License-Identifier: Apache-2.0
"""The decode path on Triton kernels: static buffers and a launch sequence that a CUDA graph can hold.

Per forward pass: page table, representations of the pages that the previous pass completed. Per layer: selection,
attention. Nothing here reads a length on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, Optional

import torch
import triton

from sglang.srt.layers.attention.hsa.counters import INDEX, HSACounters
from sglang.srt.layers.attention.hsa.extend_kernels import ExtendKernels
from sglang.srt.layers.attention.hsa.extend_plan import choose_tiling
from sglang.srt.layers.attention.hsa.layer_buffers import pool_buffers
from sglang.srt.layers.attention.hsa.ops.chunk_repr.kernel import write_previous_page
from sglang.srt.layers.attention.hsa.ops.page_table.kernel import build_page_table
from sglang.srt.layers.attention.hsa.split_decode import DecodeSize
from sglang.srt.layers.attention.hsa.tiled_decode import decode_attention

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.scales import KVScales
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def unsupported(config: HSAConfig) -> Optional[str]:
    """Why the kernels cannot run these options; None if they can."""
    if config.strict:
        return (
            "the checks of --hsa-strict read back what the kernels keep on the device"
        )
    return None


class DecodeKernels:
    """Buffers and launches of the decode path.

    Args:
        pool: pool that keeps the representations.
        req_to_token_pool: its size bounds the batch, its width the number of pages.
        config: resolved options, such that ``unsupported`` is None.
        num_heads: query heads on this rank.
        scales: of the cached keys and values of each HSA layer.
        counters: counts are added to it on the device.

    Raises:
        ValueError: for a head dimension above 256.
    """

    def __init__(
        self,
        pool: ChunkReprMixin,
        req_to_token_pool: ReqToTokenPool,
        config: HSAConfig,
        num_heads: int,
        scales: Mapping[int, KVScales],
        counters: HSACounters,
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.tiling = choose_tiling(
            num_heads // pool.head_num, pool.head_dim, config.selection_strategy
        )
        self.req_to_token = req_to_token_pool.req_to_token
        device = self.req_to_token.device
        rows, width = self.req_to_token.shape
        max_pages = triton.cdiv(width, config.page_size)
        self.page_version = torch.empty_like(pool.page_version)
        self.built_at = torch.zeros(1, dtype=torch.int64, device=device)
        self.page_table = torch.zeros(
            (rows, max_pages), dtype=torch.int32, device=device
        )
        size = DecodeSize(rows, max_pages, num_heads, pool.head_num, pool.v_head_dim)
        self.attention = decode_attention(config, counters, size, device, self.tiling)
        keys = [pool.k_buffer[layer - pool.start_layer] for layer in pool.hsa_layer_ids]
        self.k_ptrs, self.repr_ptrs, self.stamp_ptrs = (
            torch.tensor(
                [t.data_ptr() for t in tensors], dtype=torch.uint64, device=device
            )
            for tensors in (keys, pool.chunk_repr_buffer, pool.chunk_repr_version)
        )
        self.k_scales = torch.tensor(
            [scales[layer].k for layer in pool.hsa_layer_ids], device=device
        )

    def prepare(self, page_handouts: int) -> None:
        """Tell the next pass when its batch was built, outside any graph: one launch, no sync.

        Args:
            page_handouts: hand-outs of the pool at that time (see docs/storage.md).
        """
        self.built_at.fill_(page_handouts)

    def extend(self, forward_batch: ForwardBatch) -> ExtendKernels:
        """The kernels of an extend pass."""
        return ExtendKernels(
            forward_batch, self.pool, self.config, self.tiling, self.counters
        )

    def begin(self, forward_batch: ForwardBatch) -> None:
        """Launch what all layers of a forward pass share."""
        # Versions before the table, as in ``build_metadata``.
        self.page_version.copy_(self.pool.page_version)
        batch = forward_batch.batch_size
        seq_lens = forward_batch.seq_lens
        table = self.page_table[:batch]
        build_page_table(
            self.req_to_token,
            forward_batch.req_pool_indices,
            seq_lens,
            table,
            self.config.page_size,
        )
        self.attention.begin(seq_lens)
        if self.pool.chunk_repr_kind.stored:
            first = self.pool.hsa_layer_ids[0]
            written = INDEX["reprs_written"]
            write_previous_page(
                self.k_ptrs,
                self.repr_ptrs,
                self.stamp_ptrs,
                self.pool.get_key_buffer(first),
                self.pool.chunk_repr_pages(first),
                self.page_version,
                self.built_at,
                table,
                seq_lens,
                self.k_scales,
                self.counters.values[written : written + 1],
                page_size=self.config.page_size,
                kind=self.config.chunk_repr,
            )

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        scales: KVScales,
        seq_lens: torch.Tensor,
    ) -> torch.Tensor:
        """One layer: q ``[B, H_q, D]`` -> ``[B, H_q, D_v]`` in the dtype of q. K and V are written."""
        buffers = pool_buffers(layer, self.pool, scales, self.page_version)
        return self.attention.attend(q, buffers, self.page_table[: len(q)], seq_lens)
