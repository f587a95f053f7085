# SPDX-License-Identifier: Apache-2.0
"""The select op for extend and slow_keys: which launches take which sequences and tiles, in scratch of bounded size."""

from __future__ import annotations

from typing import List, NamedTuple, Optional

import torch
import triton

from sglang.srt.layers.attention.hsa.ops.common import dot_precision
from sglang.srt.layers.attention.hsa.ops.extend.plan import ExtendPlan, to_device
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select.extend_ranking import (
    LANES,
    WIDTHS,
    rows_at_a_time,
)
from sglang.srt.layers.attention.hsa.ops.select.page_lists import (
    PageLists,
    RankingWorkspace,
)
from sglang.srt.layers.attention.hsa.ops.select.slow_codes import scale_back
from sglang.srt.layers.attention.hsa.ops.select.slow_extend_kernels import (
    expand_slow_kernel,
    rank_slow_kernel,
    score_slow_kernel,
)
from sglang.srt.layers.attention.hsa.page_repr import num_channels
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

SCRATCH_BYTES = 128 << 20  # of scores
EXPANDED_PAGES = 1 << 15  # of all KV heads together whose keys wait at once
PAGES = 16  # whose scores are stored together
PROGRAMS = 16  # of scores on a multiprocessor, in turns
MIN_HALF = 16  # of a product's inner dimension
MIN_PAGES = 128  # of a program, which first loads its queries


class Group(NamedTuple):
    """Consecutive sequences whose candidate pages are turned into keys together.

    Attributes:
        first_sequence, sequences: which.
        pages: most candidates of one of them.
        items: their pairs of a tile and a KV head.
    """

    first_sequence: int
    sequences: int
    pages: int
    items: int


def group_sequences(
    candidates: List[int], items: List[int], most: int
) -> tuple[List[Group], List[int]]:
    """Consecutive sequences whose candidates are at most ``most`` together, or one with more.

    Returns:
        The groups, and of each sequence the place of its first candidate among those of its group.
    """
    groups, places, filled = [], [], 0
    for sequence, (count, number) in enumerate(zip(candidates, items)):
        if not groups or filled + count > most:
            groups.append(Group(sequence, 0, 0, 0))
            filled = 0
        first, sequences, pages, total = groups[-1]
        groups[-1] = Group(first, sequences + 1, max(pages, count), total + number)
        places.append(filled)
        filled += count
    return groups, places


