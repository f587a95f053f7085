# SPDX-License-Identifier: Apache-2.0
"""Decode attention on the extend kernels, one tile per sequence: every option, with one program per KV head."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from sglang.srt.layers.attention.hsa.extend_plan import ExtendPlan, choose_tiling
from sglang.srt.layers.attention.hsa.ops.select_pages.extend_kernel import (
    ExtendSelectWorkspace,
    PageLists,
)
from sglang.srt.layers.attention.hsa.tile_attention import TileAttention

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters
    from sglang.srt.layers.attention.hsa.scales import KVScales
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin


class TiledDecode:
    """Static tiles and launches of one decode step; the arguments are those of ``SplitDecode``, of any option."""

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
        rows, max_pages = page_table.shape
        device = page_table.device
        row = torch.arange(rows, dtype=torch.int32, device=device)
        plan = ExtendPlan(
            tiles=torch.stack([row, row, row, row], dim=1),
            pages=torch.empty((0, 3), dtype=torch.int32, device=device),
            tiling=choose_tiling(
                num_heads // pool.head_num, pool.head_dim, config.selection_strategy
            ),
            max_candidates=max_pages,
            max_rows=1,
            rows=rows,
        )
        workspace = ExtendSelectWorkspace(
            rows * pool.head_num, plan.tiling.tile_rows, max_pages, processors, device
        )
        lists = PageLists.empty(plan, pool.head_num, config.topk)
        self.whole = TileAttention(
            pool, config, counters, plan, page_table, page_version, lists, workspace
        )

    def begin(self, seq_lens: torch.Tensor) -> None:
        """Write the step's tiles: the new token of each sequence. A row of length 1 pads a CUDA graph and gets none."""
        tiles = self.whole.plan.tiles[: len(seq_lens)]
        tiles[:, 2] = seq_lens > 1
        tiles[:, 3] = seq_lens - 1

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        scales: KVScales,
        seq_lens: torch.Tensor,
    ) -> torch.Tensor:
        """One layer: q ``[B, H_q, D]`` -> ``[B, H_q, D_v]`` in the dtype of q. K and V are written."""
        tiles = self.whole.plan.tiles[: len(q)]
        plan = dataclasses.replace(self.whole.plan, tiles=tiles, rows=len(q))
        return dataclasses.replace(self.whole, plan=plan).attend(q, layer, scales)
