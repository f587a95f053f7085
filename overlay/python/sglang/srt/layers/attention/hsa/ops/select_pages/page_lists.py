# SPDX-License-Identifier: Apache-2.0
"""What the select_pages op for extend writes, the page lists that attention reads, and the scratch it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from sglang.srt.layers.attention.hsa.extend_plan import ExtendPlan
from sglang.srt.layers.attention.hsa.ops.select_pages.row_ranking import COLUMNS, wide

# Pages that a matrix product takes, half of it above 128 dimensions; a row of scratch is a multiple of it.
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
    def empty(cls, plan: ExtendPlan, num_kv_heads: int, topk: int) -> PageLists:
        """Lists for the tiles of a plan, not yet written."""
        tile_rows, list_rows = plan.tiling
        width = min(min(list_rows, plan.max_rows) * topk, plan.max_candidates)
        width = triton.cdiv(width, 16) * 16  # one compiled variant for all widths
        device = plan.tiles.device
        shape = (len(plan.tiles), num_kv_heads, tile_rows // list_rows)
        return cls(
            torch.empty((*shape, width), dtype=torch.int32, device=device),
            torch.empty((*shape, width), dtype=torch.int32, device=device),
            torch.empty(shape, dtype=torch.int32, device=device),
            list_rows,
        )


class ExtendSelectWorkspace:
    """Scratch of ``select_pages_extend``, reused by every layer.

    Args:
        items: tiles times KV heads of the largest plan; above ``programs`` they take turns.
        tile_rows: of the plans.
        max_candidates: largest number of candidate pages of any row.
        programs: programs of a launch at most.
        device: CUDA device, or ``cpu`` under the Triton interpreter.
    """

    def __init__(
        self, items: int, tile_rows: int, max_candidates: int, programs: int, device
    ):
        self.programs = min(items, programs)
        rows, limit = self.programs * tile_rows, wide(tile_rows)
        step = max(PAGES_PER_STEP, COLUMNS.value)
        large = max_candidates > limit

        def scratch(width: int) -> torch.Tensor:
            return torch.empty((rows, width), dtype=torch.uint32, device=device)

        self.keys = scratch(triton.cdiv(max_candidates, step) * step)
        self.maxima = scratch(limit if large else 0)
        self.kept = scratch(limit if large else 0)
