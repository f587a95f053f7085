# SPDX-License-Identifier: Apache-2.0
"""HSA on the Triton kernels: select pages, then attend sinks, selection and window in one launch."""

from __future__ import annotations

import torch
import triton

from sglang.mini.backend import CacheState
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.extend_plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.decode.kernel import (
    MAX_SPLITS,
    DecodeWorkspace,
    decode_hsa,
)
from sglang.srt.layers.attention.hsa.ops.extend.kernel import extend_hsa
from sglang.srt.layers.attention.hsa.ops.select_pages.decode_kernel import (
    MAX_PROGRAMS_PER_ROW,
    SelectPagesWorkspace,
    select_pages_decode,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.extend_kernel import (
    ExtendSelectWorkspace,
    PageLists,
    select_pages_extend,
)
from sglang.srt.layers.attention.hsa.split_decode import programs_per_row
from sglang.srt.layers.attention.hsa.tile_attention import PROGRAMS_PER_PROCESSOR


class HSAKernels:
    """Launches of one layer; the scratch grows with the largest batch seen.

    Args:
        config: options of HSA.
        device: CUDA, or ``cpu`` under the Triton interpreter.
        counters: added to on the device.
    """

    def __init__(self, config: HSAConfig, device: torch.device, counters: HSACounters):
        self.config, self.counters = config, counters
        self.processors = 4
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self.processors = properties.multi_processor_count
        self.rows = self.pages = 0
        self.planned = (
            None  # the spans that ``plan``, ``lists`` and ``workspace`` are for
        )

    def _plan(self, state: CacheState, cut: dict) -> None:
        """Work lists and scratch of a pass, which its layers share."""
        if self.planned is state.spans:
            return
        spec, device = state.spec, state.page_table.device
        group = spec.num_heads // spec.num_kv_heads
        self.plan = plan_extend(
            [first for first, _ in state.spans],
            [end - first for first, end in state.spans],
            tiling=choose_tiling(group, spec.head_dim, self.config.selection_strategy),
            page_size=self.config.page_size,
            device=device,
            **cut,
        )
        self.lists = self.workspace = None
        if self.plan.max_candidates:
            self.lists = PageLists.empty(self.plan, spec.num_kv_heads, self.config.topk)
            self.workspace = ExtendSelectWorkspace(
                len(self.plan.tiles) * spec.num_kv_heads,
                self.plan.tiling.tile_rows,
                self.plan.max_candidates,
                PROGRAMS_PER_PROCESSOR * self.processors,
                device,
            )
        self.planned = state.spans

    def prefill(
        self,
        q: torch.Tensor,
        state: CacheState,
        reprs: torch.Tensor,
        attention: dict,
        cut: dict,
    ) -> torch.Tensor:
        """One layer: q ``[T, H_q, D]`` -> ``[T, H_q, D]``; keys, values and representations are written."""
        config, q = self.config, q.contiguous()
        self._plan(state, cut)
        if self.lists is None:
            self.counters.add("rows_dense", len(q))

        def attend(lists, lse=None, **weights):
            return extend_hsa(
                q,
                state.k_cache.flatten(0, 1),
                state.v_cache.flatten(0, 1),
                lists,
                state.page_table,
                self.plan,
                torch.empty_like(q),
                lse=lse,
                **attention,
                **cut,
                **weights,
            )

        if self.lists is None:
            return attend(None)
        local_lse = None
        if config.selection_strategy == "softmax_head":
            local_lse = q.new_empty(q.shape[:2], dtype=torch.float32)
            attend(None, local_lse)
        scale = attention["sm_scale"]
        select_pages_extend(
            q,
            reprs,
            None,  # every full page is represented, so there are no versions to compare
            None,
            state.page_table,
            self.plan,
            self.lists,
            self.workspace,
            self.counters.values,
            page_size=config.page_size,
            topk=config.topk,
            kind=config.chunk_repr,
            strategy=config.selection_strategy,
            sm_scale=scale,
            local_lse=local_lse,
            **cut,
        )
        if config.weight_mode == "mass":
            return attend(self.lists)
        return attend(
            self.lists, repr_buffer=reprs, kind=config.chunk_repr, score_scale=scale
        )

    def _grow(self, rows: int, pages: int, state: CacheState) -> None:
        if rows <= self.rows and pages <= self.pages:
            return
        # Powers of two: the width of the table is compiled into the selection kernel.
        self.rows = triton.next_power_of_2(max(rows, self.rows))
        self.pages = triton.next_power_of_2(max(pages, self.pages))
        spec, device = state.spec, state.page_table.device
        self.select_workspace = SelectPagesWorkspace(
            self.rows, spec.num_kv_heads, self.pages, device
        )
        self.decode_workspace = DecodeWorkspace(
            self.rows, spec.num_heads, spec.num_kv_heads, spec.head_dim, device
        )

    def decode(
        self,
        q: torch.Tensor,
        state: CacheState,
        reprs: torch.Tensor,
        attention: dict,
        cut: dict,
    ) -> torch.Tensor:
        """As ``prefill``, with one new token per request."""
        if (
            self.config.selection_strategy == "softmax_head"
            or self.config.weight_mode == "score"
        ):
            return self.prefill(q, state, reprs, attention, cut)
        table, seq_lens, spec = state.page_table, state.cache_seqlens, state.spec
        self._grow(len(q), table.shape[1], state)
        q = q.contiguous()
        rows = len(q) * spec.num_kv_heads
        selected = torch.empty(
            (len(q), spec.num_kv_heads, min(self.config.topk, self.pages)),
            dtype=torch.int32,
            device=q.device,
        )
        select_pages_decode(
            q,
            reprs,
            None,  # every full page is represented, so there are no versions to compare
            None,
            table,
            seq_lens,
            selected,
            self.select_workspace,
            self.counters.values,
            page_size=attention["page_size"],
            sm_scale=attention["sm_scale"],
            kind=self.config.chunk_repr,
            strategy=self.config.selection_strategy,
            programs_per_row=programs_per_row(
                self.processors, rows, MAX_PROGRAMS_PER_ROW
            ),
            **cut,
        )
        return decode_hsa(
            q,
            state.k_cache.flatten(0, 1),
            state.v_cache.flatten(0, 1),
            selected,
            table,
            seq_lens,
            torch.empty_like(q),
            self.decode_workspace,
            splits=programs_per_row(self.processors, rows, MAX_SPLITS),
            **attention,
            **cut,
        )
