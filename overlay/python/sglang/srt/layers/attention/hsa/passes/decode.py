# SPDX-License-Identifier: Apache-2.0
"""The decode passes on Triton kernels: a launch sequence, and buffers that stay where they are, for CUDA graphs to hold.

Per forward pass: page tables, representations of the pages that the previous pass completed. Per layer: selection,
attention. Nothing here reads a length on the host. The passes of speculative decoding over draft tokens are decode
passes with more rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

import torch

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.layer_contract import unsupported
from sglang.srt.layers.attention.hsa.layer_inputs import LayerInputs
from sglang.srt.layers.attention.hsa.ops.common import padded_width
from sglang.srt.layers.attention.hsa.ops.page_repr.kernel import (
    AllLayers,
    addresses_of,
    write_committed_pages,
)
from sglang.srt.layers.attention.hsa.params import layer_params
from sglang.srt.layers.attention.hsa.passes.base import AttentionPass, WindowCache
from sglang.srt.layers.attention.hsa.passes.decode_attention import (
    DENSE_SPLITS,
    DecodeAttention,
)
from sglang.srt.layers.attention.hsa.passes.decode_buffers import StaticPasses
from sglang.srt.layers.attention.hsa.passes.draft_rows import Rows, write_draft_rows
from sglang.srt.layers.attention.hsa.passes.split_decode import SplitDecode

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def decoded_layers(
    layers: Dict[int, RadixAttention], pool: PageReprMixin, config: HSAConfig
) -> FrozenSet[int]:
    """The layers that decode attends: those with HSA, and of the others those whose heads are alike."""
    sparse = frozenset(pool.hsa_layer_ids)
    if config.dense_backend == "torch_native" and pool.dtype.itemsize == 1:
        # It writes and reads 8-bit keys without their scales; whoever wrote them in extend must read them.
        return sparse
    first = layers[pool.hsa_layer_ids[0]]
    return sparse | {
        number
        for number, layer in layers.items()
        if _shape(layer) == _shape(first) and not unsupported(layer)
    }


def _shape(layer: RadixAttention) -> Tuple[int, ...]:
    """What the scratch of a launch is made for."""
    heads = layer.tp_q_head_num, layer.tp_k_head_num
    return *heads, layer.qk_head_dim, layer.v_head_dim


class DecodeBuffers(NamedTuple):
    """What passes with up to so many rows write, for each step of a multi-step draft; any other pass is one step.

    Attributes:
        seq_lens: keys that each row sees ``[steps, rows]`` int32; decode has the batch's own.
        page_table: physical page of each logical page ``[steps, rows, max_pages]`` int32.
        attention: scratch and launches of a step.
        dense: those of the layers without HSA.
        window: as of ``write_tables``.
    """

    seq_lens: torch.Tensor
    page_table: torch.Tensor
    attention: SplitDecode
    dense: DecodeAttention
    window: WindowCache

    @property
    def rows(self) -> int:
        return self.seq_lens.shape[1]


class DecodeState(StaticPasses):
    """What the decode passes of one model share: static buffers, page versions, addresses.

    Args:
        num_draft_tokens: most rows of a request in a pass of speculative decoding; 1 without it.
        draft_steps: steps of the multi-step draft that the passes are for; 0 for any other use.
        Others as of StaticPasses.
    """

    def __init__(
        self,
        pool: PageReprMixin,
        req_to_token_pool: ReqToTokenPool,
        config: HSAConfig,
        layers: Dict[int, RadixAttention],
        counters: HSACounters,
        num_draft_tokens: int = 1,
        draft_steps: int = 0,
        batch_invariant: bool = False,
    ):
        super().__init__(
            pool,
            req_to_token_pool,
            config,
            layers,
            counters,
            rows_per_request=1 if draft_steps else num_draft_tokens,
            batch_invariant=batch_invariant,
        )
        self.layers = decoded_layers(layers, pool, config)
        self.first_layer = min(self.layers)
        self.num_draft_tokens, self.draft_steps = num_draft_tokens, draft_steps
        device = self.req_to_token.device
        self.buffers: Optional[DecodeBuffers] = None  # of the pass that began last
        self.rows: List[Rows] = []  # its rows, by draft step
        self.windows: List[WindowCache] = (
            []
        )  # the same of its layers with a sliding window
        params = [layer_params(layers[i], pool, config) for i in pool.hsa_layer_ids]
        self.params = params[0]
        self.k_scales = torch.tensor([p.k_scale for p in params], device=device)
        keys = [pool.get_key_buffer(layer) for layer in pool.hsa_layer_ids]
        self.addresses = [
            addresses_of(tensors, device)
            for tensors in (keys, pool.repr_buffers, pool.repr_stamps)
        ]
        self.steps = [DecodePass(self, step) for step in range(max(draft_steps, 1))]

    def _make_buffers(self, rows: int) -> DecodeBuffers:
        size, device = self.size._replace(rows=rows), self.req_to_token.device
        shape = (len(self.steps), rows, padded_width(size.max_pages))
        return DecodeBuffers(
            torch.zeros(shape[:2], dtype=torch.int32, device=device),
            torch.zeros(shape, dtype=torch.int32, device=device),
            SplitDecode(self.config, self.counters, size, device),
            DecodeAttention(size, device, DENSE_SPLITS),
            self.make_window(rows),
        )

    def begin(self, forward_batch: ForwardBatch) -> None:
        """Launch what all layers of all steps share, for a batch in decode, verification, or draft extend."""
        # Versions before the table, as in ``build_metadata``.
        self.pool.versions_at(self.built_at, out=self.page_version)
        self.buffers = self.buffers_for(len(forward_batch.seq_lens))
        self._write_rows(forward_batch)
        if self.pool.repr_kind.stored:
            self._write_representations(forward_batch)

    def _write_rows(self, forward_batch: ForwardBatch) -> None:
        seq_lens, page_table = self.buffers.seq_lens, self.buffers.page_table
        if not forward_batch.forward_mode.is_decode() or self.draft_steps:
            self.rows = write_draft_rows(
                forward_batch,
                self.req_to_token,
                seq_lens,
                page_table,
                page_size=self.config.page_size,
                num_draft_tokens=self.rows_per_request,
            )
            # Drafts are refused where windows have slots of their own.
            slots = forward_batch.out_cache_loc
            self.windows = [WindowCache(slots, step.page_table) for step in self.rows]
            return
        table, windows = self.write_tables(
            forward_batch, page_table[0], self.buffers.window
        )
        self.rows = [Rows(forward_batch.seq_lens, table)]
        self.windows = [windows]

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

    @property
    def windows(self) -> WindowCache:
        return self.state.windows[self.step]

    def enter_layer(self, layer: RadixAttention, forward_batch: ForwardBatch) -> None:
        state = self.state
        if layer.layer_id == state.first_layer:
            if self.step == 0 and not state.begins_early:
                state.begin(forward_batch)
            state.buffers.attention.begin()
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
        seq_lens, page_table = state.rows[self.step]
        params = layer_params(layer, state.pool, state.config, inputs=inputs)
        attention = state.buffers.dense
        if params.exact_window:
            attention = state.buffers.attention.attention
            page_table = self.windows.page_table
        elif state.pool.has_page_repr(layer.layer_id):
            attention = state.buffers.attention
        return attention.launch(
            q,
            state.pool.layer_cache(layer.layer_id, state.page_version),
            page_table,
            seq_lens,
            params,
        )
