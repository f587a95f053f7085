# SPDX-License-Identifier: Apache-2.0
"""Tiny Hugging Face checkpoints, built from a seed, for tests and the quickstart.

``build("qwen3", root)`` writes a complete folder (config, float32 safetensors, tokenizer with a chat
template) below ``root`` and returns its path; the same arguments return the same folder without work.
Nothing is downloaded. ``hf_greedy`` decodes with transformers: the end-to-end oracle.

The weights are random but scaled so that greedy decoding is neither a constant token nor a short cycle,
and so that distant context moves the logits: a wrong window or a stale page changes the tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Changing anything that changes the bytes of a checkpoint must change this, since folders are cached.
RECIPE = 2

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

COMMON = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
)

_SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {},
    "gemma2": dict(
        num_hidden_layers=4,
        sliding_window=128,
        attn_logit_softcapping=10.0,
        final_logit_softcapping=30.0,
        query_pre_attn_scalar=16,
        # Published Gemma2 configs have both names; SGLang reads this one, transformers hidden_activation.
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
    ),
    "granite": dict(attention_multiplier=0.25, embedding_multiplier=2.0, residual_multiplier=0.5, logits_scaling=2.0),
    # Granite 4 without Mamba layers; its feed-forward layers are the shared expert alone.
    "granitemoehybrid": dict(
        layer_types=["attention"] * 2,
        position_embedding_type="rope",
        attention_multiplier=0.25,
        shared_intermediate_size=128,
        num_local_experts=0,
        num_experts_per_tok=0,
        mamba_n_heads=8,
        mamba_d_head=16,
    ),
    "gemma": dict(tie_word_embeddings=True),
    "gemma3_text": dict(
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=100,
        query_pre_attn_scalar=16,
        tie_word_embeddings=True,
    ),
    # Learned sinks, a window of 128 on layers 0 and 2, and frequencies that YaRN stretches eightfold.
    "gpt_oss": dict(
        num_hidden_layers=4,
        intermediate_size=64,
        sliding_window=128,
        swiglu_limit=7.0,  # published configs have it; transformers has the number in its code
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=150000.0,
            factor=8.0,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
            original_max_position_embeddings=4096,
        ),
    ),
    "mistral": dict(sliding_window=150),
    "olmo2": {},
    "phi3": {},
    "qwen2": {},
    "qwen3_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True),
}


def shapes() -> tuple[str, ...]:
    return tuple(_SHAPES)


def build(shape: str, root: str | os.PathLike, *, seed: int = 0, **config: Any) -> Path:
    """Build or reuse one checkpoint.

    Args:
        shape: a model type, one of ``shapes()``.
        root: folder that holds the cached checkpoints; created if absent.
        seed: seed of the weights.
        config: fields of the model's Hugging Face config that replace the defaults, for example
            ``num_key_value_heads=4`` (MHA), ``head_dim=32`` or ``sliding_window=64``.

    Raises:
        ValueError: the shape is not one of ``shapes()``.
    """
    if shape not in _SHAPES:
        raise ValueError(f"unknown shape {shape!r}: one of {', '.join(_SHAPES)}")
    fields = {**COMMON, **_SHAPES[shape], **config}
    key = json.dumps([RECIPE, shape, seed, fields], sort_keys=True)
    root = Path(root)
    path = root / f"{shape}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if (path / "config.json").exists():
        return path

    root.mkdir(parents=True, exist_ok=True)
    # Built aside and renamed: two test processes may want the same checkpoint at once.
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=root))
    try:
        _write_model(shape, fields, seed, staging)
        write_tokenizer(fields["vocab_size"], staging)
        try:
            staging.rename(path)
        except OSError:
            if not (path / "config.json").exists():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def tiny_qwen3(root: str | os.PathLike, **kwargs: Any) -> Path:
    """Qwen3: per-head q/k norm, GQA 4:2."""
    return build("qwen3", root, **kwargs)


def tiny_llama(root: str | os.PathLike, **kwargs: Any) -> Path:
    """Llama: no q/k norm, GQA 4:2."""
    return build("llama", root, **kwargs)


def tiny_gemma2(root: str | os.PathLike, **kwargs: Any) -> Path:
    """Gemma2: window of 128 on layers 0 and 2, full attention on 1 and 3, both soft caps."""
    return build("gemma2", root, **kwargs)


def prompt_ids(length: int, seed: int = 0, vocab_size: int = 512) -> list[int]:
    """``length`` random ids without special tokens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL_TOKENS), vocab_size, (length,), generator=generator).tolist()


def hf_greedy(path: str | os.PathLike, ids: list[int], new_tokens: int) -> list[int]:
    """Greedy tokens of transformers' eager float32 model; EOS does not stop it (SGLang: ``ignore_eos``)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    return greedy_tokens(model, ids, new_tokens)


def greedy_tokens(model: Any, ids: list[int], new_tokens: int, **prompt: Any) -> list[int]:
    """Greedy tokens of a transformers model, which gets ``prompt`` with the prompt alone: its images, for example."""
    import torch

    out: list[int] = []
    step, cache = torch.tensor([ids]), None
    with torch.no_grad():
        for _ in range(new_tokens):
            result = model(step, past_key_values=cache, use_cache=True, **prompt)
            cache, prompt = result.past_key_values, {}
            step = result.logits[:, -1:].argmax(-1)
            out.append(int(step))
    return out


def _write_model(shape: str, fields: dict[str, Any], seed: int, path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {f"{name}_token_id": SPECIAL_TOKENS.index(f"<|{name}|>") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(shape, **fields, **ids)
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill_weights(model, config.tie_word_embeddings, seed)
    model.save_pretrained(path)


def fill_weights(model: Any, tied: bool, seed: int) -> None:
    """Random weights of the scales that the module describes.

    Args:
        tied: whether the embedding is the output layer, too.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if "embed_tokens" in name:
                # Tied (Gemma2, which also multiplies by sqrt(hidden)): small beside what the layers add, or
                # every token would predict itself.
                weight.copy_(noise * (0.3 / weight.shape[1] ** 0.5 if tied else 1.0))
            elif weight.dim() >= 2:
                # Sharp attention (q, k) and a loud attention output keep far context relevant.
                gain = 2.0 if any(p in name for p in ("q_proj", "k_proj", "o_proj", "lm_head")) else 1.0
                inputs = weight[0].numel() if weight.dim() > 3 else weight.shape[1]  # of a convolution
                weight.copy_(noise * (gain / inputs**0.5))
            elif name.endswith("sinks"):
                # Large enough to take mass from keys; SGLang keeps them in bfloat16.
                weight.copy_((2.0 + noise).bfloat16())
            else:
                # A norm weight: its neutral value (0 for Gemma's 1 + w) plus some noise.
                weight.add_(0.1 * noise)


def write_tokenizer(vocab_size: int, path: Path) -> None:
    """A byte-level BPE in which every id below ``vocab_size`` is a token and every text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The special tokens take the first ids, the 256 byte tokens follow, pairs of letters fill the rest.
    byte_tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in "\u0120" + string.ascii_letters for b in string.ascii_letters]
    free = vocab_size - len(SPECIAL_TOKENS) - len(byte_tokens)
    if not 0 <= free <= len(pairs):
        least = vocab_size - free
        raise ValueError(f"vocab_size must be in [{least}, {least + len(pairs)}], got {vocab_size}")
    merges = pairs[:free]
    tokens = [*SPECIAL_TOKENS, *byte_tokens, *(a + b for a, b in merges)]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        model_max_length=32768,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)
