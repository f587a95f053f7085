# SPDX-License-Identifier: Apache-2.0
"""Decode attention with several programs per sequence and KV head: selection and attention of one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

import torch
import triton

from sglang.srt.layers.attention.hsa.ops.common import (
    max_programs,
    num_processors,
    programs_per_row,
)
from sglang.srt.layers.attention.hsa.ops.decode.kernel import (
    MAX_SPLITS,
    DecodeWorkspace,
    decode_hsa,
)
from sglang.srt.layers.attention.hsa.ops.select.by_kind import decode_op
from sglang.srt.layers.attention.hsa.ops.select.decode_kernel import (
    MAX_PROGRAMS_PER_ROW,
    SelectPagesWorkspace,
)
from sglang.srt.layers.attention.hsa.ops.select.prior_decode import ROWS_PER_SEQUENCE
from sglang.srt.layers.attention.hsa.page_repr import kind_named
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters


class DecodeSize(NamedTuple):
    """What the static buffers of decode are made for.

    Attributes:
        rows: largest batch; max_pages: pages of the longest sequence.
        num_heads, num_kv_heads: on this rank; v_head_dim: dimensions of a value.
    """

    rows: int
    max_pages: int
    num_heads: int
    num_kv_heads: int
    v_head_dim: int


class SplitDecode:
    """Static buffers and launches of one decode step.

    Args:
        config: resolved options.
        counters: counts are added to it on the device.
        size: bounds of all steps.
        device: CUDA device, or ``cpu`` under the Triton interpreter.
    """

    def __init__(
        self,
        config: HSAConfig,
        counters: HSACounters,
        size: DecodeSize,
        device: torch.device,
    ):
        self.counters = counters
        self.slow = kind_named(config.chunk_repr).slow
        self.processors = num_processors(device)
        # Landmarks have a row in every step, and seldom something to do.
        self.rows_per_busy_row = ROWS_PER_SEQUENCE if config.has_landmark_rows else 1
        rows, max_pages, num_heads, num_kv_heads, v_head_dim = size
        self.selected = torch.empty(
            (rows, num_kv_heads, min(config.topk, max_pages)),
            dtype=torch.int32,
            device=device,
        )
        by_share = config.selection_strategy == "softmax_head"
        self.select_workspace = SelectPagesWorkspace(
            rows,
            num_kv_heads,
            max_pages,
            device,
            group=num_heads // num_kv_heads if by_share else 1,
            max_programs=self._max_programs(rows * num_kv_heads, MAX_PROGRAMS_PER_ROW),
        )
        self.decode_workspace = DecodeWorkspace(
            rows,
            self._max_programs(rows * num_kv_heads, MAX_SPLITS),
            num_heads,
            num_kv_heads,
            v_head_dim,
            device,
        )

    def _max_programs(self, rows: int, limit: int) -> int:
        """Bound of the programs of a launch of up to so many rows."""
        busy = triton.cdiv(rows, self.rows_per_busy_row)
        return self.rows_per_busy_row * max_programs(self.processors, busy, limit)

    def begin(self) -> None:
        """Reset what launches leave behind that were cut off."""
        if not self.slow:  # whose selection counts no programs
            self.select_workspace.reset()
        self.decode_workspace.reset()

    def launch(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        page_table: torch.Tensor,
        seq_lens: torch.Tensor,
        params: AttentionParams,
        **chooser: torch.Tensor,
    ) -> torch.Tensor:
        """One layer; its new keys and values are written.

        Args:
            q: queries ``[B, H_q, D]``, last dimension contiguous.
            cache: of the layer, versions included.
            page_table: physical page of each logical page ``[N, max_pages]`` int32; row b is of sequence b mod N.
            seq_lens: ``[B]`` int32, the new token included.
            chooser: ``select_q``, queries that choose the pages ``[B, H_q, D]``, where they are others than q.

        Returns:
            ``[B, H_q, D_v]`` in the dtype of q.
        """
        select = decode_op(params.config)
        selected = select(
            q,
            cache,
            page_table,
            seq_lens,
            self.selected[: len(q)],
            self.select_workspace,
            self.counters.values,
            params,
            self.processors,
            **chooser,
        )
        return self._attend(q, cache, selected, page_table, seq_lens, params, **chooser)

    def attend_window(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        page_table: torch.Tensor,
        seq_lens: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """As ``launch``, of a layer that attends its window alone."""
        nothing = self.selected[: len(q), :, :0]
        return self._attend(q, cache, nothing, page_table, seq_lens, params)

    def _attend(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        selected: torch.Tensor,
        page_table: torch.Tensor,
        seq_lens: torch.Tensor,
        params: AttentionParams,
        select_q: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        busy = len(q) // self.rows_per_busy_row * cache.keys.shape[1]
        return decode_hsa(
            q,
            cache,
            selected,
            page_table,
            seq_lens,
            q.new_empty((*q.shape[:2], cache.values.shape[-1])),
            self.decode_workspace,
            params,
            programs_per_row(self.processors, busy, MAX_SPLITS),
            select_q,
        )
