# SPDX-License-Identifier: Apache-2.0
"""The decode path on Triton kernels: a launch sequence, and buffers that stay where they are, for CUDA graphs to hold.

Per forward pass: page tables, representations of the pages that the previous pass completed. Per layer: selection,
attention. Nothing here reads a length on the host. The passes of speculative decoding over draft tokens are decode
passes with more rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Mapping, NamedTuple, Optional

import torch
import triton

from sglang.srt.layers.attention.hsa.counters import INDEX, HSACounters
from sglang.srt.layers.attention.hsa.draft_rows import Rows, write_draft_rows
from sglang.srt.layers.attention.hsa.extend_kernels import ExtendKernels
from sglang.srt.layers.attention.hsa.extend_plan import choose_tiling
from sglang.srt.layers.attention.hsa.layer_buffers import pool_buffers
from sglang.srt.layers.attention.hsa.ops.chunk_repr.kernel import write_committed_page
from sglang.srt.layers.attention.hsa.ops.page_table.kernel import build_page_table
from sglang.srt.layers.attention.hsa.split_decode import DecodeSize, SplitDecode
from sglang.srt.layers.attention.hsa.tiled_decode import TiledDecode, decode_attention

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


class DecodeBuffers(NamedTuple):
    """What passes with up to so many rows write, for each step of a multi-step draft; any other pass is one step.

    Attributes:
        seq_lens: keys that each row sees ``[steps, rows]`` int32; decode has the batch's own.
        page_table: physical page of each logical page ``[steps, rows, max_pages]`` int32.
        attention: scratch and launches of a step.
    """

    seq_lens: torch.Tensor
    page_table: torch.Tensor
    attention: SplitDecode | TiledDecode


class DecodeKernels:
    """Buffers and launches of the decode path.

    Args:
        pool: pool that keeps the representations.
        req_to_token_pool: slots of the requests' tokens; its width bounds the number of pages.
        config: resolved options, such that ``unsupported`` is None.
        num_heads: query heads on this rank.
        scales: of the cached keys and values of each HSA layer.
        counters: counts are added to it on the device.
        num_draft_tokens: most rows of a request in a pass of speculative decoding; 1 without it.
        draft_steps: steps of the multi-step draft that the kernels are for; 0 for any other use.

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
        num_draft_tokens: int = 1,
        draft_steps: int = 0,
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.num_draft_tokens, self.draft_steps = num_draft_tokens, draft_steps
        self.rows_per_request = 1 if draft_steps else num_draft_tokens
        self.tiling = choose_tiling(
            num_heads // pool.head_num,
            pool.head_dim,
            config.selection_strategy,
            config.chunk_repr,
        )
        self.req_to_token = req_to_token_pool.req_to_token
        device = self.req_to_token.device
        self.size = DecodeSize(
            0,
            triton.cdiv(self.req_to_token.shape[1], config.page_size),
            num_heads,
            pool.head_num,
            pool.v_head_dim,
        )
        self.reserved: Optional[DecodeBuffers] = None
        self.grown: Optional[DecodeBuffers] = None
        self.buffers: Optional[DecodeBuffers] = None  # of the pass that began last
        self.rows: List[Rows] = []  # its rows, by draft step
        self.page_version = torch.empty_like(pool.page_version)
        self.built_at = torch.zeros(1, dtype=torch.int64, device=device)
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

    def reserve(self, requests: int) -> None:
        """Make the buffers that CUDA graphs of so many requests hold, before the first of them is captured."""
        self.reserved = self._make_buffers(requests * self.rows_per_request)

    def _make_buffers(self, rows: int) -> DecodeBuffers:
        size, device = self.size._replace(rows=rows), self.req_to_token.device
        shape = (max(self.draft_steps, 1), rows, size.max_pages)
        return DecodeBuffers(
            torch.zeros(shape[:2], dtype=torch.int32, device=device),
            torch.zeros(shape, dtype=torch.int32, device=device),
            decode_attention(self.config, self.counters, size, device, self.tiling),
        )

    def _buffers_for(self, rows: int) -> DecodeBuffers:
        """Those of the graphs if the rows fit, else others that grow with the largest batch."""
        for buffers in (self.reserved, self.grown):
            if buffers is not None and rows <= buffers.seq_lens.shape[1]:
                return buffers
        self.grown = self._make_buffers(triton.next_power_of_2(rows))
        return self.grown

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

    def begin(self, forward_batch: ForwardBatch, step: int = 0) -> None:
        """Launch what all layers of a forward pass share.

        Args:
            forward_batch: in decode, verification, or draft extend.
            step: of a multi-step draft; the first prepares them all.
        """
        if step == 0:
            # Versions before the table, as in ``build_metadata``.
            self.page_version.copy_(self.pool.page_version)
            self.buffers = self._buffers_for(
                len(forward_batch.seq_lens) * self.rows_per_request
            )
            self.rows = self._write_rows(forward_batch)
            if self.pool.chunk_repr_kind.stored:
                self._write_representations(forward_batch)
        self.buffers.attention.begin(self.rows[step].seq_lens)

    def _write_rows(self, forward_batch: ForwardBatch) -> List[Rows]:
        seq_lens, page_table, _ = self.buffers
        if not forward_batch.forward_mode.is_decode() or self.draft_steps:
            return write_draft_rows(
                forward_batch,
                self.req_to_token,
                seq_lens,
                page_table,
                page_size=self.config.page_size,
                num_draft_tokens=self.rows_per_request,
            )
        table = build_page_table(
            self.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            page_table[0, : len(forward_batch.seq_lens)],
            self.config.page_size,
        )
        return [Rows(forward_batch.seq_lens, table)]

    def _write_representations(self, forward_batch: ForwardBatch) -> None:
        """Represent the page that each request's previous pass completed. Draft tokens complete none."""
        mode = forward_batch.forward_mode
        if mode.is_draft_extend():
            new_lens = forward_batch.extend_seq_lens
        else:  # decode counts the new token, a draft and its verification the committed ones alone
            new_lens = int(mode.is_decode() and not self.draft_steps)
        first = self.pool.hsa_layer_ids[0]
        written = INDEX["reprs_written"]
        write_committed_page(
            self.k_ptrs,
            self.repr_ptrs,
            self.stamp_ptrs,
            self.pool.get_key_buffer(first),
            self.pool.chunk_repr_pages(first),
            self.page_version,
            self.built_at,
            self.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            new_lens,
            self.k_scales,
            self.counters.values[written : written + 1],
            recent=self.num_draft_tokens,
            page_size=self.config.page_size,
            kind=self.config.chunk_repr,
            channels=self.pool.all_repr_channels,
        )

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        scales: KVScales,
        step: int = 0,
        mask_last_slot: bool = False,
    ) -> torch.Tensor:
        """One layer: q ``[R, H_q, D]`` -> ``[R, H_q, D_v]`` in the dtype of q. K and V are written."""
        layer_buffers = pool_buffers(
            layer, self.pool, scales, self.page_version, mask_last_slot
        )
        seq_lens, page_table = self.rows[step]
        return self.buffers.attention.attend(q, layer_buffers, page_table, seq_lens)
