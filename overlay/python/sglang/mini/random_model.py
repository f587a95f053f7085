# SPDX-License-Identifier: Apache-2.0
"""Models with random weights, for benchmarks on machines without checkpoints."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from sglang.mini.api import MiniError

# Qwen3 shapes: layers, hidden, intermediate, query heads, KV heads, head dim, vocabulary.
GEOMETRIES = {
    "qwen3-tiny": (4, 128, 256, 8, 2, 32, 4096),
    "qwen3-0.6b": (28, 1024, 3072, 16, 8, 128, 151936),
    "qwen3-8b": (36, 4096, 12288, 32, 8, 128, 151936),
}


def random_model(name: str, device: torch.device, dtype: torch.dtype):
    """A Qwen3 of one of GEOMETRIES, and a tokenizer whose words are numbers. The same weights every time.

    They are scaled so that logits differ clearly: a wrong key or a lost page changes the tokens.

    Raises:
        MiniError: no such geometry.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    if name not in GEOMETRIES:
        raise MiniError(f"geometry {name!r} is not known: use {', '.join(GEOMETRIES)}.")
    layers, hidden, inter, heads, kv_heads, head_dim, vocab = GEOMETRIES[name]
    config = AutoConfig.for_model(
        "qwen3",
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inter,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_position_embeddings=1 << 20,
        eos_token_id=None,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(0)
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            if weight.dim() == 2:
                fan_in = 1 if "embed" in key else weight.shape[1]
                loud = any(p in key for p in ("q_proj", "k_proj", "o_proj", "lm_head"))
                weight.normal_(0, (2 if loud else 1) / fan_in**0.5)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocab)}, "0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return model.eval(), PreTrainedTokenizerFast(tokenizer_object=words)
