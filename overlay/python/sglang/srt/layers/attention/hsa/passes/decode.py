# SPDX-License-Identifier: Apache-2.0
"""The decode passes on Triton kernels: a launch sequence, and buffers that stay where they are, for CUDA graphs to hold.

Per forward pass: page tables, representations of the pages that the previous pass completed. Per layer: selection,
attention. Nothing here reads a length on the host. The passes of speculative decoding over draft tokens are decode
passes with more rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, FrozenSet, List, NamedTuple, Optional

import torch
import triton

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.config import WHOLE_PAST
from sglang.srt.layers.attention.hsa.layer_contract import unsupported
from sglang.srt.layers.attention.hsa.ops.common import padded_width
from sglang.srt.layers.attention.hsa.ops.extend.plan import Tiling
from sglang.srt.layers.attention.hsa.ops.page_repr.kernel import (
    AllLayers,
    write_committed_pages,
)
from sglang.srt.layers.attention.hsa.ops.page_table.kernel import build_page_table
from sglang.srt.layers.attention.hsa.params import layer_params
from sglang.srt.layers.attention.hsa.passes.base import AttentionPass, LayerInputs
from sglang.srt.layers.attention.hsa.passes.dense_decode import DenseDecode
from sglang.srt.layers.attention.hsa.passes.draft_rows import Rows, write_draft_rows
from sglang.srt.layers.attention.hsa.passes.split_decode import DecodeSize, SplitDecode
from sglang.srt.layers.attention.hsa.passes.tiled_decode import TiledDecode

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def decode_attention(
    config: HSAConfig,
    counters: HSACounters,
    size: DecodeSize,
    device: torch.device,
    tiling: Tiling,
) -> SplitDecode | TiledDecode:
    """The decode of these options: split if its kernels have them, since it is the faster one."""
    if config.weight_mode == "mass":
        return SplitDecode(config, counters, size, device)
    return TiledDecode(config, counters, size, device, tiling)


def decoded_layers(
    layers: Dict[int, RadixAttention], pool: PageReprMixin, config: HSAConfig
) -> FrozenSet[int]:
    """The layers that decode attends: those with HSA, and of the others those that attend their whole past alike."""
    sparse = frozenset(pool.hsa_layer_ids)
    if config.dense_backend == "torch_native" and pool.dtype.itemsize == 1:
        # It writes and reads 8-bit keys without their scales; whoever wrote them in extend must read them.
        return sparse
    heads = layers[pool.hsa_layer_ids[0]].tp_q_head_num
    return sparse | {
        number
        for number, layer in layers.items()
        if layer.sliding_window_size <= 0
        and layer.tp_q_head_num == heads
        and not unsupported(layer)
    }


class DecodeBuffers(NamedTuple):
    """What passes with up to so many rows write, for each step of a multi-step draft; any other pass is one step.

    Attributes:
        seq_lens: keys that each row sees ``[steps, rows]`` int32; decode has the batch's own.
        page_table: physical page of each logical page ``[steps, rows, max_pages]`` int32.
        attention: scratch and launches of a step.
        dense: those of the layers without HSA.
    """

    seq_lens: torch.Tensor
    page_table: torch.Tensor
    attention: SplitDecode | TiledDecode
    dense: DenseDecode


class DecodeState:
    """What the decode passes of one model share: static buffers, page versions, addresses.

    Args:
        pool: pool that keeps the representations.
        req_to_token_pool: slots of the requests' tokens; its width bounds the number of pages.
        config: resolved options.
        tiling: of the extend kernels.
        layers: the attention layers of the model, by number.
        counters: counts are added to it on the device.
        num_draft_tokens: most rows of a request in a pass of speculative decoding; 1 without it.
        draft_steps: steps of the multi-step draft that the passes are for; 0 for any other use.

    Attributes:
        layers: numbers of the layers that the passes attend.
        steps: one pass for each step of a multi-step draft, else the only one.
    """

    def __init__(
        self,
        pool: PageReprMixin,
        req_to_token_pool: ReqToTokenPool,
        config: HSAConfig,
        tiling: Tiling,
        layers: Dict[int, RadixAttention],
        counters: HSACounters,
        num_draft_tokens: int = 1,
        draft_steps: int = 0,
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.layers = decoded_layers(layers, pool, config)
        self.first_layer = min(self.layers)
        self.tiling, self.num_draft_tokens = tiling, num_draft_tokens
        self.draft_steps = draft_steps
        self.rows_per_request = 1 if draft_steps else num_draft_tokens
        # What all layers share is launched before the layers, where a CUDA graph holds that too, else by the first of them.
        self.begins_early = compat.graphs_hold_metadata()
        self.begins_before_graphs = False
        self.req_to_token = req_to_token_pool.req_to_token
        device = self.req_to_token.device
        self.size = DecodeSize(
            0,
            triton.cdiv(self.req_to_token.shape[1], config.page_size),
            layers[pool.hsa_layer_ids[0]].tp_q_head_num,
            pool.head_num,
            pool.v_head_dim,
        )
        self.reserved: Optional[DecodeBuffers] = None
        self.grown: Optional[DecodeBuffers] = None
        self.buffers: Optional[DecodeBuffers] = None  # of the pass that began last
        self.rows: List[Rows] = []  # its rows, by draft step
        self.page_version = torch.empty_like(pool.page_version)
        self.built_at = torch.zeros(1, dtype=torch.int64, device=device)
        params = [layer_params(layers[i], pool, config) for i in pool.hsa_layer_ids]
        self.params = params[0]
        self.k_scales = torch.tensor([p.k_scale for p in params], device=device)
        keys = [pool.k_buffer[layer - pool.start_layer] for layer in pool.hsa_layer_ids]
        self.addresses = [
            torch.tensor(
                [t.data_ptr() for t in tensors], dtype=torch.uint64, device=device
            )
            for tensors in (keys, pool.repr_buffers, pool.repr_stamps)
        ]
        self.steps = [DecodePass(self, step) for step in range(max(draft_steps, 1))]

    def reserve(self, requests: int) -> None:
        """Make the buffers that CUDA graphs of so many requests hold, before the first of them is captured."""
        self.reserved = self._make_buffers(requests * self.rows_per_request)

    def _make_buffers(self, rows: int) -> DecodeBuffers:
        size, device = self.size._replace(rows=rows), self.req_to_token.device
        shape = (len(self.steps), rows, padded_width(size.max_pages))
        return DecodeBuffers(
            torch.zeros(shape[:2], dtype=torch.int32, device=device),
            torch.zeros(shape, dtype=torch.int32, device=device),
            decode_attention(self.config, self.counters, size, device, self.tiling),
            DenseDecode(size, device),
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

    def begin(self, forward_batch: ForwardBatch) -> None:
        """Launch what all layers of all steps share, for a batch in decode, verification, or draft extend."""
        # Versions before the table, as in ``build_metadata``.
        self.pool.versions_at(self.built_at, out=self.page_version)
        self.buffers = self._buffers_for(
            len(forward_batch.seq_lens) * self.rows_per_request
        )
        self.rows = self._write_rows(forward_batch)
        if self.pool.repr_kind.stored:
            self._write_representations(forward_batch)

    def _write_rows(self, forward_batch: ForwardBatch) -> List[Rows]:
        seq_lens, page_table = self.buffers.seq_lens, self.buffers.page_table
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
        """Represent the page that each request's previous pass completed, and heal. Draft tokens complete none."""
        mode = forward_batch.forward_mode
        if compat.is_draft_extend(mode):
            new_lens = forward_batch.extend_seq_lens
        else:  # decode counts the new token, a draft and its verification the committed ones alone
            new_lens = int(mode.is_decode() and not self.draft_steps)
        write_committed_pages(
            AllLayers(
                *self.addresses,
                self.k_scales,
                self.pool.all_repr_channels,
                self.pool.layer_cache(self.pool.hsa_layer_ids[0]),
            ),
            self.page_version,
            self.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            new_lens,
            forward_batch.out_cache_loc,
            self.counters.values,
            self.params,
            recent=self.num_draft_tokens,
        )


