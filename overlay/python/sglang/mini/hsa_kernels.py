# SPDX-License-Identifier: Apache-2.0
"""HSA on the server's Triton kernels."""

from __future__ import annotations

import torch

from sglang.mini.kv_cache import CacheState
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.ops.extend.plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache
from sglang.srt.layers.attention.hsa.passes.decode_attention import DecodeSize
from sglang.srt.layers.attention.hsa.passes.split_decode import SplitDecode
from sglang.srt.layers.attention.hsa.passes.tile_attention import TileAttention


class HSAKernels:
    """Selection and attention of the layers of a pass, counted in ``counters`` on the device."""

    def __init__(self, config: HSAConfig, counters: HSACounters):
        self.config, self.counters = config, counters
        self.scratch = None  # of passes over prompts
        self.decode = None  # static buffers, made for the cache of the first decode
        self.begun = None  # the spans of the pass whose layers share what _begin made

    def _begin(self, state: CacheState) -> None:
        config, kv, device = self.config, state.kv, state.page_table.device
        sizes = state.spec.num_heads, state.spec.num_kv_heads, state.spec.head_dim
        if not state.decode:
            tiling = choose_tiling(sizes[0] // sizes[1], sizes[2], config)
            plan = plan_extend(
                [first for first, _ in state.spans],
                state.counts,
                tiling=tiling,
                config=config,
                device=device,
            )
            if self.scratch is None:
                self.scratch = Scratch(device)
            self.tiles = None  # or its buffers would outlive larger ones
            self.tiles = TileAttention.of(
                plan, sizes[1], config, self.counters, self.scratch
            )
        else:
            if self.decode is None:
                rows, pages = len(kv.req_to_token), kv.pages_for(kv.max_tokens)
                size = DecodeSize(rows, pages, *sizes)
                self.decode = SplitDecode(config, self.counters, size, device)
            self.decode.begin()
        self.begun = state.spans

    def attend(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        params: AttentionParams,
        state: CacheState,
    ) -> torch.Tensor:
        """One layer: q ``[T, H_q, D]`` -> ``[T, H_q, D]``; its keys, values and representations are written."""
        if self.begun is not state.spans:
            self._begin(state)
        q, table = q.contiguous(), state.page_table
        if state.decode:
            return self.decode.launch(q, cache, table, state.cache_seqlens, params)
        return self.tiles.launch(q, cache, table, params)
