# SPDX-License-Identifier: Apache-2.0
"""Models that HSA does not support, as far as their configuration says it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Callable, Tuple

from sglang.srt.configs.hils import is_hils
from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.layer_contract import (
    SERVED_WITH_SINKS,
    SINK_MODELS,
    SINK_TYPES,
)

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.server_args import ServerArgs


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A combination that start-up refuses.

    Attributes:
        feature: row of the support matrix.
        asked: what the user wrote or loaded.
        applies: whether (server arguments, model configuration) ask for it.
        reason: why it is not supported.
        instead: what to do.
    """

    feature: str
    asked: str
    applies: Callable[[ServerArgs, ModelConfig], bool]
    reason: str
    instead: str

    @property
    def message(self) -> str:
        return (
            f"--attention-backend hsa does not support {self.feature} ({self.asked}): "
            f"{self.reason}; {self.instead}."
        )


# What a configuration, or its class, has for layers whose state is not a key and a value per token.
STATE_FIELDS = ("mamba2_cache_params", "mamba_d_state", "linear_attn_config")
STATE_KINDS = {"mamba", "linear_attention", "conv"}

# The class that runs a model of the transformers library.
TRANSFORMERS_CLASS = "TransformersForCausalLM"

# Those that read images and were compared with what transformers computes.
SERVED_WITH_IMAGES = frozenset(
    {
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
    }
)


def _is_one_of(model: ModelConfig, *classes: str) -> bool:
    return not set(classes).isdisjoint(model.hf_config.architectures or ())


def _has_linear_attention(args: ServerArgs, model: ModelConfig) -> bool:
    """Whether a layer keeps a state of its own: Mamba, linear attention, short convolutions.

    The fields are looked for and not read: some are properties that need the groups of a running server.
    """
    config = model.hf_text_config
    given = vars(config)
    kinds = set(given.get("layer_types") or ())
    if getattr(config, "model_type", None) == "granitemoehybrid":
        # SGLang has no state for a Granite 4 of attention layers alone.
        return "mamba" in kinds
    return bool(kinds & STATE_KINDS) or any(
        name in given or hasattr(type(config), name) for name in STATE_FIELDS
    )


def is_early_release() -> bool:
    """Whether SGLang is 0.5.12 or earlier."""
    return not compat.graphs_hold_metadata()


def has_window_pool(model: ModelConfig) -> bool:
    """Whether layers with a sliding window have a pool of their own, in a model that was not trained for HSA."""
    return bool(model.is_hybrid_swa) and not is_hils(model.hf_config)


def reads_sinks(model: ModelConfig) -> bool:
    """Whether the attention of a model that is served has learned sinks."""
    return _is_one_of(model, *SERVED_WITH_SINKS)


def _runs_in_transformers(args: ServerArgs, model: ModelConfig) -> bool:
    return model.model_impl == "transformers" or _is_one_of(model, TRANSFORMERS_CLASS)


def _has_windows_of_exaone(args: ServerArgs, model: ModelConfig) -> bool:
    return _is_one_of(model, "Exaone4ForCausalLM", "ExaoneMoEForCausalLM") and (
        getattr(model.hf_config, "sliding_window_pattern", None) is not None
    )


def _has_two_head_dims(args: ServerArgs, model: ModelConfig) -> bool:
    config = model.hf_text_config
    return getattr(config, "global_head_dim", None) not in (
        None,
        getattr(config, "head_dim", None),
    )


def _has_block_sparse_layers(args: ServerArgs, model: ModelConfig) -> bool:
    """Whether layers of a Phi-3-small attend blocks: all but every n-th."""
    return _is_one_of(model, "Phi3SmallForCausalLM") and (
        getattr(model.hf_config, "dense_attention_every_n_layers", None) != 1
    )


def _has_other_sinks(args: ServerArgs, model: ModelConfig) -> bool:
    served = frozenset() if is_early_release() else SERVED_WITH_SINKS
    return (
        _is_one_of(model, *(SINK_MODELS - served))
        or getattr(model.hf_config, "model_type", None) in SINK_TYPES
        or bool(getattr(model.hf_config, "enable_sink_attention", False))
    )


