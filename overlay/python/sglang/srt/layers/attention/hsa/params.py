# SPDX-License-Identifier: Apache-2.0
"""What every op is told about one layer: the numbers that define its attention, and where its cache lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Dict, NamedTuple, Optional

import torch

from sglang.srt.layers.attention.hsa.config import WHOLE_PAST, HSAConfig
from sglang.srt.layers.attention.hsa.layer_inputs import LayerInputs
from sglang.srt.layers.attention.hsa.layout import num_candidate_pages, num_places
from sglang.srt.layers.attention.hsa.page_repr import PageRepr, kind_named

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin


# Of a page that belongs to a later batch; no representation is ever stamped with it.
NO_VERSION = -1


class LayerCache(NamedTuple):
    """Paged cache of one layer, whoever keeps it.

    Attributes:
        keys, values: ``[num_slots, H_kv, D]``, ``[num_slots, H_kv, D_v]``; slot = page * page_size + offset.
        reprs: representations by physical page ``[num_pages, H_kv, repr_dim]``, last dimension contiguous; None for a
            layer that keeps none.
        stamps: page version that each representation was written for ``[num_pages]`` int64; None if every
            complete page has a valid one.
        versions: page versions, read before the page table ``[num_pages]`` int64, NO_VERSION for a page that was handed
            out after the batch was built; None where nobody compares them.
        channels: that representations are taken from ``[R]`` int32; None for a kind that takes all.
        biases: by which scores of pages are raised ``[num_pages, H_kv, G]`` float32; None for a kind that has none.
    """

    keys: torch.Tensor
    values: torch.Tensor
    reprs: Optional[torch.Tensor]
    stamps: Optional[torch.Tensor] = None
    versions: Optional[torch.Tensor] = None
    channels: Optional[torch.Tensor] = None
    biases: Optional[torch.Tensor] = None


@dataclass(frozen=True)
class AttentionParams:
    """What attention is in one layer; every op takes it whole.

    Attributes:
        config: resolved options: pages, window, sinks, budget, representation, strategy, weights.
        sm_scale: softmax scale.
        logit_cap: soft cap of the logits, 0 for none.
        k_scale, v_scale: dequantisation factors of the cached keys and values; 1 for a cache that is not quantised.
        mask_last_slot: the last slot of a page is no key, not even to the query that sits there (see ``layout``).
        dense_below: queries at smaller positions attend their whole past.
        exact_window: of a layer that attends the most recent places alone, so many of them, its own included; 0 for a
            layer that uses HSA.
        sink_logits: one logit more of each query head's softmax, that no value belongs to ``[H_q]``: the learned sinks of
            a model, or zeros for softmax1; None for none. It does not take part in the choice of pages.
    """

    config: HSAConfig
    sm_scale: float
    logit_cap: float = 0.0
    k_scale: float = 1.0
    v_scale: float = 1.0
    mask_last_slot: bool = False
    dense_below: int = 0
    exact_window: int = 0
    sink_logits: Optional[torch.Tensor] = field(default=None, compare=False)

    @property
    def page_size(self) -> int:
        """Places per page: what positions, windows and candidates count."""
        return self.config.places_per_page

    @property
    def slots_per_page(self) -> int:
        """Slots of a page in the cache; a landmark has none."""
        return self.config.page_size

    @property
    def window_size(self) -> int:
        """Places; 0 is the query's own page."""
        return self.exact_window or self.config.effective_window

    @property
    def sink_pages(self) -> int:
        return 0 if self.exact_window else self.config.sink_pages

    @property
    def topk(self) -> int:
        return self.config.topk

    @property
    def strategy(self) -> str:
        return self.config.selection_strategy

    @property
    def kind(self) -> PageRepr:
        """Kind of representation."""
        return kind_named(self.config.chunk_repr)

    @property
    def by_score(self) -> bool:
        """A selected page weighs exp(its raw score), and its keys share that by the softmax within the page."""
        return self.config.weight_mode == "score"

    @property
    def score_scale(self) -> float:
        """Scale of page scores; keys that serve as representations are still quantised."""
        return self.sm_scale * (1.0 if self.kind.stored else self.k_scale)

    @property
    def keys_per_page(self) -> int:
        return self.page_size - self.mask_last_slot

    def max_candidates(self, max_pages: int) -> int:
        """Candidates of the last query of a sequence of so many pages."""
        last = max_pages * self.page_size - 1
        return num_candidate_pages(
            last, self.window_size, self.page_size, self.sink_pages, self.dense_below
        )

    @property
    def layout(self) -> Dict[str, int]:
        """How the past is cut into sinks, candidates and window: constants of every kernel."""
        return dict(
            PAGE_SIZE=self.page_size,
            WINDOW=max(self.window_size, 1),
            SINKS=self.sink_pages,
            DENSE_BELOW=self.dense_below,
        )


def layer_params(
    layer: RadixAttention,
    pool: PageReprMixin,
    config: HSAConfig,
    dense_below: int = 0,
    inputs: LayerInputs = LayerInputs(),
) -> AttentionParams:
    """Parameters of a layer of SGLang whose cache ``pool`` keeps; ``dense_below`` of those with HSA."""
    exact_window = _exact_window(layer, config)
    if exact_window:
        dense_below = 0
    elif not pool.has_page_repr(layer.layer_id):
        dense_below = WHOLE_PAST
    scales = {}
    if pool.dtype.itemsize == 1 and layer.k_scale is not None:
        scales = dict(k_scale=layer.k_scale_float, v_scale=layer.v_scale_float)
    return AttentionParams(
        config,
        layer.scaling,
        layer.logit_cap,
        mask_last_slot=inputs.mask_last_slot or config.has_landmark_rows,
        dense_below=dense_below,
        exact_window=exact_window,
        sink_logits=inputs.sink_logits,
        **scales,
    )


def _exact_window(layer: RadixAttention, config: HSAConfig) -> int:
    """Places that a layer with a sliding window attends; 0 for any other."""
    if layer.sliding_window_size <= 0:
        return 0
    tokens = layer.sliding_window_size + 1  # SGLang counts those before the query
    return num_places(tokens, config.page_size) if config.has_landmark_rows else tokens
