# SPDX-License-Identifier: Apache-2.0
"""A small configuration for each model class of the release."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYERS = 8

# Sizes by the names that configurations have for them; only names that a configuration has are replaced.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "word_embed_proj_dim", "hidden_dim"), 64),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "shared_intermediate_size",
            "ffn_hidden_size",
        ),
        128,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth"), LAYERS
    ),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 512),
    **dict.fromkeys(("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    "head_dim": 16,
}
NEVER = {"layer_types", "id2label", "label2id", "transformers_version", "_name_or_path", "architectures"}


@dataclass(frozen=True)
class Recipe:
    """How to write the configuration of a class.

    Attributes:
        model_type: the configuration class, by the name that transformers or SGLang registers it under.
        fields: that differ from its defaults, beside the sizes.
        stands_in: whether the class's own configuration comes with its checkpoints, and this one has its fields.
        draft: whether the class drafts for another model.
    """

    model_type: str
    fields: dict[str, Any] = field(default_factory=dict)
    stands_in: bool = False
    draft: bool = False

    def write(self, folder: Path, architecture: str) -> Path:
        """A folder with the configuration alone."""
        config = shrink(default_fields(self.model_type))
        config |= {"architectures": [architecture], "model_type": self.model_type}
        for name, value in self.fields.items():
            nested = name in ("text_config", "vision_config") and name in config
            config[name] = {**config[name], **value} if nested else value
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config, default=str))
        return folder


def default_fields(model_type: str) -> dict[str, Any]:
    """Fields of a configuration class with its defaults."""
    import sglang.srt.utils.hf_transformers_utils  # noqa: F401 registers SGLang's own classes
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type).to_dict()


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """The fields with small sizes, those of nested configurations too."""
    layers = next((config[n] for n in ("num_hidden_layers", "n_layer", "num_layers") if n in config), None)
    heads = next((config[n] for n in ("num_attention_heads", "n_head", "n_heads") if n in config), None)
    small = {}
    for name, value in config.items():
        if name in NEVER or (isinstance(value, list) and len(value) == layers):
            continue  # a list with an entry per layer is made anew from the number of layers
        if isinstance(value, dict):
            small[name] = shrink(value) if name.endswith("_config") else value
        elif name in ("num_key_value_heads", "n_head_kv", "num_kv_heads") and value is not None:
            small[name] = 4 if value == heads else 2
        else:
            small[name] = SIZES[name] if name in SIZES and isinstance(value, int) else value
    return small


TARGET = Recipe("llama")
