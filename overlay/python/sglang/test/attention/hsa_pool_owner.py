# SPDX-License-Identifier: Apache-2.0
"""A stand-in for what builds the pools of a model: as much of it as HSA asks."""

from types import SimpleNamespace

import torch

from sglang.srt.layers.radix_attention import RadixAttention


def fake_runner(attention_backend="hsa", layers="all", sliding=(), **kwargs):
    """A model of 4 attention layers with 2 KV heads of 8 in bfloat16; ``kwargs`` go to each layer."""
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(
        RadixAttention(
            4,
            8,
            1.0,
            2,
            layer_id=i,
            sliding_window_size=128 if i in sliding else -1,
            **kwargs,
        )
        for i in range(4)
    )
    return SimpleNamespace(
        model=model,
        model_config=SimpleNamespace(
            num_hidden_layers=4, is_multimodal=False, head_dim=8, get_num_kv_heads=lambda *ranks: 2
        ),
        server_args=SimpleNamespace(
            attention_backend=attention_backend,
            hsa_layers=layers, hsa_prefill=None, hsa_chunk_repr="mean_std", hsa_topk=32, hsa_page_size=64,
            hsa_selection_strategy="group", hsa_window_size=512, hsa_enable_swa_fusion=True,
            hsa_weight_mode="mass", hsa_sink_pages=1, hsa_dense_backend=None, hsa_strict=False,
        ),
        kv_cache_dtype=torch.bfloat16, dtype=torch.bfloat16, is_draft_worker=False,
    )  # fmt: skip
