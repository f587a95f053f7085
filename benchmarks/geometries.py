# SPDX-License-Identifier: Apache-2.0
"""Model shapes that the benchmarks serve with random weights."""

from __future__ import annotations

import json
from pathlib import Path

GEOMETRIES = {
    # Qwen3 shapes: layers, hidden, intermediate, query heads, KV heads, head dim.
    "345m": dict(layers=16, hidden=1024, inter=4096, heads=16, kv_heads=2, head_dim=64),
    "8b": dict(layers=36, hidden=4096, inter=12288, heads=32, kv_heads=8, head_dim=128),
    "345m-mha": dict(layers=16, hidden=1024, inter=4096, heads=16, kv_heads=16, head_dim=64),
    # OLMo 3 shape, which SGLang serves with its class of OLMo 2: three of four layers attend a sliding window.
    "7b": dict(layers=32, hidden=4096, inter=11008, heads=32, kv_heads=32, head_dim=128, window=512),
}


def _common(g: dict) -> dict:
    """Fields that configurations of a geometry share."""
    return dict(
        num_hidden_layers=g["layers"],
        hidden_size=g["hidden"],
        intermediate_size=g["inter"],
        num_attention_heads=g["heads"],
        num_key_value_heads=g["kv_heads"],
        head_dim=g["head_dim"],
        vocab_size=151936,
        max_position_embeddings=1 << 20,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        torch_dtype="bfloat16",
    )


def write_config(name: str, folder: Path) -> str:
    """Write a config.json for ``load_format="dummy"``; returns the folder."""
    g = GEOMETRIES[name]
    config = dict(_common(g), architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    if "window" in g:
        kinds = ["sliding_attention"] * 3 + ["full_attention"]
        config.update(
            architectures=["Olmo2ForCausalLM"],
            model_type="olmo3",
            sliding_window=g["window"],
            layer_types=kinds * (g["layers"] // 4),
            rope_scaling=dict(rope_type="default", rope_theta=1e6),  # SGLang overwrites rope_parameters with it
        )
    return _write(config, folder)


def write_hils_config(name: str, folder: Path) -> str:
    """As ``write_config``, of the checkpoint of that shape that was trained for HSA."""
    g = GEOMETRIES[name]
    windows = "window" in g
    config = dict(
        _common(g),
        architectures=["HiLSForCausalLM"],
        model_type="olmo_hils" if windows else "qwen_hils",
        chunk_size=64,
        hils_topk=32,
        hils_sliding_window=512,
        full_attn_interleave=4 if windows else 1,
        use_sliding_window=windows,
        sliding_window=g.get("window"),
        mask_lmk_token=True,
        enable_lmk_q_proj=True,
        lmk_q_lora_dim=256 if windows else 64,
        layerwise_qk_norm=windows,
        layerwise_lmkq_norm=windows,
        enable_softmax1=not windows,
        enable_external_lmk_embed=True,
        apply_hils_rope=True,
        use_hope=windows,
        enable_inrange_rope=True,
        rope_context_length=8192,
        rope_period_multiplier=2.0,
    )
    return _write(config, folder)


def _write(config: dict, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