class DecodePass(AttentionPass):
    """A decode pass, or one step of a multi-step draft: its first step does for all what they share.

    Every query may have a page to select: the host does not know the lengths.
    """

    def __init__(self, state: DecodeState, step: int):
        self.state, self.step, self.layers = state, step, state.layers
        self.rows, self.max_candidates = 0, state.size.max_pages

    def enter_layer(self, layer: RadixAttention, forward_batch: ForwardBatch) -> None:
        state = self.state
        if layer.layer_id == state.first_layer:
            if self.step == 0 and not state.begins_early:
                state.begin(forward_batch)
            state.buffers.attention.begin(state.rows[self.step].seq_lens)
            state.buffers.dense.begin()

    def write_representations(
        self, layer: RadixAttention, inputs: LayerInputs = LayerInputs()
    ) -> None:
        """Nothing: ``enter_layer`` wrote those of all layers, and no page that this pass completes is a candidate yet."""

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        inputs: LayerInputs = LayerInputs(),
    ) -> torch.Tensor:
        state = self.state
        attention, dense_below = state.buffers.attention, 0
        if not state.pool.has_page_repr(layer.layer_id):
            attention, dense_below = state.buffers.dense, WHOLE_PAST
        seq_lens, page_table = state.rows[self.step]
        return attention.launch(
            q,
            state.pool.layer_cache(layer.layer_id, state.page_version),
            page_table,
            seq_lens,
            layer_params(
                layer, state.pool, state.config, inputs.mask_last_slot, dense_below
            ),
        )
