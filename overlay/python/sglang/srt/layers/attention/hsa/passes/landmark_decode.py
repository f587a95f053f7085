# SPDX-License-Identifier: Apache-2.0
"""The decode pass of checkpoints that were trained for HSA on Triton kernels, for CUDA graphs to hold.

Each sequence has two rows in every step, its token and the landmark of the page that the token may complete. A landmark's
row without a page to complete attends nothing and writes nothing, so that steps are alike, whatever their lengths.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Dict, NamedTuple, Optional

import torch
import triton

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.landmark_rows import (
    LandmarkRows,
    decode_landmark_rows,
)
from sglang.srt.layers.attention.hsa.layout import num_places
from sglang.srt.layers.attention.hsa.ops.common import padded_width
from sglang.srt.layers.attention.hsa.ops.extend.plan import ExtendPlan, Tiling
from sglang.srt.layers.attention.hsa.ops.page_repr.landmark_kernel import (
    write_landmark_pages,
)
from sglang.srt.layers.attention.hsa.ops.page_table.kernel import build_page_table
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.params import layer_params
from sglang.srt.layers.attention.hsa.passes.base import AttentionPass, LayerInputs
from sglang.srt.layers.attention.hsa.passes.tile_attention import TileAttention

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class LandmarkBuffers(NamedTuple):
    """What steps of up to so many sequences write.

    Attributes:
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        window_table: the same of layers with a sliding window.
        window_slots: where they write their keys ``[B]`` int64.
        tiles: a row each, first all tokens, then all landmarks ``[2 * B, 4]`` int32 (see ExtendPlan).
        whole: launches over all of them.
    """

    page_table: torch.Tensor
    window_table: torch.Tensor
    window_slots: torch.Tensor
    tiles: torch.Tensor
    whole: TileAttention


class LandmarkDecodeState:
    """What the decode passes of one model share; the arguments are those of ``DecodeState``.

    Attributes:
        layers: numbers of the layers that the passes attend: all.
        steps: the only pass.
    """

    def __init__(
        self,
        pool: PageReprMixin,
        req_to_token_pool: ReqToTokenPool,
        config: HSAConfig,
        tiling: Tiling,
        layers: Dict[int, RadixAttention],
        counters: HSACounters,
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.layers = frozenset(layers)
        self.tiling = tiling.narrow()
        # What all layers share is launched before the layers, where a CUDA graph holds that too, else by the first of them.
        self.begins_early = compat.graphs_hold_metadata()
        # The scheduler clears the map of windows once what comes before a graph has run.
        self.begins_before_graphs = pool.windows_apart
        self.req_to_token = req_to_token_pool.req_to_token
        self.max_pages = triton.cdiv(self.req_to_token.shape[1], config.page_size)
        self.reserved: Optional[LandmarkBuffers] = None
        self.grown: Optional[LandmarkBuffers] = None
        self.page_version = torch.empty_like(pool.page_version)
        device = self.req_to_token.device
        self.built_at = torch.zeros(1, dtype=torch.int64, device=device)
        self.steps = [LandmarkDecodePass(self)]

    def reserve(self, requests: int) -> None:
        """Make the buffers that CUDA graphs of so many requests hold, before the first of them is captured."""
        self.reserved = self._make_buffers(requests)

    def prepare(self, page_handouts: int) -> None:
        """As ``DecodeState.prepare``."""
        self.built_at.fill_(page_handouts)

    def buffers_for(self, requests: int) -> LandmarkBuffers:
        """Those of the graphs if the requests fit, else others that grow with the largest batch."""
        for buffers in (self.reserved, self.grown):
            if buffers is not None and requests <= len(buffers.page_table):
                return buffers
        self.grown = self._make_buffers(triton.next_power_of_2(requests))
        return self.grown

    def _make_buffers(self, requests: int) -> LandmarkBuffers:
        device = self.req_to_token.device
        width = padded_width(self.max_pages)
        tiles = torch.zeros((2 * requests, 4), dtype=torch.int32, device=device)
        whole = TileAttention.of(
            ExtendPlan(
                tiles=tiles,
                pages=torch.empty((0, 3), dtype=torch.int32, device=device),
                tiling=self.tiling,
                max_candidates=self.max_pages,
                max_rows=1,
                rows=len(tiles),
                complete=False,
            ),
            self.pool.head_num,
            self.config,
            self.counters,
            Scratch(device),  # its own, as CUDA graphs hold the addresses
        )
        table = torch.zeros((requests, width), dtype=torch.int32, device=device)
        slots = torch.zeros(requests, dtype=torch.int64, device=device)
        return LandmarkBuffers(table, torch.zeros_like(table), slots, tiles, whole)

    def begin(self, forward_batch: ForwardBatch) -> None:
        """Launch what all layers share."""
        self.steps[0].begin(forward_batch)


class LandmarkDecodePass(AttentionPass):
    """A step with one new token of each sequence, whose lengths the host does not read."""

    def __init__(self, state: LandmarkDecodeState):
        self.state, self.layers = state, state.layers
        self.rows, self.max_candidates = 0, state.max_pages

    def begin(self, forward_batch: ForwardBatch) -> None:
        """Write page versions, page table and tiles."""
        state = self.state
        # Versions before the table, as in ``build_metadata``.
        state.pool.versions_at(state.built_at, out=state.page_version)
        seq_lens = forward_batch.seq_lens
        requests, slots_per_page = len(seq_lens), state.config.page_size
        buffers = state.buffers_for(requests)
        self.page_table = build_page_table(
            state.req_to_token,
            forward_batch.req_pool_indices,
            seq_lens,
            buffers.page_table[:requests],
            slots_per_page,
        )
        tiles = buffers.tiles[: 2 * requests]
        row = torch.arange(requests, dtype=torch.int32, device=tiles.device)
        # A row of at most one key pads a CUDA graph and gets nothing.
        live = seq_lens > 1
        last = num_places(seq_lens - 1, slots_per_page)
        for half, (is_live, place) in enumerate(
            ((live, last), (live & (seq_lens % slots_per_page == 0), last + 1))
        ):
            part = tiles[half * requests :][:requests]
            part[:, 0] = row
            part[:, 1] = row + half * requests
            part[:, 2] = is_live
            part[:, 3] = place
        plan = dataclasses.replace(buffers.whole.plan, tiles=tiles, rows=len(tiles))
        self.tiles = dataclasses.replace(buffers.whole, plan=plan)
        slots, table = forward_batch.out_cache_loc, self.page_table
        if state.pool.windows_apart:
            # A batch whose graph has more rows gives slots for its own; the others take padding.
            own = state.pool.window_slots(slots)
            slots = buffers.window_slots[:requests].zero_()
            slots[: len(own)] = own
            table = buffers.window_table[:requests].copy_(
                state.pool.window_pages(self.page_table)
            )
        self.window_slots, self.window_table = slots, table

    def rows_of(self, forward_batch: ForwardBatch) -> Optional[LandmarkRows]:
        if not self.state.begins_early:
            self.begin(forward_batch)
        self.seq_lens, self.out_slots = (
            forward_batch.seq_lens,
            forward_batch.out_cache_loc,
        )
        self.landmark_rows = decode_landmark_rows(self.seq_lens)
        return self.landmark_rows

    def write_representations(
        self, layer: RadixAttention, inputs: LayerInputs = LayerInputs()
    ) -> None:
        state = self.state
        if not state.pool.has_page_repr(layer.layer_id):
            return
        write_landmark_pages(
            inputs.select_q,
            state.pool.layer_cache(layer.layer_id, state.page_version),
            self.landmark_rows,
            self.out_slots,
            self.seq_lens,
            state.counters.values,
            layer_params(layer, state.pool, state.config),
        )

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        inputs: LayerInputs = LayerInputs(),
    ) -> torch.Tensor:
        state = self.state
        cache = state.pool.layer_cache(layer.layer_id, state.page_version)
        params = layer_params(layer, state.pool, state.config)
        if params.exact_window:
            return self.tiles.attend_window(q, cache, self.window_table, params)
        return self.tiles.launch(q, cache, self.page_table, params, inputs.select_q)
