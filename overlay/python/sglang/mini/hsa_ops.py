# SPDX-License-Identifier: Apache-2.0
"""Hierarchical sparse attention on the mini engine's cache, with the ops of SGLang's HSA backend.

On CUDA it runs on the Triton kernels, elsewhere on the torch references. Layers with a sliding window are attended
densely.
"""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import torch

from sglang.mini.api import MiniError
from sglang.mini.backend import CacheState, LayerSpec
from sglang.mini.torch_ops import TorchOps
from sglang.srt.layers.attention.hsa.chunk_repr import KINDS
from sglang.srt.layers.attention.hsa.config import HSAConfig, select_layers
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.layout import num_candidate_pages
from sglang.srt.layers.attention.hsa.ops.chunk_repr.reference import chunk_repr_fwd
from sglang.srt.layers.attention.hsa.ops.decode.reference import (
    decode_hsa_fwd,
    decode_local_fwd,
)
from sglang.srt.layers.attention.hsa.ops.extend.reference import (
    extend_hsa_fwd,
    extend_local_fwd,
)
from sglang.srt.layers.attention.hsa.ops.merge.reference import merge_state
from sglang.srt.layers.attention.hsa.ops.select_pages.reference import select_pages


class HSAOps:
    """HSA over the pages of the cache.

    A page's representation is written in the pass that fills the page, before anything is selected, and a page is
    only ever selected when it is full. So a reused page cannot be read with the representation of its past.

    Args:
        specs: layers of the model.
        config: HSA's options; None takes the defaults.

    Attributes:
        counters: what was selected and attended, see docs/hsa.md.

    Raises:
        MiniError: for options that belong to SGLang's runtime.
    """

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        config: Optional[HSAConfig],
        device: torch.device,
    ):
        self.config = config = config or HSAConfig()
        if config.chunk_repr not in KINDS:
            raise MiniError(
                f"chunk_repr {config.chunk_repr!r} is not supported by the mini engine: use {', '.join(KINDS)}."
            )
        if config.strict or config.dense_backend is not None:
            raise MiniError(
                "strict and dense_backend are options of SGLang's runtime: leave them out here."
            )
        self.kind = KINDS[config.chunk_repr]
        full = [spec.layer for spec in specs if not spec.window]
        try:
            self.layers = frozenset(select_layers(config.layers, full, len(specs)))
        except ValueError as error:
            raise MiniError(str(error)) from None
        self.dense = TorchOps()
        self.counters = HSACounters(device)
        self.reprs = {}
        self.kernels = None
        if device.type == "cuda":
            from sglang.mini.hsa_kernels import HSAKernels

            self.kernels = HSAKernels(config, device, self.counters)

    def _options(self, spec: LayerSpec) -> Tuple[dict, dict]:
        """Keyword arguments that the ops share: of attention, and of the cut into window, sinks and candidates."""
        attention = dict(
            page_size=self.config.page_size,
            sm_scale=spec.scaling,
            logit_cap=spec.softcap,
        )
        cut = dict(
            window_size=self.config.effective_window, sink_pages=self.config.sink_pages
        )
        return attention, cut

    def _representations(self, state: CacheState) -> torch.Tensor:
        """Representations of the layer ``[num_pages, H_kv, repr_dim]``, those of the pages just filled included."""
        keys, layer = state.k_cache, state.spec.layer
        if not self.kind.stored:
            return keys[:, -1]
        if layer not in self.reprs:
            width = self.kind.width * keys.shape[-1]
            self.reprs[layer] = keys.new_zeros((len(keys), keys.shape[2], width))
        reprs, pages = self.reprs[layer], state.completed_pages
        if len(pages):
            fresh = chunk_repr_fwd(
                keys.flatten(0, 1),
                pages,
                page_size=self.config.page_size,
                kind=self.config.chunk_repr,
            )
            reprs[pages] = fresh.to(reprs.dtype)
            self.counters.add("reprs_written", len(pages))
        return reprs

    def prefill(
        self, q: torch.Tensor, state: CacheState, positions: torch.Tensor
    ) -> torch.Tensor:
        if state.spec.layer not in self.layers:
            return self.dense.prefill(q, state, positions)
        if self.kernels is not None:
            return self.kernels.prefill(
                q, state, self._representations(state), *self._options(state.spec)
            )
        attention, cut = self._options(state.spec)
        tables = (state.page_table, state.cu_seqlens_q, state.cache_seqlens)
        k, v = state.k_cache.flatten(0, 1), state.v_cache.flatten(0, 1)
        local = extend_local_fwd(q, k, v, *tables, **attention, **cut)
        pages, scores = self._select(q, state, positions, local[1])
        if pages.shape[-1]:
            chosen = extend_hsa_fwd(
                q, k, v, pages, *tables[1:], scores=scores, **attention
            )
            local = merge_state(*local, *chosen)
        return local[0].to(q.dtype)

    def decode(self, q: torch.Tensor, state: CacheState) -> torch.Tensor:
        if state.spec.layer not in self.layers:
            return self.dense.decode(q, state)
        if self.kernels is not None:
            return self.kernels.decode(
                q, state, self._representations(state), *self._options(state.spec)
            )
        attention, cut = self._options(state.spec)
        tables = (state.page_table, state.cache_seqlens)
        k, v = state.k_cache.flatten(0, 1), state.v_cache.flatten(0, 1)
        local = decode_local_fwd(q, k, v, *tables, **attention, **cut)
        pages, scores = self._select(q, state, state.cache_seqlens - 1, local[1])
        if pages.shape[-1]:
            chosen = decode_hsa_fwd(q, k, v, pages, *tables, scores=scores, **attention)
            local = merge_state(*local, *chosen)
        return local[0].to(q.dtype)

    def _select(
        self,
        q: torch.Tensor,
        state: CacheState,
        positions: torch.Tensor,
        local_lse: torch.Tensor,
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Selected physical pages ``[T, H_kv, K]``, and their scores if those weigh the pages."""
        config, size = self.config, self.config.page_size
        table = state.page_table
        index = torch.arange(table.shape[1], device=q.device)
        full = index < (state.cache_seqlens // size)[:, None]  # [B, max_pages]
        pages, scores = select_pages(
            q,
            self._representations(state),
            full,
            table,
            state.cu_seqlens_q,
            state.cache_seqlens,
            page_size=size,
            window_size=config.effective_window,
            sink_pages=config.sink_pages,
            topk=config.topk,
            kind=config.chunk_repr,
            strategy=config.selection_strategy,
            sm_scale=state.spec.scaling,
            local_lse=local_lse,
        )
        candidates = num_candidate_pages(
            positions, config.effective_window, size, config.sink_pages
        )
        sparse = (candidates > 0).sum()
        for name, amount in (
            ("rows_sparse", sparse),
            ("rows_dense", len(q) - sparse),
            ("pages_candidate", candidates.sum() * pages.shape[1]),
            ("pages_selected", (pages >= 0).sum()),
        ):
            self.counters.add(name, amount)
        return pages, scores if config.weight_mode == "score" else None
