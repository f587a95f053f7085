# SPDX-License-Identifier: Apache-2.0
"""HSA decode on the Triton kernels: select pages, then attend sinks, selection and window in one launch."""

from __future__ import annotations

import torch
import triton

from sglang.mini.backend import CacheState
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.decode_kernels import programs_per_row, unsupported
from sglang.srt.layers.attention.hsa.ops.decode.kernel import (
    MAX_SPLITS,
    DecodeWorkspace,
    decode_hsa,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.kernel import (
    MAX_PROGRAMS_PER_ROW,
    SelectPagesWorkspace,
    select_pages_decode,
)

__all__ = ["HSADecodeKernels", "unsupported"]


class HSADecodeKernels:
    """Launches of one layer; the scratch grows with the largest batch seen.

    Args:
        config: options such that ``unsupported`` is None.
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
        """One layer: q ``[B, H_q, D]`` -> ``[B, H_q, D]``; keys, values and representations are written."""
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
