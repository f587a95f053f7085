# SPDX-License-Identifier: Apache-2.0
"""Selection and attention of one layer over tiles of queries: the launches of extend passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch

from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.ops.common import num_processors
from sglang.srt.layers.attention.hsa.ops.extend.kernel import extend_hsa
from sglang.srt.layers.attention.hsa.ops.extend.plan import ExtendPlan
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select.by_kind import (
    ExtendWorkspace,
    extend_op,
    extend_workspace,
)
from sglang.srt.layers.attention.hsa.ops.select.page_lists import PageLists
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache


@dataclass
class TileAttention:
    """Launches over the tiles of one plan.

    Attributes:
        plan: of the pass.
        lists, workspace: for the plan; None if no row has a candidate page, but for the lists of a tiling that is batch
            invariant: they are empty then, so that attention is the same kernel.
    """

    counters: HSACounters
    plan: ExtendPlan
    lists: Optional[PageLists] = None
    workspace: Optional[ExtendWorkspace] = None

    @classmethod
    def of(
        cls,
        plan: ExtendPlan,
        num_kv_heads: int,
        config: HSAConfig,
        counters: HSACounters,
        scratch: Scratch,
    ) -> TileAttention:
        """For a plan; its lists and all else are in the scratch."""
        if not plan.max_candidates:
            if not plan.tiling.batch_invariant:
                return cls(counters, plan)
            lists = PageLists.empty(plan, num_kv_heads, config.topk, scratch)
            lists.lengths.zero_()
            return cls(counters, plan, lists)
        workspace = extend_workspace(config)(
            plan, num_kv_heads, config.topk, num_processors(scratch.device), scratch
        )
        lists = PageLists.empty(plan, num_kv_heads, config.topk, scratch)
        return cls(counters, plan, lists, workspace)

    def launch(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        page_table: torch.Tensor,
        params: AttentionParams,
        select_q: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """One layer; its new keys, values and representations are written.

        Args:
            q: packed queries ``[T, H_q, D]``, last dimension contiguous.
            cache: of the layer, versions included.
            page_table: physical page of each logical page ``[B, max_pages]`` int32.
            select_q: queries that choose the pages ``[T, H_q, D]``; None for those that attend.

        Returns:
            ``[T, H_q, D_v]`` in the dtype of q.
        """
        plan, lists = self.plan, self.lists
        out = self._output(q, cache)
        if not plan.max_candidates:
            self.counters.add("rows_dense", plan.rows)
        else:
            extra = {}
            if needs_local_lse(params, q.shape[1] // cache.keys.shape[1]):
                extra["local_lse"] = q.new_empty(q.shape[:2], dtype=torch.float32)
                extend_hsa(
                    q, cache, None, page_table, plan, out, params, extra["local_lse"]
                )
            select = extend_op(params.config)
            select(
                q if select_q is None else select_q,
                cache,
                page_table,
                plan,
                lists,
                self.workspace,
                self.counters.values,
                params,
                **extra,
            )
        return extend_hsa(
            q, cache, lists, page_table, plan, out, params, select_q=select_q
        )

    def attend_window(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        page_table: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """As ``launch``, of a layer without HSA, whose window may be its whole past."""
        out = self._output(q, cache)
        return extend_hsa(q, cache, None, page_table, self.plan, out, params)

    def _output(self, q: torch.Tensor, cache: LayerCache) -> torch.Tensor:
        """Room for ``[T, H_q, D_v]``; rows of no tile are padding, and read as zeros."""
        whole = self.plan.rows == len(q)
        shape = (*q.shape[:2], cache.values.shape[-1])
        return q.new_empty(shape) if whole else q.new_zeros(shape)


def needs_local_lse(params: AttentionParams, group: int) -> bool:
    """Whether selection reads the log-sum-exp of window and sinks: a normaliser of a single head ranks nothing."""
    alone = params.config.has_landmark_rows and group == 1
    return params.strategy == "softmax_head" and not alone
