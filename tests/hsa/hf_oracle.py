# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model whose full-attention layers run the brute-force HSA oracle: the end-to-end reference.

It shares nothing with SGLang: the model, its cache and its sliding-window layers are transformers', and the
attention is ``sglang.test.attention.hsa_oracle``, one query at a time in float64.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from tiny_models import greedy_tokens
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from sglang.test.attention import hsa_oracle as oracle

NAME = "hsa_oracle"


def greedy(
    path: str | os.PathLike, ids: list[int], new_tokens: int, options: oracle.Options,
    dense_layers: set[int] = frozenset(), dense_rows: int = 0, kv_copies: int = 1,
) -> list[int]:  # fmt: skip
    """Greedy tokens under HSA with the given options (scale, cap and rotary frequencies come from the model).

    ``dense_layers`` and the first ``dense_rows`` positions attend their whole past. With ``kv_copies`` each KV head is so
    many, and each of them chooses pages for its own query heads, as on ranks that share a KV head.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    attend_as_oracle(model, options, dense_layers, dense_rows, kv_copies)
    return greedy_tokens(model, ids, new_tokens)


def attend_as_oracle(
    model: Any, options: oracle.Options, dense_layers: set[int] = frozenset(), dense_rows: int = 0, kv_copies: int = 1
) -> None:
    """Let the decoder of a transformers model attend as `greedy` says; an encoder of images beside it stays as it is."""
    decoder = model.get_decoder()
    frequencies = decoder.rotary_emb.inv_freq
    pairs = frequencies.argsort()[: len(frequencies) // 2].tolist()
    channels = tuple(pairs + [pair + len(frequencies) for pair in pairs])

    def attention(
        module, query, key, value, mask, scaling, dropout=0.0, softcap=None, sliding_window=None, s_aux=None, **_
    ):  # fmt: skip
        if sliding_window is not None:
            # transformers prepares the masks of windowed layers as for eager attention.
            eager = modeling_gemma2 if s_aux is None else modeling_gpt_oss
            return eager.eager_attention_forward(module, query, key, value, mask, scaling=scaling, softcap=softcap)
        layer_options = oracle.dataclasses.replace(
            options, scale=scaling, cap=softcap or 0.0, channels=channels, sinks=() if s_aux is None else s_aux.tolist()
        )
        everything = oracle.dataclasses.replace(layer_options, window_size=1 << 30)
        q, k, v = (x[0].transpose(0, 1).double().numpy() for x in (query, key, value))
        k, v = k.repeat(kv_copies, axis=1), v.repeat(kv_copies, axis=1)
        first = len(k) - len(q)
        rows = [
            oracle.attend(
                q[i], k, v, first + i,
                everything if module.layer_idx in dense_layers or first + i < dense_rows else layer_options,
            )
            for i in range(len(q))
        ]  # fmt: skip
        return torch.as_tensor(oracle.np.stack(rows)).float().unsqueeze(0), None

    AttentionInterface.register(NAME, attention)
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionMaskInterface.register(NAME, eager_mask)
    decoder.set_attn_implementation(NAME)
