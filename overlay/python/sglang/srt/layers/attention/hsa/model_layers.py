# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model use HSA, and whether they can: known from its modules, so asked before weights are read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Dict, FrozenSet, Iterator, Sequence, Tuple

import torch

from sglang.srt.configs.hils import is_hils
from sglang.srt.layers.attention.hsa import compat, model_refusals
from sglang.srt.layers.attention.hsa.config import select_layers
from sglang.srt.layers.attention.hsa.layer_contract import check_layers
from sglang.srt.layers.attention.hsa.ops.extend.plan import check_head_dim
from sglang.srt.layers.attention.hsa.page_repr import kind_named
from sglang.srt.layers.attention.hsa.rotary_channels import check_rotary
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.server_args import ServerArgs

KV_CACHE_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
# By the names that --kv-cache-dtype has for them; any other leaves the model's.
CACHE_DTYPES = {
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}


def check_model(model: torch.nn.Module, config: ModelConfig) -> torch.nn.Module:
    """The model, of which every module exists but no weight has been read, if HSA can serve it or is not asked to.

    Raises:
        ValueError: for a model that HSA does not support, with each reason that its layers give, one per line.
    """
    try:
        args = compat.serving_arguments()
    except ValueError:  # a model outside of a server
        return model
    if not serves_with_hsa(args, config.is_draft_model):
        if is_hils(config.hf_config):
            raise ValueError(
                f"{config.hf_config.model_type} checkpoints were trained for HSA, which no other attention backend "
                "computes; add --attention-backend hsa."
            )
        return model
    if type(model).__name__ == model_refusals.TRANSFORMERS_CLASS:
        raise ValueError(model_refusals.TRANSFORMERS_BACKEND.message)
    layer_ids = choose_layers(model, config, args, config.is_draft_model)
    dense_layers = len(layer_ids) < config.num_hidden_layers
    dtype = cache_dtype(model, config, args.kv_cache_dtype)
    if is_hils(config.hf_config) and dtype.itemsize == 1:
        raise ValueError(
            f"--attention-backend hsa does not support a {dtype} KV cache of a HiLS checkpoint, which its quantisation "
            "asks for; add --kv-cache-dtype bf16."
        )
    checks = [partial(check_cache, dtype, args.device, dense_layers)]
    if args.device == "cuda" and not args.hsa_strict:
        checks.append(partial(check_head_dim, config.head_dim))
    if kind_named(args.hsa_chunk_repr).slow:
        names = attention_names(model, layer_ids)
        checks.append(partial(check_rotary, model, names, config.head_dim))
    problems = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return model


def cache_dtype(model: torch.nn.Module, config: ModelConfig, asked: str) -> torch.dtype:
    """Dtype of the key-value cache, as ModelRunner will find it once weights are loaded; ``asked``: --kv-cache-dtype."""
    if asked == "auto":
        quantisation = getattr(model, "quant_config", None)
        algorithm = getattr(quantisation, "kv_cache_quant_algo", None)
        fp8 = isinstance(algorithm, str) and algorithm.upper() == "FP8"
        asked = "fp8_e4m3" if fp8 else asked
    return CACHE_DTYPES.get(asked, config.dtype)


def check_cache(dtype: torch.dtype, device: str, dense_layers: bool) -> None:
    """Raise ValueError for a key-value cache that HSA cannot read, or that the dense layers beside it cannot."""
    if dtype not in KV_CACHE_DTYPES:
        raise ValueError(
            f"--attention-backend hsa does not support a {dtype} KV cache, which the checkpoint "
            "asks for; add --kv-cache-dtype bf16."
        )
    if device != "cpu" or dtype.itemsize > 1:
        return
    if not compat.cpu_has_fp8_caches():
        raise ValueError(
            f"--attention-backend hsa does not support a {dtype} KV cache on a CPU with this release of SGLang, "
            "which leaves it to intel_amx; leave --kv-cache-dtype at auto."
        )
    # torch cannot index an 8-bit cache on a CPU, and torch_native does.
    if dense_layers:
        raise ValueError(
            f"--attention-backend hsa does not support a {dtype} KV cache on a CPU "
            "unless every layer uses HSA; add --hsa-layers all or leave --kv-cache-dtype at auto."
        )


def serves_with_hsa(args: ServerArgs, is_draft: bool) -> bool:
    """Whether the served model uses HSA, or the draft model beside it."""
    if is_draft and args.speculative_draft_attention_backend:
        return args.speculative_draft_attention_backend == "hsa"
    return args.attention_backend == "hsa"


def choose_layers(
    model: torch.nn.Module, config: ModelConfig, args: ServerArgs, is_draft: bool
) -> Tuple[int, ...]:
    """Layers of a model that use HSA, ascending.

    Sliding-window layers never do: they go to the dense backend.

    Raises:
        ValueError: for attention that is not causal, when ``--hsa-layers`` leaves nothing, and for layers of those that
            ask for what HSA does not compute.
    """
    eligible = set()
    layers = list(attentions(model))
    for name, module in layers:
        # Bidirectional decoders (Gemma 3) are causal but for the tokens of an image.
        causal = module.attn_type == AttentionType.DECODER or (
            module.attn_type == AttentionType.DECODER_BIDIRECTIONAL
            and not config.is_multimodal
        )
        if module.is_cross_attention or not causal:
            raise ValueError(
                f"--attention-backend hsa does not support the attention of {name}, which is not causal "
                "self-attention; choose another --attention-backend."
            )
        if module.sliding_window_size <= 0:
            eligible.add(module.layer_id)
    # --hsa-layers names layers of the served model, not of a draft model beside it.
    named = "all" if is_draft else args.hsa_layers
    chosen = select_layers(named, eligible, config.num_hidden_layers)
    check_layers((name, module) for name, module in layers if module.layer_id in chosen)
    return chosen


def sink_logits(model: torch.nn.Module) -> Dict[int, torch.Tensor]:
    """The learned sinks ``[H_q]`` of the attentions that have some, by number of the layer: the module around each has them."""
    modules = dict(model.named_modules())
    found = {}
    for name, module in attentions(model):
        sinks = getattr(modules[name.rpartition(".")[0]], "sinks", None)
        if sinks is not None:
            found[module.layer_id] = sinks
    return found


def layers_beyond(
    dense_backend: str, model: torch.nn.Module, windows_apart: bool
) -> FrozenSet[int]:
    """Layers that the dense backend cannot attend: torch_native reads no sinks, and from one pool alone.

    Args:
        windows_apart: whether layers with a sliding window have a pool of their own.
    """
    if dense_backend != "torch_native":
        return frozenset()
    slide = {x.layer_id for _, x in attentions(model) if x.sliding_window_size > 0}
    return frozenset(sink_logits(model)) | (slide if windows_apart else set())


def attention_names(model: torch.nn.Module, layer_ids: Sequence[int]) -> list[str]:
    """Names in the model of the attentions of some layers, in their order."""
    names = {module.layer_id: name for name, module in attentions(model)}
    return [names[i] for i in layer_ids]


def attentions(model: torch.nn.Module) -> Iterator[Tuple[str, RadixAttention]]:
    """The attentions of a model and their names in it."""
    for name, module in model.named_modules():
        if isinstance(module, RadixAttention):
            yield name, module
