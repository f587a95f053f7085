# SPDX-License-Identifier: Apache-2.0
"""HSAAttnBackend: schedules the HSA ops of each layer. No mathematics lives here."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.hsa import counters as hsa_counters
from sglang.srt.layers.attention.hsa import decode_kernels
from sglang.srt.layers.attention.hsa.config import FIELD_PREFIX, HSAConfig
from sglang.srt.layers.attention.hsa.decode_kernels import DecodeKernels
from sglang.srt.layers.attention.hsa.extend_kernels import ExtendKernels
from sglang.srt.layers.attention.hsa.reference_pass import ReferencePass
from sglang.srt.layers.attention.hsa.scales import kv_scales
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)


class HSAAttnBackend(AttentionBackend):
    """Hierarchical sparse attention over the paged KV cache.

    Each HSA layer writes K and V, represents the pages that became complete, selects pages for every query and
    attends sinks, selected pages and window under one softmax. Other layers, and extend passes in which no query
    has a page to select, go to the dense backend. On a CUDA device HSA runs on Triton kernels, decode eagerly or
    in a CUDA graph; elsewhere, and under ``--hsa-strict``, on the torch references. A layer that passes
    ``hsa_mask_last_slot=True`` to its attention has no key in the last slot of a page (see ``layout``), and none of its
    passes goes to the dense backend.

    Args:
        model_runner: its server arguments chose HSA, and its pool keeps representations.
        draft_steps: steps of a multi-step draft that this backend serves; 0 for any other use.

    Raises:
        ValueError: if the pool keeps no representations.
    """

    def __init__(self, model_runner: ModelRunner, draft_steps: int = 0):
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
        self.counters = hsa_counters.HSACounters(model_runner.device)
        if (
            not model_runner.is_draft_worker
        ):  # the server's counts are the target model's
            hsa_counters.register(self.counters, self.pool.get_chunk_repr_size_bytes())
        self.decode_kernels = self._make_decode_kernels(model_runner, draft_steps)
        self.has_dense_layers = any(
            not self.pool.has_chunk_repr(module.layer_id)
            for module in model_runner.model.modules()
            if isinstance(module, RadixAttention)
        )
        self.forward_metadata: ReferencePass | ExtendKernels | None = None

    def _make_decode_kernels(
        self, model_runner: ModelRunner, draft_steps: int
    ) -> DecodeKernels | None:
        if torch.device(model_runner.device).type != "cuda":
            return None
        if reason := decode_kernels.unsupported(self.config):
            logger.warning(f"HSA runs on the torch reference ops: {reason}.")
            return None
        return make_decode_kernels(
            model_runner, self.config, self.counters, draft_steps
        )

    def init_forward_metadata(self, forward_batch: ForwardBatch):
        if self.decode_kernels is None:
            self.forward_metadata = ReferencePass(
                forward_batch, self.pool, self.config, self.counters
            )
        elif _is_rows(forward_batch.forward_mode):
            self.forward_metadata = None
            self.decode_kernels.prepare(self.pool.built_at(forward_batch))
        else:
            self.forward_metadata = self.decode_kernels.extend(forward_batch)
        if self.has_dense_layers or self._goes_dense(forward_batch):
            self.dense.init_forward_metadata(forward_batch)

    def _goes_dense(self, forward_batch: ForwardBatch) -> bool:
        """Whether HSA layers hand this pass to the dense backend: no row has a page to select."""
        # Dense backends differ in how they scale an 8-bit cache and which keys they read from it, and in where they
        # find the lengths of a draft extend.
        return (
            self.forward_metadata is not None
            and self.forward_metadata.max_candidates == 0
            and not self.quantised
            and not forward_batch.forward_mode.is_draft_extend()
        )

    # CUDA graphs hold decode, verification and draft extend on the decode kernels, whose buffers are static and which
    # read the graph runner's own tensors of lengths and request indices. The host prepares a replay before it builds
    # another batch, so the pool's count of hand-outs is still this batch's.

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int):
        if self.decode_kernels is None:
            raise ValueError(
                "--attention-backend hsa decodes this model on its reference ops, which no CUDA graph can hold; "
                "add --disable-cuda-graph."
            )
        self.decode_kernels.reserve(max_bs)
        if self.has_dense_layers:
            self.dense.init_cuda_graph_state(max_bs, max_num_tokens)

    def init_forward_metadata_capture_cuda_graph(self, *args, **kwargs):
        self.forward_metadata = None
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
        hsa_mask_last_slot: bool = False,
        **kwargs,
    ) -> torch.Tensor:
        return self._forward(
            self.dense.forward_decode,
            q,
            k,
            v,
            layer,
            forward_batch,
            save_kv_cache,
            hsa_mask_last_slot,
            kwargs,
        )

    def forward_rows(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        step: int = 0,
        hsa_mask_last_slot: bool = False,
        **kwargs,
    ) -> torch.Tensor:
        """One HSA layer on the decode kernels; shapes as in ``forward_decode``, ``step`` of a multi-step draft."""
        _refuse_layer_inputs(layer, kwargs)
        if layer.layer_id == self.pool.hsa_layer_ids[0]:
            self.decode_kernels.begin(forward_batch, step)
        if save_kv_cache and k is not None:
            self._set_kv_buffer(layer, forward_batch.out_cache_loc, k, v)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        scales = kv_scales(layer, self.pool)
        return self.decode_kernels.attend(
            q, layer, scales, step, hsa_mask_last_slot
        ).flatten(1)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        hsa_mask_last_slot: bool = False,
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
            hsa_mask_last_slot,
            kwargs,
        )

    def _forward(
        self,
        dense_forward,
        q,
        k,
        v,
        layer,
        forward_batch,
        save_kv_cache,
        mask_last_slot,
        kwargs,
    ) -> torch.Tensor:
        """One layer; q ``[T, H_q * D]``, k and v ``[T, H_kv, D]``, returns ``[T, H_q * D_v]``."""
        if not self.pool.has_chunk_repr(layer.layer_id):
            _refuse_hsa_inputs(layer, mask_last_slot, kwargs)
            return dense_forward(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
            )
        if self.decode_kernels is not None and self.forward_metadata is None:
            return self.forward_rows(
                q,
                k,
                v,
                layer,
                forward_batch,
                save_kv_cache,
                hsa_mask_last_slot=mask_last_slot,
                **kwargs,
            )
        _refuse_layer_inputs(layer, kwargs)
        scales = kv_scales(layer, self.pool)
        # Dense backends mask no slot.
        if self._goes_dense(forward_batch) and not mask_last_slot:
            o = dense_forward(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache
            )
            self.counters.add("rows_dense", self.forward_metadata.rows)
            self.forward_metadata.write_representations(layer, scales)
            return o

        if save_kv_cache and k is not None:
            self._set_kv_buffer(layer, forward_batch.out_cache_loc, k, v)
        self.forward_metadata.write_representations(layer, scales)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        o = self.forward_metadata.attend(q, layer, scales, mask_last_slot)
        return o.to(q.dtype).flatten(1)

    def _set_kv_buffer(self, layer, slots, k, v) -> None:
        if self.quantised:
            # The pool divides what it is given in place.
            self.pool.set_kv_buffer(
                layer, slots, k.clone(), v.clone(), layer.k_scale, layer.v_scale
            )
        else:
            self.pool.set_kv_buffer(layer, slots, k, v)


def make_decode_kernels(
    model_runner: ModelRunner,
    config: HSAConfig,
    counters: hsa_counters.HSACounters,
    draft_steps: int = 0,
) -> DecodeKernels:
    """The kernels for the HSA layers of a model and its pool."""
    pool, args = model_runner.token_to_kv_pool, model_runner.server_args
    layers = {
        module.layer_id: module
        for module in model_runner.model.modules()
        if isinstance(module, RadixAttention) and pool.has_chunk_repr(module.layer_id)
    }
    return DecodeKernels(
        pool,
        model_runner.req_to_token_pool,
        config,
        layers[pool.hsa_layer_ids[0]].tp_q_head_num,
        {layer_id: kv_scales(layer, pool) for layer_id, layer in layers.items()},
        counters,
        args.speculative_num_draft_tokens if args.speculative_algorithm else 1,
        draft_steps,
    )


def _is_rows(mode: ForwardMode) -> bool:
    """Passes that the decode kernels run eagerly. Of draft extend, whose lengths differ, they run the graphs."""
    return mode.is_decode() or mode.is_target_verify()


def _refuse_layer_inputs(layer: RadixAttention, kwargs: dict) -> None:
    if unknown := [name for name in kwargs if name.startswith(FIELD_PREFIX)]:
        raise NotImplementedError(
            f"layer {layer.layer_id} passes {', '.join(unknown)} to its attention, but of such arguments HSA knows "
            "hsa_mask_last_slot alone; leave them out."
        )
    if kwargs:
        raise NotImplementedError(
            f"layer {layer.layer_id} passes {', '.join(kwargs)} to its attention, which HSA does not support; "
            "exclude the layer with --hsa-layers."
        )


def _refuse_hsa_inputs(
    layer: RadixAttention, mask_last_slot: bool, kwargs: dict
) -> None:
    passed = [name for name in kwargs if name.startswith(FIELD_PREFIX)]
    if mask_last_slot:
        passed.append("hsa_mask_last_slot")
    if passed:
        raise NotImplementedError(
            f"layer {layer.layer_id} passes {', '.join(passed)} to its attention, which is dense and masks nothing; "
            "name the layer in --hsa-layers or leave them out."
        )
