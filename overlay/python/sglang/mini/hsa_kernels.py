# SPDX-License-Identifier: Apache-2.0
"""HSA on the server's Triton kernels."""

from __future__ import annotations

import torch

from sglang.mini.backend import CacheState
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.extend_plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.layer_buffers import LayerBuffers
from sglang.srt.layers.attention.hsa.split_decode import DecodeSize
from sglang.srt.layers.attention.hsa.tile_attention import TileAttention
from sglang.srt.layers.attention.hsa.tiled_decode import decode_attention


class HSAKernels:
    """Selection and attention of the layers of a pass.

    Args:
        config: options of HSA.
        counters: added to on the device.
    """

    def __init__(self, config: HSAConfig, counters: HSACounters):
        self.config, self.counters = config, counters
        self.decode = None  # static buffers, made for the cache of the first decode
        self.begun = None  # the spans of the pass whose layers share what _begin made

    def _begin(self, state: CacheState) -> None:
        config, spec, kv = self.config, state.spec, state.kv
        group = spec.num_heads // spec.num_kv_heads
        tiling = choose_tiling(group, spec.head_dim, config.selection_strategy)
        device = state.page_table.device
        if not state.decode:
            plan = plan_extend(
                [first for first, _ in state.spans],
                [end - first for first, end in state.spans],
                tiling=tiling,
                page_size=config.page_size,
                window_size=config.effective_window,
                sink_pages=config.sink_pages,
                device=device,
            )
            self.tiles = TileAttention.of(
                plan, spec.num_kv_heads, config, self.counters
            )
        else:
            if self.decode is None:
                rows, pages = len(kv.req_to_token), kv.pages_for(kv.max_tokens)
                heads = (spec.num_heads, spec.num_kv_heads, spec.head_dim)
                size = DecodeSize(rows, pages, *heads)
                self.decode = decode_attention(
                    config, self.counters, size, device, tiling
                )
            self.decode.begin(state.cache_seqlens)
        self.begun = state.spans

    def attend(
        self, q: torch.Tensor, layer: LayerBuffers, state: CacheState
    ) -> torch.Tensor:
        """One layer: q ``[T, H_q, D]`` -> ``[T, H_q, D]``; its keys, values and representations are written."""
        if self.begun is not state.spans:
            self._begin(state)
        q, table = q.contiguous(), state.page_table
        if state.decode:
            return self.decode.attend(q, layer, table, state.cache_seqlens)
        return self.tiles.attend(q, layer, table)
