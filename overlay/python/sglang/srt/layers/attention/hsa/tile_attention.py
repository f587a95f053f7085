# SPDX-License-Identifier: Apache-2.0
"""Selection and attention of one layer over tiles of queries: the launches that extend and some decodes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch

from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.extend_plan import ExtendPlan
from sglang.srt.layers.attention.hsa.layer_buffers import LayerBuffers
from sglang.srt.layers.attention.hsa.ops.extend.kernel import extend_hsa
from sglang.srt.layers.attention.hsa.ops.select_pages.extend_kernel import (
    select_pages_extend,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.page_lists import (
    ExtendSelectWorkspace,
    PageLists,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.slow_extend import (
    SlowSelectWorkspace,
    select_slow_pages_extend,
)
from sglang.srt.layers.attention.hsa.processors import num_processors


@dataclass
class TileAttention:
    """Launches over the tiles of one plan.

    Attributes:
        plan: of the pass.
        lists, workspace: for the plan; None if no row has a candidate page.
    """

    config: HSAConfig
    counters: HSACounters
    plan: ExtendPlan
    lists: Optional[PageLists]
    workspace: Optional[ExtendSelectWorkspace | SlowSelectWorkspace]

    @classmethod
    def of(
        cls,
        plan: ExtendPlan,
        num_kv_heads: int,
        config: HSAConfig,
        counters: HSACounters,
    ) -> TileAttention:
        """For a plan, with fresh lists and scratch."""
        if not plan.max_candidates:
            return cls(config, counters, plan, None, None)
        slow = config.chunk_repr == "slow_keys"
        workspace = (SlowSelectWorkspace if slow else ExtendSelectWorkspace)(
            plan, num_kv_heads, config.topk, num_processors(plan.tiles.device)
        )
        lists = PageLists.empty(plan, num_kv_heads, config.topk)
        return cls(config, counters, plan, lists, workspace)

    def attend(
        self, q: torch.Tensor, layer: LayerBuffers, page_table: torch.Tensor
    ) -> torch.Tensor:
        """One layer; its new keys, values and representations are written.

        Args:
            q: packed queries ``[T, H_q, D]``, last dimension contiguous.
            page_table: physical page of each logical page ``[B, max_pages]`` int32.

        Returns:
            ``[T, H_q, D_v]`` in the dtype of q.
        """
        config = self.config
        # Rows of no tile are padding, and read as zeros.
        whole = self.plan.complete and self.plan.rows == len(q)
        shape = (*q.shape[:2], layer.values.shape[-1])
        out = q.new_empty(shape) if whole else q.new_zeros(shape)
        if self.lists is None:
            self.counters.add("rows_dense", self.plan.rows)
            return self._attend_pages(q, layer, page_table, None, out)
        common = (
            q,
            layer.reprs,
            layer.stamps,
            layer.versions,
            page_table,
            self.plan,
            self.lists,
            self.workspace,
            self.counters.values,
        )
        options = dict(
            page_size=config.page_size,
            window_size=config.effective_window,
            sink_pages=config.sink_pages,
            topk=config.topk,
            strategy=config.selection_strategy,
            sm_scale=layer.scaling * layer.scales.score,
        )
        if config.chunk_repr == "slow_keys":
            select_slow_pages_extend(*common, channels=layer.channels, **options)
        else:
            local_lse = None
            if config.selection_strategy == "softmax_head":
                local_lse = q.new_empty(q.shape[:2], dtype=torch.float32)
                self._attend_pages(q, layer, page_table, None, out, local_lse)
            select_pages_extend(
                *common, kind=config.chunk_repr, local_lse=local_lse, **options
            )
        return self._attend_pages(q, layer, page_table, self.lists, out)

    def _attend_pages(self, q, layer, page_table, lists, out, lse=None) -> torch.Tensor:
        config = self.config
        weights = {}
        if config.weight_mode == "score" and lists is not None:
            weights = dict(
                repr_buffer=layer.reprs,
                kind=config.chunk_repr,
                score_scale=layer.scaling * layer.scales.score,
            )
        return extend_hsa(
            q,
            layer.keys,
            layer.values,
            lists,
            page_table,
            self.plan,
            out,
            page_size=config.page_size,
            window_size=config.effective_window,
            sink_pages=config.sink_pages,
            sm_scale=layer.scaling,
            logit_cap=layer.logit_cap,
            k_scale=layer.scales.k,
            v_scale=layer.scales.v,
            lse=lse,
            mask_last_slot=layer.mask_last_slot,
            **weights,
        )
