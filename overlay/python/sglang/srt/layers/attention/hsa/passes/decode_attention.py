# SPDX-License-Identifier: Apache-2.0
"""Launches of the decode op, with the scratch that they share: of a selection, of windows, and of layers without HSA."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
import triton

from sglang.srt.layers.attention.hsa.ops.common import (
    max_programs,
    num_processors,
    programs_per_row,
)
from sglang.srt.layers.attention.hsa.ops.decode.kernel import (
    DecodeWorkspace,
    decode_hsa,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

DENSE_SPLITS = 64  # the whole past is a longer list of pages than a selection


class DecodeSize(NamedTuple):
    """What the static buffers of decode are made for.

    Attributes:
        rows: largest batch; max_pages: pages of the longest sequence.
        num_heads, num_kv_heads: on this rank; v_head_dim: dimensions of a value.
        rows_per_busy_row: one in so many rows has something to do.
        batch_invariant: as of Tiling.
    """

    rows: int
    max_pages: int
    num_heads: int
    num_kv_heads: int
    v_head_dim: int
    rows_per_busy_row: int = 1
    batch_invariant: bool = False

    def max_programs(self, processors: Optional[int], limit: int) -> int:
        """Bound of the programs of a launch, with at most ``limit`` for a row and KV head."""
        busy = triton.cdiv(self.rows * self.num_kv_heads, self.rows_per_busy_row)
        return self.rows_per_busy_row * max_programs(processors, busy, limit)


class DecodeAttention:
    """Scratch of one decode step and its launches.

    Layers without HSA have one, too, and a window that covers the whole past: so they share page tables, lengths and CUDA
    graphs with the others, and a step needs no metadata of a dense backend.

    Args:
        size: bounds of all steps.
        device: CUDA device, or ``cpu`` under the Triton interpreter.
        max_splits: most programs that share a row and KV head.

    Attributes:
        processors: multiprocessors that launches fill; None where their number of programs per row is fixed.
    """

    def __init__(self, size: DecodeSize, device: torch.device, max_splits: int):
        self.size, self.max_splits = size, max_splits
        self.processors = None if size.batch_invariant else num_processors(device)
        self.nothing = torch.empty(
            (size.rows, size.num_kv_heads, 0), dtype=torch.int32, device=device
        )
        self.workspace = DecodeWorkspace(
            size.rows,
            size.max_programs(self.processors, max_splits),
            size.num_heads,
            size.num_kv_heads,
            size.v_head_dim,
            device,
        )

    def begin(self) -> None:
        """Reset what launches leave behind that were cut off."""
        self.workspace.reset()

    def launch(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        page_table: torch.Tensor,
        seq_lens: torch.Tensor,
        params: AttentionParams,
        selected: Optional[torch.Tensor] = None,
        select_q: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """As ``SplitDecode.launch``, of pages that are selected ``[B, H_kv, K]``, or of sinks and window alone."""
        busy = len(q) // self.size.rows_per_busy_row * cache.keys.shape[1]
        return decode_hsa(
            q,
            cache,
            self.nothing[: len(q)] if selected is None else selected,
            page_table,
            seq_lens,
            q.new_empty((*q.shape[:2], cache.values.shape[-1])),
            self.workspace,
            params,
            programs_per_row(self.processors, busy, self.max_splits),
            self.max_splits,
            select_q,
        )
