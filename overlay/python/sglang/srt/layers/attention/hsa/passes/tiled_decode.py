# SPDX-License-Identifier: Apache-2.0
"""Decode attention on the extend kernels, one tile per sequence: every option, with one program per KV head."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from sglang.srt.layers.attention.hsa.ops.extend.plan import ExtendPlan, Tiling
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache
from sglang.srt.layers.attention.hsa.passes.split_decode import DecodeSize
from sglang.srt.layers.attention.hsa.passes.tile_attention import TileAttention

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters


class TiledDecode:
    """Static tiles and launches of one decode step; the arguments are those of ``SplitDecode``, of any option.

    Args:
        tiling: of the extend kernels.
    """

    def __init__(
        self,
        config: HSAConfig,
        counters: HSACounters,
        size: DecodeSize,
        device: torch.device,
        tiling: Tiling,
    ):
        row = torch.arange(size.rows, dtype=torch.int32, device=device)
        self.tiles = torch.stack([row, row, row, row], dim=1)
        self.whole = TileAttention.of(
            ExtendPlan(
                tiles=self.tiles,
                pages=torch.empty((0, 3), dtype=torch.int32, device=device),
                tiling=tiling.narrow(),
                max_candidates=size.max_pages,
                max_rows=1,
                rows=size.rows,
                complete=False,
            ),
            size.num_kv_heads,
            config,
            counters,
            Scratch(device),  # its own, as CUDA graphs hold the addresses
        )
        self.step = self.whole

    def begin(self, seq_lens: torch.Tensor) -> None:
        """Write the step's tiles: the new token of each sequence. A row of at most one key pads a CUDA graph and gets none."""
        rows = len(seq_lens)
        tiles = self.tiles[:rows]
        tiles[:, 2] = seq_lens > 1
        tiles[:, 3] = seq_lens - 1
        plan = dataclasses.replace(self.whole.plan, tiles=tiles, rows=rows)
        self.step = dataclasses.replace(self.whole, plan=plan)

    def launch(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        page_table: torch.Tensor,
        seq_lens: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """As ``SplitDecode.launch``; the lengths are those that ``begin`` was given."""
        return self.step.launch(q, cache, page_table, params)
