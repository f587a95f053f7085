# SPDX-License-Identifier: Apache-2.0
"""Decode attention on the extend kernels, one tile per sequence: every option, with one program per KV head."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from sglang.srt.layers.attention.hsa.extend_plan import ExtendPlan, Tiling
from sglang.srt.layers.attention.hsa.layer_buffers import LayerBuffers
from sglang.srt.layers.attention.hsa.split_decode import DecodeSize, SplitDecode
from sglang.srt.layers.attention.hsa.tile_attention import TileAttention

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
        plan = ExtendPlan(
            tiles=torch.stack([row, row, row, row], dim=1),
            pages=torch.empty((0, 3), dtype=torch.int32, device=device),
            tiling=tiling.narrow(),
            max_candidates=size.max_pages,
            max_rows=1,
            rows=size.rows,
            complete=False,
        )
        self.whole = TileAttention.of(plan, size.num_kv_heads, config, counters)

    def begin(self, seq_lens: torch.Tensor) -> None:
        """Write the step's tiles: the new token of each sequence. A row of at most one key pads a CUDA graph and gets none."""
        tiles = self.whole.plan.tiles[: len(seq_lens)]
        tiles[:, 2] = seq_lens > 1
        tiles[:, 3] = seq_lens - 1

    def attend(
        self,
        q: torch.Tensor,
        layer: LayerBuffers,
        page_table: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> torch.Tensor:
        """As ``SplitDecode.attend``, with the lengths that ``begin`` was given."""
        tiles = self.whole.plan.tiles[: len(q)]
        plan = dataclasses.replace(self.whole.plan, tiles=tiles, rows=len(q))
        return dataclasses.replace(self.whole, plan=plan).attend(q, layer, page_table)


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
