# SPDX-License-Identifier: Apache-2.0
"""Decode attention with several programs per sequence and KV head: two launches per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from sglang.srt.layers.attention.hsa.ops.decode.kernel import (
    MAX_SPLITS,
    DecodeWorkspace,
    decode_hsa,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.decode_kernel import (
    MAX_PROGRAMS_PER_ROW,
    SelectPagesWorkspace,
    select_pages_decode,
)

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters
    from sglang.srt.layers.attention.hsa.scales import KVScales
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin


class SplitDecode:
    """Static buffers and launches of one decode step.

    Args:
        pool: pool that keeps the representations.
        config: resolved options; strategy ``group`` or ``head``, weights ``mass``.
        num_heads: query heads on this rank.
        page_table: static ``[max_rows, max_pages]`` int32.
        page_version: static ``[num_pages]`` int64, read before the table.
        processors: multiprocessors of the device.
        counters: counts are added to it on the device.
    """

    def __init__(
        self,
        pool: ChunkReprMixin,
        config: HSAConfig,
        num_heads: int,
        page_table: torch.Tensor,
        page_version: torch.Tensor,
        processors: int,
        counters: HSACounters,
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.page_table, self.page_version = page_table, page_version
        self.processors = processors
        rows, max_pages = page_table.shape
        device = page_table.device
        self.selected = torch.empty(
            (rows, pool.head_num, min(config.topk, max_pages)),
            dtype=torch.int32,
            device=device,
        )
        self.select_workspace = SelectPagesWorkspace(
            rows, pool.head_num, max_pages, device
        )
        self.decode_workspace = DecodeWorkspace(
            rows, num_heads, pool.head_num, pool.v_head_dim, device
        )

    def begin(self, seq_lens: torch.Tensor) -> None:
        """Nothing to share between layers: the kernels read the lengths themselves."""

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        scales: KVScales,
        seq_lens: torch.Tensor,
    ) -> torch.Tensor:
        """One layer: q ``[B, H_q, D]`` -> ``[B, H_q, D_v]`` in the dtype of q. K and V are written."""
        config, layer_id = self.config, layer.layer_id
        batch = len(q)
        rows = batch * self.pool.head_num
        table, selected = self.page_table[:batch], self.selected[:batch]
        stored = self.pool.chunk_repr_kind.stored
        layout = dict(
            page_size=config.page_size,
            window_size=config.effective_window,
            sink_pages=config.sink_pages,
        )
        select_pages_decode(
            q,
            self.pool.chunk_repr_pages(layer_id),
            self.pool.chunk_repr_stamp(layer_id) if stored else None,
            self.page_version,
            table,
            seq_lens,
            selected,
            self.select_workspace,
            self.counters.values,
            kind=config.chunk_repr,
            strategy=config.selection_strategy,
            sm_scale=layer.scaling * scales.score,
            programs_per_row=programs_per_row(
                self.processors, rows, MAX_PROGRAMS_PER_ROW
            ),
            **layout,
        )
        k_buffer, v_buffer = self.pool.get_kv_buffer(layer_id)
        out = q.new_empty((batch, q.shape[1], layer.v_head_dim))
        return decode_hsa(
            q,
            k_buffer,
            v_buffer,
            selected,
            table,
            seq_lens,
            out,
            self.decode_workspace,
            sm_scale=layer.scaling,
            logit_cap=layer.logit_cap,
            k_scale=scales.k,
            v_scale=scales.v,
            splits=programs_per_row(self.processors, rows, MAX_SPLITS),
            **layout,
        )


def programs_per_row(processors: int, rows: int, limit: int) -> int:
    """Programs per row that fill the device: a power of two, so that few variants are compiled."""
    return min(limit, triton.next_power_of_2(triton.cdiv(processors, rows)))
