# SPDX-License-Identifier: Apache-2.0
"""What the select op for extend writes, the page lists that attention reads, and the scratch it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from sglang.srt.layers.attention.hsa.ops.extend.plan import ExtendPlan
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select.extend_ranking import (
    LANES,
    WIDTHS,
    num_peaks,
    rows_at_a_time,
)

# Pages that a matrix product takes, unless features of very many heads leave no room; a row of scratch is a multiple of it.
PAGES_PER_STEP = 128


@dataclass
class PageLists:
    """Pages that runs of ``list_rows`` consecutive queries select, per KV head.

    Attributes:
        pages: physical pages ``[N, H_kv, lists, width]`` int32, ascending by logical page; undefined past the length.
        rows: which of the run's rows selected each page, one bit per row ``[N, H_kv, lists, width]`` int32.
        lengths: ``[N, H_kv, lists]`` int32.
        list_rows: rows of a list, at most 32.
    """

    pages: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor
    list_rows: int

    @classmethod
    def empty(
        cls, plan: ExtendPlan, num_kv_heads: int, topk: int, scratch: Scratch
    ) -> PageLists:
        """Lists for the tiles of a plan, not yet written."""
        tile_rows, list_rows = plan.tiling
        width = min(min(list_rows, plan.max_rows) * topk, plan.max_candidates)
        width = triton.cdiv(width, 16) * 16  # one compiled variant for all widths
        shape = (len(plan.tiles), num_kv_heads, tile_rows // list_rows)
        return cls(
            scratch.take("list_pages", (*shape, width), torch.int32),
            scratch.take("list_rows", (*shape, width), torch.int32),
            scratch.take("list_lengths", shape, torch.int32),
            list_rows,
        )


class ExtendSelectWorkspace:
    """Scratch of ``select_pages_extend``, reused by every layer.

    Args:
        plan: the largest.
        num_kv_heads: KV heads on this rank.
        topk: pages that a row selects.
        processors: multiprocessors. Each runs two programs at most; the tiles of all heads take turns.
        scratch: that the tensors are taken from.
    """

    def __init__(
        self,
        plan: ExtendPlan,
        num_kv_heads: int,
        topk: int,
        processors: int,
        scratch: Scratch,
    ):
        tile_rows = plan.tiling.tile_rows
        self.processors = processors
        self.programs = min(len(plan.tiles) * num_kv_heads, 2 * processors)
        rows = self.programs * tile_rows
        step = max(PAGES_PER_STEP, LANES.value)

        def take(name: str, *shape: int) -> torch.Tensor:
            return scratch.take(name, shape, torch.uint32)

        self.ranks = scratch.take("ranks", (rows * 3,), torch.int32)
        self.keys = take("keys", rows, triton.cdiv(plan.max_candidates, step) * step)
        sieved = plan.max_candidates > WIDTHS[-1]
        self.peaks = take("peaks", rows * sieved, num_peaks(topk))
        kept = rows_at_a_time(tile_rows)[-1] * WIDTHS[-1]
        self.kept = take("kept", self.programs * sieved, kept)
