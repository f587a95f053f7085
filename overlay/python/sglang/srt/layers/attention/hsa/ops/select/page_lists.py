# SPDX-License-Identifier: Apache-2.0
"""What the select op for extend writes, the page lists that attention reads, and the scratch it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from sglang.srt.layers.attention.hsa.ops.common import padded_width
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
        tile_rows, list_rows, _ = plan.tiling
        width = min(min(list_rows, plan.max_rows) * topk, plan.max_candidates)
        width = padded_width(width)
        shape = (len(plan.tiles), num_kv_heads, tile_rows // list_rows)
        return cls(
            scratch.take("list_pages", (*shape, width), torch.int32),
            scratch.take("list_rows", (*shape, width), torch.int32),
            scratch.take("list_lengths", shape, torch.int32),
            list_rows,
        )


class RankingWorkspace:
    """Scratch of rankings and of the keys that they read.

    Args:
        plan: the largest.
        topk: pages that a row selects.
        programs: of a launch that ranks.
        items: pairs of a tile and a KV head whose keys are kept at once.
        step: that a row of keys is a multiple of.
        scratch: that the tensors are taken from.
    """

    def __init__(
        self,
        plan: ExtendPlan,
        topk: int,
        programs: int,
        items: int,
        step: int,
        scratch: Scratch,
    ):
        self.programs = programs
        tile_rows = plan.tiling.tile_rows
        rows = programs * tile_rows
        width = triton.cdiv(plan.max_candidates, step) * step
        sieved = plan.max_candidates > WIDTHS[-1]
        kept = rows_at_a_time(tile_rows)[-1] * WIDTHS[-1]

        def take(name: str, *shape: int) -> torch.Tensor:
            return scratch.take(name, shape, torch.uint32)

        self.ranks = scratch.take("ranks", (rows * 3,), torch.int32)
        self.keys = take("keys", items * tile_rows, width)
        self.peaks = take("peaks", rows * sieved, num_peaks(topk))
        self.kept = take("kept", programs * sieved, kept)


class ExtendSelectWorkspace(RankingWorkspace):
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
        self.processors = processors
        programs = min(len(plan.tiles) * num_kv_heads, 2 * processors)
        step = max(PAGES_PER_STEP, LANES.value)
        super().__init__(plan, topk, programs, programs, step, scratch)
