# SPDX-License-Identifier: Apache-2.0
"""A paged cache with shuffled pages and NaN in every unused slot, for the HSA op tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List, NamedTuple, Sequence

import numpy as np
import torch


class PagedBatch(NamedTuple):
    """Sequences in a paged cache, with their keys and values in logical order beside it.

    Attributes:
        k_buffer, v_buffer: ``[num_slots, H_kv, D]``, NaN where no token lives.
        page_table: ``[B, max_pages]`` int32.
        seq_lens: ``[B]`` int32.
        k, v: per sequence ``[S, H_kv, D]`` float64 numpy.
    """

    k_buffer: torch.Tensor
    v_buffer: torch.Tensor
    page_table: torch.Tensor
    seq_lens: torch.Tensor
    k: List[np.ndarray]
    v: List[np.ndarray]


def make_batch(
    seq_lens: Sequence[int],
    *,
    page_size: int = 64,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    v_head_dim: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PagedBatch:
    """Random sequences over randomly placed pages; page 0 stays unused, as in the pool."""
    rng = torch.Generator().manual_seed(seed)
    counts = [-(-n // page_size) for n in seq_lens]
    num_pages = sum(counts) + 3
    v_head_dim = v_head_dim or head_dim
    k_buffer = torch.full((num_pages * page_size, num_kv_heads, head_dim), float("nan"))
    v_buffer = torch.full(
        (num_pages * page_size, num_kv_heads, v_head_dim), float("nan")
    )
    free = (torch.randperm(num_pages - 1, generator=rng) + 1).tolist()
    page_table = torch.zeros((len(seq_lens), max(counts)), dtype=torch.int32)
    keys, values = [], []
    for b, n in enumerate(seq_lens):
        pages = torch.tensor([free.pop() for _ in range(counts[b])])
        page_table[b, : counts[b]] = pages
        slots = (pages[:, None] * page_size + torch.arange(page_size)).flatten()[:n]
        # A common offset per page makes pages differ in their means, as real keys do.
        drift = torch.randn(counts[b], num_kv_heads, head_dim, generator=rng)
        k = torch.randn(n, num_kv_heads, head_dim, generator=rng)
        k += drift.repeat_interleave(page_size, 0)[:n]
        v = torch.randn(n, num_kv_heads, v_head_dim, generator=rng)
        k_buffer[slots], v_buffer[slots] = k, v
        keys.append(k.to(dtype).double().numpy())
        values.append(v.to(dtype).double().numpy())
    return PagedBatch(
        k_buffer.to(dtype),
        v_buffer.to(dtype),
        page_table,
        torch.tensor(seq_lens, dtype=torch.int32),
        keys,
        values,
    )


def slots_of(batch: PagedBatch, b: int, page: int, page_size: int) -> torch.Tensor:
    """Slots of logical page ``page`` of sequence ``b``."""
    return batch.page_table[b, page] * page_size + torch.arange(page_size)


def write_model_config(folder: Path, **fields) -> str:
    """A Qwen3 config.json without weights: all that ServerArgs reads of a model."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def write_random_model(folder: Path, **fields) -> str:
    """A Qwen3 checkpoint with random float32 weights, sharp enough that attention matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    write_model_config(folder, initializer_range=0.15, **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    return str(folder)
