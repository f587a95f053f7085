# SPDX-License-Identifier: Apache-2.0
"""What an attention layer of the release can carry beside q, k and v: HSA computes it, or start-up refuses the layer.

A test compares these names with the release's source, so that a new one is not overlooked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Iterable, Optional, Tuple

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention

# Attributes that HSA computes with, or that change nothing it computes.
COMPUTED = frozenset(
    {
        "tp_q_head_num", "tp_k_head_num", "tp_v_head_num", "head_dim", "qk_head_dim", "v_head_dim", "layer_id",
        "scaling", "logit_cap", "k_scale", "v_scale", "k_scale_float", "v_scale_float", "quant_method",
        # These decide which layers can use HSA at all.
        "sliding_window_size", "is_cross_attention", "attn_type",
    }
)  # fmt: skip

# Attributes that ask for more: (whether a layer's value does, what it asks for).
REFUSED: Dict[str, Tuple[Callable[[RadixAttention], bool], str]] = {
    "xai_temperature_len": (
        lambda layer: layer.xai_temperature_len > 0,
        "a temperature that grows with the position",
    ),
    "logit_capping_method": (
        lambda layer: layer.logit_cap > 0 and layer.logit_capping_method != "tanh",
        "a soft cap that is not tanh",
    ),
    "pos_encoding_mode": (
        lambda layer: layer.pos_encoding_mode != "NONE",
        "positions that the attention encodes itself",
    ),
    "use_irope": (lambda layer: layer.use_irope, "attention within chunks"),
    "q_scale_float": (
        lambda layer: getattr(layer, "q_scale_float", None) is not None,
        "8-bit queries",
    ),
}

# Scales of MiniMax-M3's indexer; nothing reads them without arguments that are refused.
_INDEXER = frozenset({"idx_q_scale_float", "idx_k_scale_float", "idx_v_scale_float"})
COMPUTED |= _INDEXER

# Whether prefill in CUDA graphs, which HSA turns off, attends outside of them.
_IN_GRAPHS = frozenset({"use_prefill_attention_wrapper"})
COMPUTED |= _IN_GRAPHS

# Of these, what layers of older releases do not have yet.
LATER = _INDEXER | _IN_GRAPHS | {"q_scale_float"}

# Model classes that pass ``sinks`` to their attention.
SINK_MODELS = frozenset(
    {"GptOssForCausalLM", "MiMoV2ForCausalLM", "MiMoV2FlashForCausalLM", "MiMoV2MTP"}
)
# Those that have been compared with what transformers computes; the configuration of the others is refused.
SERVED_WITH_SINKS = frozenset({"GptOssForCausalLM"})
# Model types that do, of classes that serve others, too.
SINK_TYPES = frozenset({"granite_swa", "granitemoe_swa"})


def unsupported(layer: RadixAttention) -> Optional[str]:
    """What a layer asks for and HSA does not compute, in words; None for nothing."""
    for attribute, (asks, what) in REFUSED.items():
        if asks(layer):
            return f"{what} ({attribute} {getattr(layer, attribute)})"
    return None


def check_layers(layers: Iterable[Tuple[str, RadixAttention]]) -> None:
    """Raise ValueError for the first layer that asks for what HSA does not compute.

    Args:
        layers: those that would use HSA, and their names in the model.
    """
    names: Dict[int, str] = {}
    for name, layer in layers:
        if what := unsupported(layer):
            raise ValueError(
                f"--attention-backend hsa does not support the attention of {name}, which asks for {what}; "
                "choose another --attention-backend."
            )
        owner = names.setdefault(layer.layer_id, name)
        if owner != name:
            raise ValueError(
                f"--attention-backend hsa does not support the attention of {name}, which shares the cache of {owner}; "
                "choose another --attention-backend."
            )
