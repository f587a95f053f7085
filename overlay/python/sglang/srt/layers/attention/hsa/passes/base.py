# SPDX-License-Identifier: Apache-2.0
"""AttentionPass: what the layers of one forward pass share, and the calls that each layer makes."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, FrozenSet, NamedTuple, Optional

import torch

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.layer_inputs import LayerInputs

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.landmark_rows import LandmarkRows
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def prefill_dense_below(forward_batch: ForwardBatch, config: HSAConfig) -> int:
    """Position below which the queries of a pass attend their whole past: that of ``--hsa-prefill`` for prompts, else 0."""
    mode = forward_batch.forward_mode
    drafts = compat.is_draft_extend(mode)
    prompts = mode.is_extend_or_draft_extend_or_mixed() and not drafts
    return config.dense_below if prompts else 0


class WindowCache(NamedTuple):
    """Where the layers with a sliding window keep the keys of a pass.

    Attributes:
        slots: that the new tokens are written to ``[T]``.
        page_table: physical page of each logical page ``[B, max_pages]`` int32; any for one that no window reaches.
    """

    slots: torch.Tensor
    page_table: torch.Tensor

    @classmethod
    def of(
        cls, pool: PageReprMixin, slots: torch.Tensor, page_table: torch.Tensor
    ) -> WindowCache:
        """Of an eager pass, by its slots and pages in the layers that attend more."""
        return cls(pool.window_slots(slots), pool.window_pages(page_table))


class AttentionPass(abc.ABC):
    """One forward pass. Each layer that it attends enters it, writes its keys and values, then its representations, and attends.

    Attributes:
        layers: numbers of the layers that it attends, all with HSA among them; the dense backend has the others.
        rows: new tokens (host int); unknown to passes that run in CUDA graphs.
        max_candidates: largest number of candidate pages of any new token (host int), or a bound of it.
        windows: of the layers that it attends and that have a sliding window; None if there is none.
        landmark_rows: where landmarks are among the rows; None for a model without, and until decode was asked for them.
    """

    layers: FrozenSet[int]
    rows: int
    max_candidates: int
    windows: Optional[WindowCache] = None
    landmark_rows: Optional[LandmarkRows] = None

    def rows_of(self, forward_batch: ForwardBatch) -> Optional[LandmarkRows]:
        """``landmark_rows``, asked for before the first layer."""
        return self.landmark_rows

    def enter_layer(self, layer: RadixAttention, forward_batch: ForwardBatch) -> None:
        """Launch what all layers share, before the first of them writes its keys. A CUDA graph holds it, too.

        In decode that includes the representations of all layers.
        """

    @abc.abstractmethod
    def write_representations(
        self, layer: RadixAttention, inputs: LayerInputs = LayerInputs()
    ) -> None:
        """In a layer with HSA, represent the pages that are complete and have no valid representation."""

    @abc.abstractmethod
    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        inputs: LayerInputs = LayerInputs(),
    ) -> torch.Tensor:
        """One layer: q ``[T, H_q, D]`` -> ``[T, H_q, D_v]`` in the dtype of q. K, V and representations are written."""
