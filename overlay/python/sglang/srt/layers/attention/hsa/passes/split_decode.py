# SPDX-License-Identifier: Apache-2.0
"""Decode attention with several programs per sequence and KV head: selection and attention of one layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from sglang.srt.layers.attention.hsa.ops.common import num_processors
from sglang.srt.layers.attention.hsa.ops.decode.kernel import MAX_SPLITS
from sglang.srt.layers.attention.hsa.ops.select.by_kind import (
    decode_op,
    decode_programs,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_kernel import (
    SelectPagesWorkspace,
)
from sglang.srt.layers.attention.hsa.page_repr import kind_named
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache
from sglang.srt.layers.attention.hsa.passes.decode_attention import (
    DecodeAttention,
    DecodeSize,
)

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters


class SplitDecode:
    """Static buffers and launches of one decode step.

    Args:
        config: resolved options.
        counters: counts are added to it on the device.
        size: bounds of all steps.
        device: CUDA device, or ``cpu`` under the Triton interpreter.

    Attributes:
        attention: the launches after selection, and those of layers that attend their windows alone.
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
        self.attention = DecodeAttention(size, device, MAX_SPLITS)
        # slow_keys scores each page by itself, whatever the number of programs.
        self.processors = (
            num_processors(device) if self.slow else self.attention.processors
        )
        self.selected = torch.empty(
            (size.rows, size.num_kv_heads, min(config.topk, size.max_pages)),
            dtype=torch.int32,
            device=device,
        )
        by_share = config.selection_strategy == "softmax_head"
        self.select_workspace = SelectPagesWorkspace(
            size.rows,
            size.num_kv_heads,
            size.max_pages,
            device,
            group=size.num_heads // size.num_kv_heads if by_share else 1,
            max_programs=decode_programs(
                config, partial(size.max_programs, self.processors)
            ),
        )

    def begin(self) -> None:
        """Reset what launches leave behind that were cut off."""
        if not self.slow:  # whose selection counts no programs
            self.select_workspace.reset()
        self.attention.begin()

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
        return self.attention.launch(
            q, cache, page_table, seq_lens, params, selected, **chooser
        )