class SlowSelectWorkspace(RankingWorkspace):
    """Scratch of ``select_slow_pages_extend``, reused by every layer; arguments as of ``ExtendSelectWorkspace``.

    Attributes:
        items: pairs of a tile and a KV head whose scores fit into the scratch at once.
        groups: sequences whose keys fit into ``expanded`` at once.
        spans: of each sequence the place of its first candidate in ``expanded`` and their number ``[B, 2]`` int32.
        expanded: keys of the kept channels of one group, sized by the first layer that selects.
    """

    def __init__(
        self,
        plan: ExtendPlan,
        num_kv_heads: int,
        topk: int,
        processors: int,
        scratch: Scratch,
    ):
        candidates = [count for count, _ in plan.sequences]
        self.groups, places = group_sequences(
            candidates,
            [tiles * num_kv_heads for _, tiles in plan.sequences],
            EXPANDED_PAGES // num_kv_heads,
        )
        self.spans = to_device(list(zip(places, candidates)), scratch.device)
        self.pages = max(place + count for place, count in zip(places, candidates))
        self.scratch, self.kv_heads = scratch, num_kv_heads
        self.expanded: Optional[torch.Tensor] = None
        self.bias = scratch.take("bias", (self.pages,), torch.float32)
        step = LANES.value
        width = triton.cdiv(plan.max_candidates, step) * step
        fitting = SCRATCH_BYTES // (plan.tiling.tile_rows * width * 4)
        self.items = min(len(plan.tiles) * num_kv_heads, max(1, fitting))
        self.processors = processors
        programs = min(self.items, 2 * processors)
        super().__init__(plan, topk, programs, self.items, step, scratch)

    def expand_for(self, page_size: int, head_dim: int, dtype: torch.dtype) -> None:
        """Make ``expanded`` for heads of so many dimensions."""
        if self.expanded is None:
            self.expanded = self._keys(self.pages, page_size, head_dim, dtype)

    def reserve(
        self, pool_pages: int, page_size: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        """Take scratch for the largest group of sequences: one of the plan's, or as many as share a launch."""
        most = min(EXPANDED_PAGES // self.kv_heads, pool_pages)
        most = max(self.pages, most)
        self._keys(most, page_size, head_dim, dtype)
        self.scratch.take("bias", (most,), torch.float32)

    def _keys(
        self, pages: int, page_size: int, head_dim: int, dtype: torch.dtype
    ) -> torch.Tensor:
        channels = max(num_channels(head_dim), 2 * MIN_HALF)
        shape = (pages, self.kv_heads, page_size, channels)
        return self.scratch.take("expanded", shape, dtype)


def select_slow_pages_extend(
    q: torch.Tensor,
    cache: LayerCache,
    page_table: torch.Tensor,
    plan: ExtendPlan,
    out: PageLists,
    workspace: SlowSelectWorkspace,
    counters: torch.Tensor,
    params: AttentionParams,
) -> PageLists:
    """As ``select_pages_extend``, by slow_keys and the strategy group or head."""
    launches = _Launches(q, cache, page_table, plan, out, workspace, counters, params)
    first = filled = 0  # items whose scores wait for their ranking
    for group in workspace.groups:
        if group.pages:
            launches.expand(group)
        left = group.items
        while left:
            count = min(left, workspace.items - filled)
            if group.pages:
                launches.score(group, first + filled, filled, count)
            filled, left = filled + count, left - count
            if filled == workspace.items:
                launches.rank(first, filled)
                first, filled = first + filled, 0
    if filled:
        launches.rank(first, filled)
    return out


class _Launches:
    """The three kernels with the arguments of one call of the op."""

    def __init__(
        self, q, cache, page_table, plan, out, workspace, counters, params
    ):  # fmt: skip
        self.q, self.cache, self.page_table, self.plan = q, cache, page_table, plan
        self.out, self.workspace, self.counters = out, workspace, counters
        self.params = params
        num_heads, head_dim = q.shape[1:]
        self.kv_heads = cache.reprs.shape[1]
        self.group = num_heads // self.kv_heads
        half = num_channels(head_dim) // 2
        self.halves = dict(HALF=half, BLOCK_HALF=max(half, MIN_HALF))
        self.layout = dict(
            KV_HEADS=self.kv_heads, ROWS=plan.tiling.tile_rows, **params.layout
        )
        workspace.expand_for(params.page_size, head_dim, q.dtype)

    def expand(self, group: Group) -> None:
        """Keys of the group's candidate pages."""
        cache, workspace, params = self.cache, self.workspace, self.params
        reprs = cache.reprs
        expand_slow_kernel[(group.pages, self.kv_heads, group.sequences)](
            reprs,
            cache.stamps,
            cache.versions,
            self.page_table,
            workspace.spans,
            workspace.expanded,
            workspace.bias,
            group.first_sequence,
            reprs.stride(0),
            reprs.stride(1),
            self.page_table.stride(0),
            KV_HEADS=self.kv_heads,
            PAGE_SIZE=params.page_size,
            SINKS=params.sink_pages,
            HAS_VERSIONS=cache.stamps is not None,
            **self.halves,
            num_warps=4,
        )

    def score(self, group: Group, first_item: int, place: int, count: int) -> None:
        """Scores of ``count`` items of the group, the first one at ``place`` in the scratch."""
        q, workspace, params = self.q, self.workspace, self.params
        parts = triton.cdiv(PROGRAMS * workspace.processors, count)
        pages = max(MIN_PAGES, triton.cdiv(group.pages, parts))
        pages = triton.cdiv(pages, PAGES) * PAGES
        score_slow_kernel[(count, triton.cdiv(group.pages, pages))](
            q,
            workspace.expanded,
            workspace.bias,
            workspace.spans,
            self.plan.tiles,
            workspace.keys[place * self.plan.tiling.tile_rows :],
            self.cache.channels,
            first_item,
            pages,
            params.score_scale * scale_back(q.dtype),
            q.stride(0),
            q.stride(1),
            workspace.keys.shape[1],
            **self.layout,
            GROUP=self.group,
            BLOCK_H=triton.next_power_of_2(self.group),
            STRATEGY=params.strategy,
            PAGES=PAGES,
            **self.halves,
            PRECISION=dot_precision(q.dtype),
            STAGES=3,
            num_warps=4,
        )

    def rank(self, first_item: int, count: int) -> None:
        """Rankings and lists of ``count`` items, whose scores are in the scratch."""
        out, workspace, params = self.out, self.workspace, self.params
        rank_slow_kernel[(min(count, workspace.programs),)](
            self.page_table,
            self.plan.tiles,
            out.pages,
            out.rows,
            out.lengths,
            workspace.keys,
            workspace.peaks,
            workspace.kept,
            workspace.ranks,
            self.counters,
            first_item,
            count,
            self.page_table.stride(0),
            out.pages.shape[-1],
            workspace.keys.shape[1],
            workspace.kept.shape[1],
            **self.layout,
            WIDTHS=WIDTHS,
            RANKED=rows_at_a_time(self.plan.tiling.tile_rows),
            PEAKS=workspace.peaks.shape[1],
            LIST_ROWS=out.list_rows,
            TOPK=params.topk,
            TOPK_BLOCK=triton.next_power_of_2(params.topk),
            num_warps=4,
            num_stages=1,
        )
