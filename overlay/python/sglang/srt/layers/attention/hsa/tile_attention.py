# SPDX-License-Identifier: Apache-2.0
"""Selection and attention of one layer over tiles of queries: the launches that extend and some decodes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import torch

from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.extend_plan import ExtendPlan
from sglang.srt.layers.attention.hsa.ops.extend.kernel import extend_hsa
from sglang.srt.layers.attention.hsa.ops.select_pages.extend_kernel import (
    ExtendSelectWorkspace,
    PageLists,
    select_pages_extend,
)
from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.scales import KVScales
    from sglang.srt.layers.radix_attention import RadixAttention

PROGRAMS_PER_PROCESSOR = 4


def make_workspace(
    plan: ExtendPlan, pool: ChunkReprMixin, processors: int
) -> ExtendSelectWorkspace:
    """Scratch for a plan on a device with so many multiprocessors."""
    return ExtendSelectWorkspace(
        len(plan.tiles) * pool.head_num,
        plan.tiling.tile_rows,
        plan.max_candidates,
        PROGRAMS_PER_PROCESSOR * processors,
        plan.tiles.device,
    )


@dataclass
class TileAttention:
    """Launches over the tiles of one plan.

    Attributes:
        plan: of the pass.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        page_version: versions that were read before the table ``[num_pages]`` int64.
        lists, workspace: for the plan; None if no row has a candidate page.
    """

    pool: ChunkReprMixin
    config: HSAConfig
    counters: HSACounters
    plan: ExtendPlan
    page_table: torch.Tensor
    page_version: torch.Tensor
    lists: Optional[PageLists]
    workspace: Optional[ExtendSelectWorkspace]

    def attend(
        self, q: torch.Tensor, layer: RadixAttention, scales: KVScales
    ) -> torch.Tensor:
        """One layer: q ``[T, H_q, D]`` -> ``[T, H_q, D_v]`` in the dtype of q. K, V and representations are written."""
        config = self.config
        # Rows of no tile pad the batch of a CUDA graph.
        out = q.new_zeros((*q.shape[:2], layer.v_head_dim))
        if self.lists is None:
            return self._attend_pages(q, layer, scales, None, out)
        local_lse = None
        if config.selection_strategy == "softmax_head":
            local_lse = q.new_empty(q.shape[:2], dtype=torch.float32)
            self._attend_pages(q, layer, scales, None, out, local_lse)
        stored = self.pool.chunk_repr_kind.stored
        select_pages_extend(
            q,
            self.pool.chunk_repr_pages(layer.layer_id),
            self.pool.chunk_repr_stamp(layer.layer_id) if stored else None,
            self.page_version,
            self.page_table,
            self.plan,
            self.lists,
            self.workspace,
            self.counters.values,
            page_size=config.page_size,
            window_size=config.effective_window,
            sink_pages=config.sink_pages,
            topk=config.topk,
            kind=config.chunk_repr,
            strategy=config.selection_strategy,
            sm_scale=layer.scaling * scales.score,
            local_lse=local_lse,
        )
        return self._attend_pages(q, layer, scales, self.lists, out)

    def _attend_pages(self, q, layer, scales, lists, out, lse=None) -> torch.Tensor:
        config = self.config
        k_buffer, v_buffer = self.pool.get_kv_buffer(layer.layer_id)
        weights = {}
        if config.weight_mode == "score" and lists is not None:
            weights = dict(
                repr_buffer=self.pool.chunk_repr_pages(layer.layer_id),
                kind=config.chunk_repr,
                score_scale=layer.scaling * scales.score,
            )
        return extend_hsa(
            q,
            k_buffer,
            v_buffer,
            lists,
            self.page_table,
            self.plan,
            out,
            page_size=config.page_size,
            window_size=config.effective_window,
            sink_pages=config.sink_pages,
            sm_scale=layer.scaling,
            logit_cap=layer.logit_cap,
            k_scale=scales.k,
            v_scale=scales.v,
            lse=lse,
            **weights,
        )
