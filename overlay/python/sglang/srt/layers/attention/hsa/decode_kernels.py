# SPDX-License-Identifier: Apache-2.0
"""The decode path on Triton kernels: static buffers and a launch sequence that a CUDA graph can hold.

Per forward pass: page table, representations of the pages that the previous pass completed. Per layer: selection,
attention. Nothing here reads a length on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import torch
import triton

from sglang.srt.layers.attention.hsa.counters import INDEX, HSACounters
from sglang.srt.layers.attention.hsa.extend_kernels import ExtendKernels
from sglang.srt.layers.attention.hsa.ops.chunk_repr.kernel import write_previous_page
from sglang.srt.layers.attention.hsa.ops.decode.kernel import (
    MAX_SPLITS,
    DecodeWorkspace,
    decode_hsa,
)
from sglang.srt.layers.attention.hsa.ops.page_table.kernel import build_page_table
from sglang.srt.layers.attention.hsa.ops.select_pages.decode_kernel import (
    MAX_PROGRAMS_PER_ROW,
    SelectPagesWorkspace,
    select_pages_decode,
)

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def unsupported(config: HSAConfig, kv_cache_itemsize: int) -> Optional[str]:
    """Why the kernels cannot run these options; None if they can.

    Args:
        config: resolved options.
        kv_cache_itemsize: bytes of an element of the KV cache.
    """
    if kv_cache_itemsize == 1:
        return "the kernels read no 8-bit KV cache"
    if config.strict:
        return (
            "the checks of --hsa-strict read back what the kernels keep on the device"
        )
    if config.selection_strategy == "softmax_head":
        return "the selection kernel has no softmax_head strategy"
    if config.weight_mode == "score":
        return "the decode kernel has no score weights"
    return None


class DecodeKernels:
    """Buffers and launches of the decode path.

    Args:
        pool: pool that keeps the representations.
        req_to_token_pool: its size bounds the batch, its width the number of pages.
        config: resolved options, such that ``unsupported`` is None.
        num_heads: query heads on this rank.
        counters: counts are added to it on the device.
    """

    def __init__(
        self,
        pool: ChunkReprMixin,
        req_to_token_pool: ReqToTokenPool,
        config: HSAConfig,
        num_heads: int,
        counters: HSACounters,
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.num_heads = num_heads
        self.req_to_token = req_to_token_pool.req_to_token
        device = self.req_to_token.device
        rows, width = self.req_to_token.shape
        max_pages = triton.cdiv(width, config.page_size)
        self.topk = min(config.topk, max_pages)
        self.page_version = torch.empty_like(pool.page_version)
        self.built_at = torch.zeros(1, dtype=torch.int64, device=device)
        self.page_table = torch.zeros(
            (rows, max_pages), dtype=torch.int32, device=device
        )
        self.selected = torch.empty(
            (rows, pool.head_num, self.topk), dtype=torch.int32, device=device
        )
        self.select_workspace = SelectPagesWorkspace(
            rows, pool.head_num, max_pages, device
        )
        self.decode_workspace = DecodeWorkspace(
            rows, num_heads, pool.head_num, pool.v_head_dim, device
        )
        self.processors = (
            torch.cuda.get_device_properties(device).multi_processor_count
            if device.type == "cuda"
            else 4
        )
        keys = [pool.k_buffer[layer - pool.start_layer] for layer in pool.hsa_layer_ids]
        self.k_ptrs, self.repr_ptrs, self.stamp_ptrs = (
            torch.tensor(
                [t.data_ptr() for t in tensors], dtype=torch.uint64, device=device
            )
            for tensors in (keys, pool.chunk_repr_buffer, pool.chunk_repr_version)
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
            forward_batch, self.pool, self.config, self.num_heads, self.processors, self.counters
        )  # fmt: skip

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
                self.counters.values[written : written + 1],
                page_size=self.config.page_size,
                kind=self.config.chunk_repr,
            )

    def attend(
        self, q: torch.Tensor, layer: RadixAttention, seq_lens: torch.Tensor
    ) -> torch.Tensor:
        """One layer: q ``[B, H_q, D]`` -> ``[B, H_q, D_v]`` in the dtype of q. K and V are written."""
        config, layer_id = self.config, layer.layer_id
        batch = len(q)
        rows = batch * self.pool.head_num
        table, selected = self.page_table[:batch], self.selected[:batch]
        stored = self.pool.chunk_repr_kind.stored
        shape = dict(
            page_size=config.page_size,
            window_size=config.effective_window,
            sink_pages=config.sink_pages,
            sm_scale=layer.scaling,
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
            programs_per_row=programs_per_row(
                self.processors, rows, MAX_PROGRAMS_PER_ROW
            ),
            **shape,
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
            logit_cap=layer.logit_cap,
            splits=programs_per_row(self.processors, rows, MAX_SPLITS),
            **shape,
        )


def programs_per_row(processors: int, rows: int, limit: int) -> int:
    """Programs per row that fill the device: a power of two, so that few variants are compiled."""
    return min(limit, triton.next_power_of_2(triton.cdiv(processors, rows)))