def _reads_other_media(args: ServerArgs, model: ModelConfig) -> bool:
    served = frozenset() if is_early_release() else SERVED_WITH_IMAGES
    return model.is_multimodal and not _is_one_of(model, *served)


_OTHER = "choose another --attention-backend"

TRANSFORMERS_BACKEND = Refusal(
    "the Transformers modelling backend",
    "--model-impl transformers, or a model class that SGLang itself lacks",
    _runs_in_transformers,
    "it drops sliding windows, soft caps and sinks, so its layers would not be what the model's are",
    "use a model class of SGLang with --model-impl auto, or another --attention-backend",
)

# The one that an option lifts.
HYBRID_MEMORY = Refusal(
    "hybrid sliding-window memory",
    "a model whose sliding-window layers have a pool of their own, with SGLang 0.5.12 and earlier",
    lambda args, model: has_window_pool(model) and is_early_release(),
    "with those releases no model that has one has been served",
    "add --disable-hybrid-swa-memory",
)

MODEL_REFUSALS: Tuple[Refusal, ...] = (
    Refusal(
        "multi-head latent attention",
        "an MLA model",
        lambda args, model: model.attention_arch.name == "MLA",
        "its cache holds latent vectors, not the keys that representations are taken from",
        _OTHER,
    ),
    Refusal(
        "attention sinks",
        "a model whose attention has learned sinks, but gpt-oss since SGLang 0.5.13",
        _has_other_sinks,
        "no other has been compared with what transformers computes",
        _OTHER,
    ),
    Refusal(
        "encoder-decoder models",
        "an encoder-decoder model",
        lambda args, model: model.is_encoder_decoder,
        "cross attention has no causal past to select pages from",
        _OTHER,
    ),
    Refusal(
        "embedding models",
        "--is-embedding",
        lambda args, model: args.is_embedding or not model.is_generation,
        "an encoder attends in both directions and no page is ever complete to it",
        _OTHER,
    ),
    Refusal(
        "linear-attention hybrids",
        "a Mamba or linear-attention model",
        _has_linear_attention,
        "their cache is not the paged key-value pool that holds representations",
        _OTHER,
    ),
    HYBRID_MEMORY,
    Refusal(
        "heads of other sizes in sliding-window layers",
        "a Gemma 4 model",
        _has_two_head_dims,
        "its full-attention layers have heads of 512 dimensions, and HSA's kernels take 256",
        "use --attention-backend triton",
    ),
    Refusal(
        "chunked local attention",
        "a model with attention chunks",
        lambda args, model: model.is_local_attention_model
        or model.attention_chunk_size is not None,
        "its local layers mask keys by chunk, which neither window nor pages express",
        _OTHER,
    ),
    Refusal(
        "multimodal models",
        "a model with images, video or audio, but Qwen2-VL, Qwen2.5-VL and Qwen3-VL since SGLang 0.5.13",
        _reads_other_media,
        "no other has been compared with what transformers computes",
        _OTHER,
    ),
    TRANSFORMERS_BACKEND,
    Refusal(
        "sliding windows of EXAONE",
        "an EXAONE 4 or EXAONE MoE model with a sliding_window_pattern",
        _has_windows_of_exaone,
        "SGLang allows them with three backends by name, and HSA has not been compared with those",
        "use --attention-backend fa3, triton or trtllm_mha",
    ),
    Refusal(
        "dual chunk attention",
        "a model with a dual_chunk_attention_config",
        lambda args, model: getattr(
            model.hf_config, "dual_chunk_attention_config", None
        )
        is not None,
        "its queries and keys have positions of their own in each chunk",
        "use --attention-backend dual_chunk_flash_attn",
    ),
    Refusal(
        "block-sparse attention",
        "a Phi-3-small model",
        _has_block_sparse_layers,
        "its checkpoints attend blocks, which SGLang's class leaves out, so its layers would not be what the model's are",
        "choose another engine; other backends of SGLang attend densely, too",
    ),
    Refusal(
        "linear position biases",
        "a Baichuan model with ALiBi",
        lambda args, model: bool(getattr(model, "use_alibi", False)),
        "SGLang hands them to the attention of an NPU alone, and no HSA op adds them",
        "serve the model on an NPU",
    ),
)
