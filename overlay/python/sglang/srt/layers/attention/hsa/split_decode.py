# SPDX-License-Identifier: Apache-2.0
"""Decode attention with several programs per sequence and KV head: two launches per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton

from sglang.srt.layers.attention.hsa.layer_buffers import LayerBuffers
from sglang.srt.layers.attention.hsa.ops.decode.kernel import (
    MAX_SPLITS,
    DecodeWorkspace,
    decode_hsa,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.decode_kernel import (
    MAX_PROGRAMS_PER_ROW,
    SelectPagesWorkspace,
    select_pages_decode,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.slow_decode import (
    select_slow_pages_decode,
)
from sglang.srt.layers.attention.hsa.processors import num_processors

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
        config: resolved options; weights ``mass``.
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
        self.config, self.counters = config, counters
        self.processors = num_processors(device)
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
            max_programs=max_programs(
                self.processors, rows * num_kv_heads, MAX_PROGRAMS_PER_ROW
            ),
        )
        self.decode_workspace = DecodeWorkspace(
            rows,
            max_programs(self.processors, rows * num_kv_heads, MAX_SPLITS),
            num_heads,
            num_kv_heads,
            v_head_dim,
            device,
        )

    def begin(self, seq_lens: torch.Tensor) -> None:
        """Nothing to share between layers: the kernels read the lengths themselves."""

    def attend(
        self,
        q: torch.Tensor,
        layer: LayerBuffers,
        page_table: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> torch.Tensor:
        """One layer; its new keys and values are written.

        Args:
            q: queries ``[B, H_q, D]``, last dimension contiguous.
            page_table: physical page of each logical page ``[B, max_pages]`` int32.
            seq_lens: ``[B]`` int32, the new token included.

        Returns:
            ``[B, H_q, D_v]`` in the dtype of q.

        Raises:
            NotImplementedError: for masked slots with the strategy ``softmax_head``.
        """
        config, batch = self.config, len(q)
        if layer.mask_last_slot and config.selection_strategy == "softmax_head":
            # This selection takes the log-sum-exp of the window from keys that it does not mask.
            raise NotImplementedError(
                "hsa_mask_last_slot does not go with --hsa-selection-strategy softmax_head and --hsa-weight-mode mass; "
                "use --hsa-weight-mode score or another strategy."
            )
        rows = batch * layer.keys.shape[1]
        selected = self.selected[:batch]
        layout = dict(
            page_size=config.page_size,
            window_size=config.effective_window,
            sink_pages=config.sink_pages,
        )
        common = (
            q,
            layer.reprs,
            layer.stamps,
            layer.versions,
            page_table,
            seq_lens,
            selected,
            self.select_workspace,
            self.counters.values,
        )
        options = dict(
            layout,
            strategy=config.selection_strategy,
            sm_scale=layer.scaling * layer.scales.score,
        )
        if config.chunk_repr == "slow_keys":
            select_slow_pages_decode(
                *common,
                channels=layer.channels,
                processors=self.processors,
                **options,
            )
        else:
            select_pages_decode(
                *common,
                kind=config.chunk_repr,
                programs_per_row=programs_per_row(
                    self.processors, rows, MAX_PROGRAMS_PER_ROW
                ),
                keys=layer.keys,
                key_scale=layer.scaling * layer.scales.k,
                logit_cap=layer.logit_cap,
                **options,
            )
        out = q.new_empty((batch, q.shape[1], layer.values.shape[-1]))
        return decode_hsa(
            q,
            layer.keys,
            layer.values,
            selected,
            page_table,
            seq_lens,
            out,
            self.decode_workspace,
            sm_scale=layer.scaling,
            logit_cap=layer.logit_cap,
            k_scale=layer.scales.k,
            v_scale=layer.scales.v,
            splits=programs_per_row(self.processors, rows, MAX_SPLITS),
            mask_last_slot=layer.mask_last_slot,
            **layout,
        )


def programs_per_row(processors: int, rows: int, limit: int) -> int:
    """Programs per row that fill the device: a power of two, so that few variants are compiled."""
    return min(limit, triton.next_power_of_2(triton.cdiv(processors, rows)))


def max_programs(processors: int, rows: int, limit: int) -> int:
    """Bound of ``rows * programs_per_row(...)`` for any number of rows up to this one."""
    return min(limit * rows, max(rows, 4 * processors))
