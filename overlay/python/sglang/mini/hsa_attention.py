# SPDX-License-Identifier: Apache-2.0
"""Hierarchical sparse attention on the mini engine's cache, with the ops of SGLang's HSA backend.

On CUDA it runs on the Triton kernels, elsewhere on the torch references. Layers with a sliding window are attended
densely.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Sequence

import torch

from sglang.mini.api import MiniError
from sglang.mini.attention import AttentionBackend
from sglang.mini.kv_cache import CacheState, LayerSpec
from sglang.mini.torch_attention import torch_attention
from sglang.srt.layers.attention.hsa.config import HSAConfig, select_layers
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.layout import num_candidate_pages
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd
from sglang.srt.layers.attention.hsa.page_repr import KINDS, slow_channels
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache
from sglang.srt.layers.attention.hsa.passes.reference_attention import attend_reference
from sglang.srt.layers.attention.hsa.rotary_channels import channel_frequencies


class HSAAttentionBackend(AttentionBackend):
    """HSA over the pages of the cache.

    A page's representation is written in the pass that fills the page, before anything is selected, and a page is
    only ever selected when it is full. So a reused page cannot be read with the representation of its past.

    Args:
        specs: layers of the model.
        config: HSA's options; None takes the defaults.
        page_size: tokens per page; None takes that of the options.

    Attributes:
        config: HSA's options, with the page size that counts. layers: those that HSA attends.
        counters: what was selected and attended, see docs/hsa.md.

    Raises:
        MiniError: for options that are not valid, or belong to SGLang's runtime.
    """

    requested = "hsa"

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        config: Optional[HSAConfig],
        page_size: Optional[int],
        device: torch.device,
    ):
        config = config or HSAConfig()
        full = [spec.layer for spec in specs if not spec.window]
        try:
            if page_size is not None:
                config = replace(config, page_size=page_size)
            self.layers = frozenset(select_layers(config.layers, full, len(specs)))
        except ValueError as error:
            raise MiniError(str(error)) from None
        if config.chunk_repr not in KINDS:
            raise MiniError(
                f"chunk_repr {config.chunk_repr!r} is not supported by the mini engine: use {', '.join(KINDS)}."
            )
        if config.strict or config.dense_backend or config.dense_below:
            raise MiniError(
                "strict, dense_backend and prefill are options of SGLang's runtime: leave them out here."
            )
        super().__init__(config.page_size)
        self.config, self.kind = config, KINDS[config.chunk_repr]
        self.channels = {}
        if self.kind.slow:
            self.channels = {
                spec.layer: _slow_channels(spec, device)
                for spec in specs
                if spec.layer in self.layers
            }
        self.counters = HSACounters(device)
        self.reprs, self.kernels = {}, None
        if device.type == "cuda":
            from sglang.mini.hsa_kernels import HSAKernels

            self.kernels = HSAKernels(config, self.counters)

    def attend(
        self, q: torch.Tensor, state: CacheState, positions: torch.Tensor
    ) -> torch.Tensor:
        if state.spec.layer not in self.layers:
            return torch_attention(q, state, positions)
        spec = state.spec
        params = AttentionParams(self.config, spec.scaling, spec.softcap)
        cache = LayerCache(
            state.k_cache.flatten(0, 1),
            state.v_cache.flatten(0, 1),
            self._representations(state, params),
            channels=self.channels.get(spec.layer),
        )
        if self.kernels is not None:
            return self.kernels.attend(q, cache, params, state)
        return self._reference(q, cache, params, state, positions)

    def _representations(
        self, state: CacheState, params: AttentionParams
    ) -> torch.Tensor:
        """Representations of the layer ``[num_pages, H_kv, repr_dim]``, those of the pages just filled included."""
        keys, layer, pages = state.k_cache, state.spec.layer, state.completed_pages
        if not self.kind.stored:
            return keys[:, -1]
        if layer not in self.reprs:
            width = self.kind.repr_dim(keys.shape[-1], self.config.page_size)
            dtype = self.kind.storage_dtype(keys.dtype)
            shape = len(keys), keys.shape[2], width
            self.reprs[layer] = keys.new_zeros(shape, dtype=dtype)
        if len(pages):
            channels = self.channels.get(layer)
            fresh = page_repr_fwd(keys.flatten(0, 1), pages, params, channels)
            self.reprs[layer][pages] = fresh.to(self.reprs[layer].dtype)
            self.counters.add("reprs_written", len(pages))
        return self.reprs[layer]

    def _reference(self, q, cache, params, state, positions) -> torch.Tensor:
        config, table, lens = self.config, state.page_table, state.cache_seqlens
        logical = torch.arange(table.shape[1], device=q.device)
        full = logical < (lens // config.page_size)[:, None]  # [B, max_pages]
        out, pages = attend_reference(
            q, cache, full, table, lens, state.cu_seqlens_q, params, decode=state.decode
        )
        candidates = num_candidate_pages(
            positions, config.effective_window, config.page_size, config.sink_pages
        )
        sparse = (candidates > 0).sum()
        self.counters.add("rows_sparse", sparse)
        self.counters.add("rows_dense", len(q) - sparse)
        self.counters.add("pages_candidate", candidates.sum() * pages.shape[1])
        self.counters.add("pages_selected", (pages >= 0).sum())
        return out.to(q.dtype)


def _slow_channels(spec: LayerSpec, device: torch.device) -> torch.Tensor:
    """Channels that slow_keys keeps of a layer ``[R]`` int32."""
    if spec.rotary is None:
        raise MiniError(
            f"chunk_repr slow_keys needs a rotary embedding, and none was found for layer {spec.layer}: use mean_std."
        )
    try:
        frequencies = channel_frequencies(spec.rotary, spec.head_dim)
    except ValueError as error:
        raise MiniError(str(error)) from None
    return slow_channels(frequencies).to(device)
