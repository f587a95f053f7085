# SPDX-License-Identifier: Apache-2.0
"""HSAAttnBackend: schedules the HSA ops of each layer. No mathematics lives here."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Tuple

import torch

from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.hsa import counters as hsa_counters
from sglang.srt.layers.attention.hsa import decode_kernels, strict
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.decode_kernels import DecodeKernels
from sglang.srt.layers.attention.hsa.metadata import HSAMetadata, build_metadata
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
from sglang.srt.layers.attention.hsa.selector import HSASelector
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)


class HSAAttnBackend(AttentionBackend):
    """Hierarchical sparse attention over the paged KV cache.

    Each HSA layer writes K and V, represents the pages that became complete, selects pages for every query and
    attends sinks, selected pages and window under one softmax. Other layers, and batches in which no query has
    a page to select, go to the dense backend. Decode on a CUDA device runs on Triton kernels, eagerly or in a
    CUDA graph; everything else on the torch references.

    Args:
        model_runner: its server arguments chose HSA, and its pool keeps representations.

    Raises:
        ValueError: if the pool keeps no representations.
    """

    def __init__(self, model_runner: ModelRunner):
        super().__init__()
        self.pool = model_runner.token_to_kv_pool
        if not isinstance(self.pool, ChunkReprMixin):
            raise ValueError(
                f"--attention-backend hsa needs a pool with page representations, not {type(self.pool).__name__}; "
                "choose another --attention-backend for this model."
            )
        self.quantised = self.pool.dtype.itemsize == 1
        self.config = HSAConfig.from_server_args(model_runner.server_args)
        self.dense = ATTENTION_BACKENDS[self.config.dense_backend](model_runner)
        self.selector = HSASelector(self.config)
        self.counters = hsa_counters.HSACounters(model_runner.device)
        hsa_counters.register(self.counters, self.pool.get_chunk_repr_size_bytes())
        self.decode_kernels = self._make_decode_kernels(model_runner)
        self.has_dense_layers = any(
            not self.pool.has_chunk_repr(module.layer_id)
            for module in model_runner.model.modules()
            if isinstance(module, RadixAttention)
        )
        self.forward_metadata: HSAMetadata | None = None

    def _make_decode_kernels(self, model_runner: ModelRunner) -> DecodeKernels | None:
        if torch.device(model_runner.device).type != "cuda":
            return None
        if reason := decode_kernels.unsupported(self.config, self.pool.dtype.itemsize):
            logger.warning(f"HSA decodes on the torch reference ops: {reason}.")
            return None
        return DecodeKernels(
            self.pool,
            model_runner.req_to_token_pool,
            self.config,
            num_heads_of(model_runner.model, self.pool.hsa_layer_ids[0]),
            self.counters,
        )

    def init_forward_metadata(self, forward_batch: ForwardBatch):
        on_kernels = (
            self.decode_kernels is not None and forward_batch.forward_mode.is_decode()
        )
        if on_kernels:
            built_at = forward_batch.page_handouts
            self.decode_kernels.prepare(
                self.pool.page_handouts if built_at is None else built_at
            )
        if self.has_dense_layers or not on_kernels:
            self.dense.init_forward_metadata(forward_batch)
        self.forward_metadata = (
            None
            if on_kernels
            else build_metadata(forward_batch, self.pool, self.config)
        )

    # CUDA graphs hold decode on the kernels, whose buffers are static and which read the graph runner's own
    # tensors of lengths and request indices. The host prepares a replay before it builds another batch, so the
    # pool's count of hand-outs is still this batch's.

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int):
        if self.decode_kernels is None:
            raise ValueError(
                "--attention-backend hsa decodes this model on its reference ops, which no CUDA graph can hold; "
                "add --disable-cuda-graph."
            )
        if self.has_dense_layers:
            self.dense.init_cuda_graph_state(max_bs, max_num_tokens)

    def init_forward_metadata_capture_cuda_graph(self, *args, **kwargs):
        if self.has_dense_layers:
            self.dense.init_forward_metadata_capture_cuda_graph(*args, **kwargs)

    def init_forward_metadata_replay_cuda_graph(self, *args, **kwargs):
        self.decode_kernels.prepare(self.pool.page_handouts)
        if self.has_dense_layers:
            self.dense.init_forward_metadata_replay_cuda_graph(*args, **kwargs)

    def get_cuda_graph_seq_len_fill_value(self):
        return 1

    def support_triton(self):
        return self.dense.support_triton()

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs,
    ) -> torch.Tensor:
        if self.decode_kernels is None or not self.pool.has_chunk_repr(layer.layer_id):
            return self._forward(
                self.dense.forward_decode,
                q,
                k,
                v,
                layer,
                forward_batch,
                save_kv_cache,
                kwargs,
            )
        _refuse_layer_inputs(layer, kwargs)
        if layer.layer_id == self.pool.hsa_layer_ids[0]:
            self.decode_kernels.begin(forward_batch)
        if save_kv_cache and k is not None:
            self.pool.set_kv_buffer(layer, forward_batch.out_cache_loc, k, v)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        return self.decode_kernels.attend(q, layer, forward_batch.seq_lens).flatten(1)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs,
    ) -> torch.Tensor:
        return self._forward(
            self.dense.forward_extend,
            q,
            k,
            v,
            layer,
            forward_batch,
            save_kv_cache,
            kwargs,
        )

    def _forward(
        self, dense_forward, q, k, v, layer, forward_batch, save_kv_cache, kwargs
    ) -> torch.Tensor:
        """One layer; q ``[T, H_q * D]``, k and v ``[T, H_kv, D]``, returns ``[T, H_q * D_v]``."""
        if not self.pool.has_chunk_repr(layer.layer_id):
            return dense_forward(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
            )
        _refuse_layer_inputs(layer, kwargs)
        md = self.forward_metadata
        self.counters.add("rows_dense", md.rows - md.sparse_rows)
        # Dense backends differ in how they scale an 8-bit cache and which keys they read from it.
        if md.max_candidates == 0 and not self.quantised:
            o = dense_forward(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache
            )
            self._write_representations(layer, forward_batch.out_cache_loc)
            return o

        if save_kv_cache and k is not None:
            self._set_kv_buffer(layer, forward_batch.out_cache_loc, k, v)
        self._write_representations(layer, forward_batch.out_cache_loc)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        o = self._attend(q, layer, forward_batch.forward_mode.is_decode())
        return o.to(q.dtype).flatten(1)

    def _set_kv_buffer(self, layer, slots, k, v) -> None:
        if self.quantised:
            # The pool divides what it is given in place.
            self.pool.set_kv_buffer(
                layer, slots, k.clone(), v.clone(), layer.k_scale, layer.v_scale
            )
        else:
            self.pool.set_kv_buffer(layer, slots, k, v)

    def _scales(self, layer: RadixAttention) -> Tuple[float, float]:
        """Dequantisation factors of the layer's cached keys and values."""
        if not self.quantised or layer.k_scale is None:
            return 1.0, 1.0
        return layer.k_scale_float, layer.v_scale_float

    def _write_representations(
        self, layer: RadixAttention, out_cache_loc: torch.Tensor
    ) -> None:
        """Represent the pages that this pass completes, and heal complete pages that have no valid E_i."""
        if self.config.strict:
            strict.check_page_table(self.forward_metadata, out_cache_loc, self.pool)
        if not self.pool.chunk_repr_kind.stored:
            return
        self._write_missing(layer)
        if self.config.strict:
            strict.check_representations(
                self.forward_metadata, self.pool, layer.layer_id, self._scales(layer)[0]
            )

    def _write_missing(self, layer: RadixAttention) -> None:
        md = self.forward_metadata
        valid = self.pool.chunk_repr_valid(
            layer.layer_id, md.real_page_table, md.page_version
        )
        missing = md.page_complete & ~valid & ~md.page_completed_now
        page_ids, healed, versions = _distinct_pages(md, missing)
        if page_ids.numel() == 0:
            return
        reprs = chunk_repr_fwd(
            self.pool.get_key_buffer(layer.layer_id),
            page_ids,
            page_size=md.page_size,
            kind=self.config.chunk_repr,
            k_scale=self._scales(layer)[0],
        )
        self.pool.save_chunk_repr(layer.layer_id, page_ids, reprs, versions)
        self.counters.add("reprs_written", (~healed).sum())
        self.counters.add("reprs_healed", healed.sum())

    def _attend(
        self, q: torch.Tensor, layer: RadixAttention, decode: bool
    ) -> torch.Tensor:
        """Local part, selection, selected part, merge; returns ``[T, H_q, D_v]`` float32."""
        md = self.forward_metadata
        k_buffer, v_buffer = self.pool.get_kv_buffer(layer.layer_id)
        k_scale, v_scale = self._scales(layer)
        attention = dict(
            page_size=md.page_size,
            sm_scale=layer.scaling,
            logit_cap=layer.logit_cap,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        local = dict(
            attention,
            window_size=self.config.effective_window,
            sink_pages=self.config.sink_pages,
        )
        table, seq_lens = md.real_page_table, md.cache_seqlens_int32
        if decode:
            o_local, lse_local = decode_local_fwd(
                q, k_buffer, v_buffer, table, seq_lens, **local
            )
        else:
            o_local, lse_local = extend_local_fwd(
                q, k_buffer, v_buffer, table, md.cu_seqlens_q, seq_lens, **local
            )

        if md.max_candidates == 0:
            return o_local
        selected, scores = self._select(q, layer, lse_local)
        if self.config.weight_mode == "mass":
            scores = None
        if decode:
            o_pages, lse_pages = decode_hsa_fwd(
                q,
                k_buffer,
                v_buffer,
                selected,
                table,
                seq_lens,
                scores=scores,
                **attention,
            )
        else:
            o_pages, lse_pages = extend_hsa_fwd(
                q,
                k_buffer,
                v_buffer,
                selected,
                md.cu_seqlens_q,
                seq_lens,
                scores=scores,
                **attention,
            )
        o, _ = merge_state(o_local, lse_local, o_pages, lse_pages)
        return o

    def _select(
        self, q: torch.Tensor, layer: RadixAttention, lse_local: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        md = self.forward_metadata
        valid = md.page_complete & self.pool.chunk_repr_valid(
            layer.layer_id, md.real_page_table, md.page_version
        )
        selected, scores = self.selector.select(
            q,
            self.pool.chunk_repr_pages(layer.layer_id),
            valid,
            md,
            self._score_scale(layer),
            lse_local if self.selector.needs_local_lse else None,
        )
        self.counters.add("rows_sparse", md.sparse_rows)
        self.counters.add("pages_candidate", md.pages_candidate * selected.shape[1])
        self.counters.add("pages_selected", (selected >= 0).sum())
        return selected, scores

    def _score_scale(self, layer: RadixAttention) -> float:
        """Softmax scale of page scores: keys that serve as representations are still quantised."""
        if self.pool.chunk_repr_kind.stored:
            return layer.scaling
        return layer.scaling * self._scales(layer)[0]


def num_heads_of(model: torch.nn.Module, layer_id: int) -> int:
    """Query heads of an attention layer on this rank."""
    return next(
        module.tp_q_head_num
        for module in model.modules()
        if isinstance(module, RadixAttention) and module.layer_id == layer_id
    )


def _refuse_layer_inputs(layer: RadixAttention, kwargs: dict) -> None:
    if kwargs:
        raise NotImplementedError(
            f"layer {layer.layer_id} passes {', '.join(kwargs)} to its attention, which HSA does not support; "
            "exclude the layer with --hsa-layers."
        )


def _distinct_pages(
    md: HSAMetadata, missing: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Physical pages to represent, each once: those completed now and those ``missing`` ``[B, max_pages]``.

    Returns:
        (page_ids ``[N]``, whether the page is healed ``[N]`` bool, its version ``[N]`` int64).
    """
    todo = md.page_completed_now | missing
    page_ids, inverse = torch.unique(md.real_page_table[todo], return_inverse=True)
    healed = torch.zeros_like(page_ids, dtype=torch.bool)
    healed[inverse] = missing[
        todo
    ]  # shared pages agree: they were complete for all or for none
    versions = torch.empty_like(page_ids, dtype=torch.int64)
    versions[inverse] = md.page_version[todo]
    return page_ids, healed, versions
