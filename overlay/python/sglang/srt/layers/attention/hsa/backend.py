# SPDX-License-Identifier: Apache-2.0
"""HSAAttnBackend: schedules the HSA ops of each layer. No mathematics lives here."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, FrozenSet, Optional, Union

import torch

from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa import counters as hsa_counters
from sglang.srt.layers.attention.hsa.config import SINK_BACKENDS, WHOLE_PAST, HSAConfig
from sglang.srt.layers.attention.hsa.layer_inputs import LayerInputs, refuse_inputs
from sglang.srt.layers.attention.hsa.model_layers import layers_beyond, sink_logits
from sglang.srt.layers.attention.hsa.ops.common import shared_bytes
from sglang.srt.layers.attention.hsa.ops.extend.plan import choose_tiling
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select.by_kind import check_device
from sglang.srt.layers.attention.hsa.passes.base import AttentionPass
from sglang.srt.layers.attention.hsa.passes.decode import DecodeState
from sglang.srt.layers.attention.hsa.passes.extend import ExtendPass, prepare_prompts
from sglang.srt.layers.attention.hsa.passes.landmark_decode import LandmarkDecodeState
from sglang.srt.layers.attention.hsa.passes.landmark_extend import LandmarkExtendPass
from sglang.srt.layers.attention.hsa.passes.landmark_reference import (
    LandmarkReferencePass,
)
from sglang.srt.layers.attention.hsa.passes.reference import ReferencePass
from sglang.srt.layers.attention.hsa.selection_watch import SelectionWatch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.page_repr_pool import PageReprMixin

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.landmark_rows import LandmarkRows
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)

KERNELS = frozenset({"decode", "extend"})


class HSAAttnBackend(AttentionBackend):
    """Hierarchical sparse attention over the paged KV cache.

    Each HSA layer writes K and V, represents the pages that became complete, selects pages for every query and
    attends sinks, selected pages and window under one softmax. Other layers, and extend passes in which no query
    has a page to select, go to the dense backend; which tokens of prompts have none, ``--hsa-prefill`` says.

    On a CUDA device HSA runs on Triton kernels, decode eagerly or in a CUDA graph, and decode attends layers without
    HSA, too, unless they have a sliding window; elsewhere, and under ``--hsa-strict``, on the torch references. A
    layer that passes ``hsa_mask_last_slot=True`` to its attention has no key in the last slot of a page (see
    ``layout``), and none of its passes goes to the dense backend.

    Args:
        model_runner: its server arguments chose HSA, and its pool keeps representations.
        draft_steps: steps of a multi-step draft that this backend serves; 0 for any other use.
        kernels: passes that run on Triton kernels, of KERNELS; None for all on a CUDA device and none elsewhere.

    Attributes:
        forward_pass: the pass whose layers run now.
        batch_invariant: as of Tiling.

    Raises:
        ValueError: if the pool keeps no representations, and for a head dimension above 256 with kernels.
    """

    def __init__(
        self,
        model_runner: ModelRunner,
        draft_steps: int = 0,
        kernels: Optional[FrozenSet[str]] = None,
    ):
        super().__init__()
        # SGLang finds a batch's pools in the backend, by these names.
        self.pool = self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.req_to_token_pool = model_runner.req_to_token_pool
        if not isinstance(self.pool, PageReprMixin):
            raise ValueError(
                f"--attention-backend hsa needs a pool with page representations, not {type(self.pool).__name__}; "
                "choose another --attention-backend for this model."
            )
        self.quantised = self.pool.dtype.itemsize == 1
        args = compat.arguments(model_runner.server_args)
        self.config = HSAConfig.from_server_args(args)
        self.batch_invariant = args.enable_deterministic_inference
        # No other backend has rows of landmarks, so there is none beside HSA.
        self.dense = None
        if not self.config.has_landmark_rows:
            self.dense = ATTENTION_BACKENDS[self.config.dense_backend](model_runner)
        self.counters = hsa_counters.HSACounters(model_runner.device)
        if not model_runner.is_draft_worker:
            # The server's counts are the target model's.
            hsa_counters.register(self.counters, self.pool.page_repr_bytes())
        layers = {
            module.layer_id: module
            for module in model_runner.model.modules()
            if isinstance(module, RadixAttention)
        }
        self.layers = frozenset(layers)
        self.kernels = self._kernels_on(model_runner.device, kernels)
        if self.config.has_landmark_rows:
            self.extend_pass, self.reference_pass = (
                LandmarkExtendPass,
                LandmarkReferencePass,
            )
            self.beyond_dense = self.layers
        else:
            self.extend_pass, self.reference_pass = ExtendPass, ReferencePass
            self.beyond_dense = layers_beyond(
                self.config.dense_backend, model_runner.model, self.pool.windows_apart
            )
        self.attended = self.pool.hsa_layers | self.beyond_dense
        self.decode: Optional[Union[DecodeState, LandmarkDecodeState]] = None
        self.tree_mask = None
        if self.kernels:
            first = layers[self.pool.hsa_layer_ids[0]]
            group = first.tp_q_head_num // self.pool.head_num
            self.tiling = choose_tiling(
                group, self.pool.head_dim, self.config
            )._replace(batch_invariant=self.batch_invariant)
            check_device(
                self.config,
                self.tiling,
                group,
                self.pool.head_dim,
                shared_bytes(model_runner.device),
            )
            self.scratch = Scratch(model_runner.device)
        if "extend" in self.kernels and not model_runner.is_draft_worker:
            begin, chunk = time.perf_counter(), args.chunked_prefill_size
            prepare_prompts(
                self.scratch,
                self.pool,
                self.config,
                self.tiling,
                first,
                model_runner.dtype,
                self.req_to_token_pool.req_to_token.shape[1],
                chunk if chunk and chunk > 0 else args.max_prefill_tokens,
                self._a_window_layer(layers),
                sink_logits(model_runner.model).get(first.layer_id),
            )
            logger.info(
                f"HSA made its kernels for prompts in {time.perf_counter() - begin:.1f} s; "
                f"they take {self.scratch.nbytes() >> 20} MB of scratch."
            )
        if "decode" in self.kernels:
            drafts = (
                args.speculative_num_draft_tokens if args.speculative_algorithm else 1,
                draft_steps,
            )
            landmarks = self.config.has_landmark_rows
            decode_state = LandmarkDecodeState if landmarks else DecodeState
            self.decode = decode_state(
                self.pool,
                self.req_to_token_pool,
                self.config,
                layers,
                self.counters,
                *(() if landmarks else drafts),
                batch_invariant=self.batch_invariant,
            )
            # Drafts wait for lengths on the host. The decode kernels read none there, and prompts bring theirs.
            self.needs_cpu_seq_lens = self.decode_needs_dense and getattr(
                self.dense, "needs_cpu_seq_lens", True
            )
            if args.speculative_algorithm and not model_runner.is_draft_worker:
                self.tree_mask = compat.unread_tree_mask(
                    len(self.decode.req_to_token),
                    args.speculative_num_draft_tokens,
                    model_runner.device,
                )
        self.watch: Optional[SelectionWatch] = None
        if not model_runner.is_draft_worker:
            self.watch = SelectionWatch(self.counters, self.config.shortest_sparse)
        self.forward_pass: Optional[AttentionPass] = None
        self.goes_dense = False

    def _a_window_layer(self, layers: dict) -> Optional[RadixAttention]:
        """A layer with a sliding window, of those that HSA attends: they are where rows of landmarks are."""
        windows = (x for x in layers.values() if x.sliding_window_size > 0)
        return next(windows, None) if self.config.has_landmark_rows else None

    def _kernels_on(
        self, device: str, asked: Optional[FrozenSet[str]]
    ) -> FrozenSet[str]:
        if asked is not None:
            return asked
        if torch.device(device).type != "cuda":
            return frozenset()
        if reason := self.config.needs_references:
            logger.warning(f"HSA runs on the torch reference ops: {reason}.")
            return frozenset()
        return KERNELS

    def init_forward_metadata(self, forward_batch: ForwardBatch):
        if self.watch:
            self.watch.tick()
        if forward_batch.forward_mode.is_idle():
            # A rank without requests joins the others' collectives, with as many rows as they have. No layer attends.
            self.forward_pass = None
            return
        self.forward_pass = self._make_pass(forward_batch)
        # Dense backends differ in how they scale an 8-bit cache and which keys they read from it, and in where they
        # find the lengths of a draft extend.
        mode = forward_batch.forward_mode
        unselective = self.forward_pass.max_candidates == 0
        if self.batch_invariant and self.config.dense_below < WHOLE_PAST:
            unselective = False  # a longer prompt in the batch would decide it
        self.goes_dense = unselective and not (
            self.quantised or compat.is_draft_extend(mode)
        )
        leaves_layers = self.goes_dense or self.layers > self.forward_pass.layers
        if self.dense is not None and leaves_layers:
            self.dense.init_forward_metadata(forward_batch)

    def _make_pass(self, forward_batch: ForwardBatch) -> AttentionPass:
        mode = forward_batch.forward_mode
        req_to_token = self.req_to_token_pool.req_to_token
        # Each request has as many rows as any other.
        if mode.is_decode() or mode.is_target_verify() or mode.is_draft_extend_v2():
            if "decode" in self.kernels:
                self.decode.prepare(self.pool.built_at(forward_batch))
                if self.decode.begins_early:
                    self.decode.begin(forward_batch)
                return self.decode.steps[0]
        elif "extend" in self.kernels:
            return self.extend_pass(
                forward_batch,
                self.pool,
                req_to_token,
                self.config,
                self.tiling,
                self.counters,
                self.scratch,
                self.attended,
            )
        return self.reference_pass(
            forward_batch,
            self.pool,
            req_to_token,
            self.config,
            self.counters,
            self.attended,
        )

    # CUDA graphs hold decode, verification and draft extend on the decode kernels, whose buffers are static and which
    # read the graph runner's own tensors of lengths and request indices. The host prepares a replay before it builds
    # another batch, so the pool's count of hand-outs is still this batch's.

    @property
    def decode_needs_dense(self) -> bool:
        """Whether the decode kernels leave layers to the dense backend."""
        return self.layers > self.decode.layers

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int):
        if self.decode is None:
            raise ValueError(
                "--attention-backend hsa decodes this model on its reference ops, which no CUDA graph can hold; "
                "add --disable-cuda-graph."
            )
        self.decode.reserve(max_bs)
        if self.decode_needs_dense:
            self.dense.init_cuda_graph_state(max_bs, max_num_tokens)

    def _prepare_capture(self) -> None:
        self.forward_pass, self.goes_dense = self.decode.steps[0], False

    def _prepare_replay(self) -> None:
        if self.watch:
            self.watch.tick()
        self.decode.prepare(self.pool.page_handouts)

    def init_forward_metadata_out_graph(
        self, forward_batch: ForwardBatch, in_capture: bool = False
    ):
        if in_capture:
            self._prepare_capture()
        else:
            self._prepare_replay()
        if self.decode.begins_before_graphs:
            self.decode.begin(forward_batch)
        if self.decode_needs_dense:
            self.dense.init_forward_metadata_out_graph(forward_batch, in_capture)

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch):
        if not self.decode.begins_before_graphs:
            self.decode.begin(forward_batch)
        if self.decode_needs_dense:
            self.dense.init_forward_metadata_in_graph(forward_batch)

    # Until 0.5.12 SGLang calls these two instead.

    def init_forward_metadata_capture_cuda_graph(self, *args, **kwargs):
        self._prepare_capture()
        if self.decode_needs_dense:
            self.dense.init_forward_metadata_capture_cuda_graph(*args, **kwargs)

    def init_forward_metadata_replay_cuda_graph(self, *args, **kwargs):
        self._prepare_replay()
        if self.decode_needs_dense:
            self.dense.init_forward_metadata_replay_cuda_graph(*args, **kwargs)

    def get_cuda_graph_seq_len_fill_value(self):
        return 1

    @property
    def verify_mask(self):
        """Where the tree of a batch's drafts is written before they are verified. Nothing reads it: HSA verifies chains."""
        return self.tree_mask

    def support_triton(self):
        return self.dense is None or self.dense.support_triton()

    def landmark_rows(self, forward_batch: ForwardBatch) -> Optional[LandmarkRows]:
        """Rows of the pass, which the model's layers get beside the batch's tokens; None for a model without landmarks."""
        return self.forward_pass.rows_of(forward_batch)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        hsa_mask_last_slot: bool = False,
        hsa_select_q: Optional[torch.Tensor] = None,
        sinks: Optional[torch.Tensor] = None,
        **kwargs,
    ) -> torch.Tensor:
        """One layer of any pass; q ``[T, H_q * D]``, k and v ``[T, H_kv, D]``, returns ``[T, H_q * D_v]``.

        With rows of landmarks T counts these, too. Sinks ``[H_q]`` are logits more of the softmax, without a value.
        """
        sparse = self.pool.has_page_repr(layer.layer_id)
        here = layer.layer_id in self.forward_pass.layers
        inputs = LayerInputs(hsa_mask_last_slot, hsa_select_q, sinks)
        refuse_inputs(layer, self.config, sparse, here, inputs, kwargs)
        # Dense backends mask no slot.
        stays = hsa_mask_last_slot or layer.layer_id in self.beyond_dense
        if not here or (self.goes_dense and not stays):
            if sinks is not None:
                if self.config.dense_backend not in SINK_BACKENDS:
                    raise NotImplementedError(
                        f"layer {layer.layer_id} passes sinks to its attention, which --hsa-dense-backend "
                        f"{self.config.dense_backend} does not read; use {' or '.join(SINK_BACKENDS)}."
                    )
                kwargs["sinks"] = sinks
            o = self.dense.forward(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
            )
            if sparse:
                self.counters.add("rows_dense", self.forward_pass.rows)
                self.forward_pass.write_representations(layer)
            return o

        self.forward_pass.enter_layer(layer, forward_batch)
        if save_kv_cache and k is not None:
            rows = self.forward_pass.landmark_rows
            if rows is not None:
                k, v = rows.drop(k), rows.drop(v)
            self._write_keys(layer, forward_batch.out_cache_loc, k, v)
        if sparse:
            self.forward_pass.write_representations(layer, inputs)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        return self.forward_pass.attend(q, layer, inputs).flatten(1)

    forward_extend = forward_decode

    def _write_keys(self, layer, slots, k, v) -> None:
        scales = ()
        if self.quantised:
            # The pool divides what it is given in place.
            k, v, scales = k.clone(), v.clone(), (layer.k_scale, layer.v_scale)
        if layer.sliding_window_size > 0:
            slots = self.forward_pass.windows.slots
            self.pool.set_window_buffer(layer, slots, k, v, *scales)
        else:
            self.pool.set_kv_buffer(layer, slots, k, v, *scales)
