# SPDX-License-Identifier: Apache-2.0
"""The extend path on Triton kernels: one launch per op for the whole batch, whatever its lengths.

Per forward pass: work lists from the host's lengths, page table, scratch. Per layer: representations, selection,
attention. Nothing here reads the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from sglang.srt.layers.attention.hsa.extend_plan import Tiling, plan_extend
from sglang.srt.layers.attention.hsa.layer_buffers import pool_buffers
from sglang.srt.layers.attention.hsa.ops.chunk_repr.kernel import write_pages
from sglang.srt.layers.attention.hsa.ops.page_table.kernel import build_page_table
from sglang.srt.layers.attention.hsa.tile_attention import TileAttention

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters
    from sglang.srt.layers.attention.hsa.scales import KVScales
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class ExtendKernels:
    """What the layers of one extend pass share, and their launches.

    Args:
        forward_batch: the batch; its lengths on the host must be set.
        pool: pool that keeps the representations.
        config: resolved options.
        tiling: of the kernels.
        counters: counts are added to it on the device.

    Attributes:
        rows: new tokens of the pass; max_candidates: largest number of candidate pages of any of them (host ints).
    """

    def __init__(
        self,
        forward_batch: ForwardBatch,
        pool: ChunkReprMixin,
        config: HSAConfig,
        tiling: Tiling,
        counters: HSACounters,
    ):
        self.pool, self.config, self.counters = pool, config, counters
        device = forward_batch.seq_lens.device
        # A draft extend still has the prefix lengths of its requests' prefill; the differences are always right.
        new_lens = torch.as_tensor(forward_batch.extend_seq_lens_cpu)
        self.plan = plan_extend(
            forward_batch.seq_lens_cpu - new_lens,
            new_lens,
            tiling=tiling,
            page_size=config.page_size,
            window_size=config.effective_window,
            sink_pages=config.sink_pages,
            device=device,
        )
        self.rows, self.max_candidates = self.plan.rows, self.plan.max_candidates

        # Versions before the table, as in ``build_metadata``.
        self.page_version = pool.page_version.clone()
        self.built_at = torch.full(
            (1,), pool.built_at(forward_batch), dtype=torch.int64, device=device
        )
        max_pages = triton.cdiv(int(forward_batch.seq_lens_cpu.max()), config.page_size)
        self.page_table = build_page_table(
            forward_batch.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            torch.empty(
                # A width that is a multiple of 16: one compiled variant for all.
                (len(forward_batch.seq_lens), triton.cdiv(max_pages, 16) * 16),
                dtype=torch.int32,
                device=device,
            ),
            config.page_size,
        )
        self.tiles = TileAttention.of(self.plan, pool.head_num, config, counters)

    def write_representations(self, layer: RadixAttention, scales: KVScales) -> None:
        """Represent the pages that this pass completes, and heal complete pages that have no valid E_i."""
        if not self.pool.chunk_repr_kind.stored:
            return
        write_pages(
            self.pool.get_key_buffer(layer.layer_id),
            self.pool.chunk_repr_pages(layer.layer_id),
            self.pool.chunk_repr_stamp(layer.layer_id),
            self.page_version,
            self.built_at,
            self.page_table,
            self.plan.pages,
            self.counters.values,
            page_size=self.config.page_size,
            kind=self.config.chunk_repr,
            k_scale=scales.k,
            channels=self.pool.chunk_repr_channels(layer.layer_id),
        )

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        scales: KVScales,
        mask_last_slot: bool = False,
    ) -> torch.Tensor:
        """One layer: q ``[T, H_q, D]`` -> ``[T, H_q, D_v]`` in the dtype of q. K, V and representations are written."""
        buffers = pool_buffers(
            layer, self.pool, scales, self.page_version, mask_last_slot
        )
        return self.tiles.attend(q, buffers, self.page_table)
