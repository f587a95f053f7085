# SPDX-License-Identifier: Apache-2.0
"""HSASelector: which pages each query attends."""

from __future__ import annotations

from typing import Optional, Tuple

import torch

from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.ops.select_pages import reference


class HSASelector:
    """Page selection under one set of options. It sees tensors only.

    Args:
        config: resolved options.
    """

    def __init__(self, config: HSAConfig):
        self.config = config

    @property
    def needs_local_lse(self) -> bool:
        """Whether ranking needs the log-sum-exp of window and sinks."""
        return self.config.selection_strategy == "softmax_head"

    def compute_logits(
        self,
        q: torch.Tensor,
        chunk_repr: torch.Tensor,
        candidate: torch.Tensor,
        sm_scale: float,
        local_lse: Optional[torch.Tensor] = None,
        channels: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Page scores of one sequence's queries; see ``select_pages.reference.compute_logits``."""
        return reference.compute_logits(
            q,
            chunk_repr,
            candidate,
            kind=self.config.chunk_repr,
            strategy=self.config.selection_strategy,
            sm_scale=sm_scale,
            local_lse=local_lse,
            channels=channels,
        )

    def topk_transform(
        self, logits: torch.Tensor, page_table: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """The top k pages, logical and physical; see ``select_pages.reference.topk_transform``."""
        return reference.topk_transform(logits, self.config.topk, page_table)

    def select(
        self,
        q: torch.Tensor,
        repr_buffer: torch.Tensor,
        repr_valid: torch.Tensor,
        page_table: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        seq_lens: torch.Tensor,
        sm_scale: float,
        local_lse: Optional[torch.Tensor] = None,
        channels: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Selected physical pages ``[T, H_kv, K]`` int32 and their raw scores ``[T, H_q, K]`` float32.

        Args:
            q: packed queries of the batch ``[T, H_q, D]``.
            repr_buffer: representations by physical page ``[num_pages, H_kv, repr_dim]``.
            repr_valid: which of the batch's logical pages have one ``[B, max_pages]`` bool.
            page_table, cu_seqlens_q, seq_lens: as in ``select_pages.reference.select_pages``.
            sm_scale: softmax scale of the layer.
            local_lse: log-sum-exp of window and sinks ``[T, H_q]``; needed if ``needs_local_lse``.
            channels: that the kind of representation keeps ``[R]`` int32; None if it takes all.
        """
        return reference.select_pages(
            q,
            repr_buffer,
            repr_valid,
            page_table,
            cu_seqlens_q,
            seq_lens,
            page_size=self.config.page_size,
            window_size=self.config.effective_window,
            sink_pages=self.config.sink_pages,
            topk=self.config.topk,
            kind=self.config.chunk_repr,
            strategy=self.config.selection_strategy,
            sm_scale=sm_scale,
            local_lse=local_lse,
            channels=channels,
        )
