# SPDX-License-Identifier: Apache-2.0
"""Decode of the layers without HSA: the kernel of the decode op, with a window that covers the whole past.

They share page tables, lengths and CUDA graphs with the HSA layers, so that a step needs no metadata of a dense backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.passes.split_decode import DecodeSize

MAX_SPLITS = 64  # the whole past is a longer list of pages than a selection


class DenseDecode:
    """Scratch and the launch of one decode step; the arguments are those of ``SplitDecode``."""

    def __init__(self, size: DecodeSize, device: torch.device):
        self.processors = num_processors(device)
        rows = size.rows * size.num_kv_heads
        self.nothing = torch.empty(
            (size.rows, size.num_kv_heads, 0), dtype=torch.int32, device=device
        )
        self.workspace = DecodeWorkspace(
            size.rows,
            max_programs(self.processors, rows, MAX_SPLITS),
            size.num_heads,
            size.num_kv_heads,
            size.v_head_dim,
            device,
        )

    def begin(self) -> None:
        """As ``SplitDecode.begin``."""
        self.workspace.reset()

    def launch(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        page_table: torch.Tensor,
        seq_lens: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """As ``SplitDecode.launch``, with a ``dense_below`` of WHOLE_PAST; representations are not read."""
        rows = len(q) * cache.keys.shape[1]
        return decode_hsa(
            q,
            cache,
            self.nothing[: len(q)],
            page_table,
            seq_lens,
            q.new_empty((*q.shape[:2], cache.values.shape[-1])),
            self.workspace,
            params,
            programs_per_row(self.processors, rows, MAX_SPLITS),
        )
