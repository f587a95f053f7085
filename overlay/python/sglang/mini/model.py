# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face model: loading, replacing its attention through transformers' interface, running it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from sglang.mini.api import MiniError
from sglang.mini.attention import AttentionBackend
from sglang.mini.kv_cache import CacheState, LayerSpec, PagedKVCache

logger = logging.getLogger(__name__)

ATTENTION = "sglang_mini"
# Each of these is compared with transformers' own generate() in the tests.
MODEL_TYPES = (
    "gemma gemma2 gemma3_text llama mistral olmo2 phi3 qwen2 qwen3 qwen3_moe".split()
)
# Rotary embeddings that change with the longest sequence of a batch would make a request depend on its neighbours.
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}
# What models pass to their attention beside the tensors that is of no concern to it.
HARMLESS = {"position_ids", "use_cache", "output_attentions", "output_router_logits"}
HARMLESS |= {"dropout"}  # 0 in evaluation


def mini_attention(module, query, key, value, attention_mask, attend=None, **options):
    """Attention function for transformers: q ``[1, H_q, T, D]``, k and v ``[1, H_kv, T, D]`` -> ``[1, T, H_q, D]``.

    ``attend`` comes from the call of the model.
    """
    if attend is None:
        raise MiniError(
            "the attention of this model belongs to a MiniEngine: call model.set_attn_implementation('sdpa') "
            "before using the model without it."
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(module, q, k, v, **options)[None], None


AttentionInterface.register(ATTENTION, mini_attention)


def layer_spec(module, q, k, v, *, scaling=None, **options) -> LayerSpec:
    """What a layer asks of its attention: q ``[T, H_q, D]``, k and v ``[T, H_kv, D]``, transformers' options.

    Raises:
        MiniError: the backends do not have it.
    """
    window = options.pop("sliding_window", None) or 0
    softcap = options.pop("softcap", None) or 0.0
    asked = {name for name, value in options.items() if value is not None}
    if unknown := sorted(asked - HARMLESS):
        raise MiniError(f"its attention takes {', '.join(unknown)}")
    if k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        raise MiniError("its queries, keys and values have different sizes")
    if not getattr(module, "is_causal", True):
        raise MiniError("its attention is not causal")
    sizes = q.shape[1], *k.shape[1:]
    scaling = sizes[-1] ** -0.5 if scaling is None else scaling
    return LayerSpec(module.layer_idx, *sizes, scaling, window, softcap)


def pick_device(name: Optional[str]) -> torch.device:
    """The named device, or else CUDA if there is one, or else the CPU.

    Raises:
        MiniError: torch does not know it or does not find it.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MiniError(
            f"device {name} cannot be used ({str(error).splitlines()[0]}): use cpu."
        ) from None
    return device


def load(
    path: str, device: torch.device, dtype: Optional[torch.dtype]
) -> Tuple[torch.nn.Module, Any]:
    """Model and tokenizer (None if the folder has none) of a checkpoint.

    Args:
        dtype: None is float32 on a CPU and the checkpoint's own elsewhere.

    Raises:
        MiniError: there is no such folder, or its weights are not complete.
    """
    hint = "use the folder of a Hugging Face checkpoint."
    if not Path(path).exists():  # transformers would look for it on the hub
        raise MiniError(f"model folder {path} does not exist: {hint}")
    if not (Path(path) / "config.json").is_file():
        raise MiniError(f"{path} has no config.json: {hint}")
    dtype = dtype or (torch.float32 if device.type == "cpu" else "auto")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MiniError(f"model {path} cannot be loaded: {reason}") from error
    if missing := sorted(info["missing_keys"]):
        raise MiniError(
            f"model {path} lacks {len(missing)} weights, among them {missing[0]}: use a complete checkpoint."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # whatever the tokenizer's own code raises
        logger.warning(f"{path} has no usable tokenizer ({error}): give token ids")
        tokenizer = None
    return model.to(device), tokenizer


class ModelRunner:
    """Runs a causal language model whose attention goes to the paged cache.

    Args:
        model: a loaded transformers model; its attention implementation is set.

    Attributes:
        specs: what each layer asks of its attention.

    Raises:
        MiniError: the model's attention cannot be replaced, or the engine was not tested with it.
    """

    def __init__(self, model: torch.nn.Module):
        self.model, self.device = model.eval(), model.device
        self.dtype = model.get_input_embeddings().weight.dtype
        config = model.config
        try:
            self.specs = self._probe(config)
        except MiniError as error:
            name = f"{type(model).__name__} (model type {config.model_type})"
            raise MiniError(f"{name} is not supported: {error}.") from None

    def _probe(self, config) -> List[LayerSpec]:
        """Specs of all layers, from a pass of two tokens."""
        if config.model_type not in MODEL_TYPES:
            raise MiniError(f"use one of {', '.join(MODEL_TYPES)}")
        rope = getattr(config, "rope_parameters", None) or {}
        by_kind = [rope, *(x for x in rope.values() if isinstance(x, dict))]
        for kind in BATCH_DEPENDENT_ROPE & {x.get("rope_type") for x in by_kind}:
            raise MiniError(f"{kind} rotary embeddings depend on the other requests")
        self.model.set_attn_implementation(ATTENTION)
        rotary = getattr(self.model.base_model, "rotary_emb", None)
        specs = []

        def attend(module, q, k, v, **options):
            spec = layer_spec(module, q, k, v, **options)
            specs.append(replace(spec, rotary=rotary))
            return torch.zeros_like(q)

        tokens = torch.arange(2, device=self.device)
        self._run(tokens, tokens, tokens[1:], attend)
        specs.sort(key=lambda spec: spec.layer)
        layers = [spec.layer for spec in specs]
        shapes = {(s.num_heads, s.num_kv_heads, s.head_dim) for s in specs}
        if layers != list(range(config.num_hidden_layers)) or len(shapes) != 1:
            raise MiniError("its layers do not all have one attention of one shape")
        return specs

    @torch.inference_mode()
    def _run(self, ids, positions, last, attend: Callable) -> torch.Tensor:
        """Logits after the tokens ``last`` ``[B]`` of ``ids`` ``[T]`` at ``positions`` ``[T]``: ``[B, vocab]``."""
        return self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            attend=attend,
            logits_to_keep=last,
        ).logits[0]

    def forward(
        self,
        kv: PagedKVCache,
        backend: AttentionBackend,
        batch: Sequence[Tuple[int, Sequence[int], int]],
    ) -> torch.Tensor:
        """Run new tokens of several requests in one packed sequence.

        Args:
            batch: of each request its row in ``kv.req_to_token``, its new tokens and the position of the first of them.

        Returns:
            logits of each request's last new token ``[B, vocab]`` float32.
        """
        rows = [row for row, _, _ in batch]
        spans = [(first, first + len(tokens)) for _, tokens, first in batch]
        state = CacheState(kv, self.specs, rows, spans)

        def attend(module, *qkv, **_):
            state.at(module.layer_idx)
            if state.decode:
                return backend.decode(qkv, state)
            return backend.prefill(qkv, state, state.positions)

        ids = [token for _, tokens, _ in batch for token in tokens]
        ids = torch.tensor(ids, device=self.device)
        last = state.cu_seqlens_q[1:] - 1
        return self._run(ids, state.positions, last, attend).float()
