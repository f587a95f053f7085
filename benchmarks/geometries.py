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
}


def write_config(name: str, folder: Path) -> str:
    """Write a config.json for ``load_format="dummy"``; returns the folder."""
    g = GEOMETRIES[name]
    config = dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
