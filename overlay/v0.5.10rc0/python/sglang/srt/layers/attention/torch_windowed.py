# SPDX-License-Identifier: Apache-2.0
"""Attention of one request with a sliding window and/or capped logits, in torch.

The torch_native backend calls it for the layers that ``scaled_dot_product_attention`` alone would get wrong.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from sglang.srt.layers.attention.torch_capped import capped_attention

# Bounds the memory of the logits to [H, Q_BLOCK, S], and the work of a windowed layer to S * (Q_BLOCK + W).
Q_BLOCK = 256


def windowed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    causal: bool,
    sliding_window_size: int,
    logit_cap: float,
) -> torch.Tensor:
    """Softmax attention of the last L of S positions over all S.

    Args:
        query: # [H, L, D]
        key: # [H_kv, S, D]
        value: # [H_kv, S, D_v]
        scaling: multiplies the logits before the cap.
        causal: hide the positions after a query.
        sliding_window_size: a query sees itself and this many positions before it (the convention of
            RadixAttention, one less than Hugging Face's ``sliding_window``); -1 sees all.
        logit_cap: logits become ``cap * tanh(logits / cap)``; 0.0 leaves them.

    Returns:
        # [H, L, D_v]
    """
    q_len, kv_len = query.shape[1], key.shape[1]
    blocks = []
    for start in range(0, q_len, Q_BLOCK):
        block = query[:, start : start + Q_BLOCK]
        first = kv_len - q_len + start  # position of the block's first query
        last = first + block.shape[1] - 1
        kv_begin = (
            max(0, first - sliding_window_size) if sliding_window_size >= 0 else 0
        )
        kv_end = last + 1 if causal else kv_len

        q_pos = torch.arange(first, last + 1, device=query.device).unsqueeze(
            1
        )  # [L', 1]
        kv_pos = torch.arange(kv_begin, kv_end, device=query.device)  # [S']
        visible = (
            kv_pos <= q_pos if causal else torch.ones_like(kv_pos <= q_pos)
        )  # [L', S'] bool
        if sliding_window_size >= 0:
            visible &= kv_pos >= q_pos - sliding_window_size
        tensors = (
            block.unsqueeze(0),
            key[:, kv_begin:kv_end].unsqueeze(0),
            value[:, kv_begin:kv_end].unsqueeze(0),
        )
        options = dict(
            attn_mask=visible,
            scale=scaling,
            enable_gqa=query.shape[0] != key.shape[0],
        )
        if logit_cap > 0:
            out = capped_attention(*tensors, **options, logit_cap=logit_cap)
        else:
            out = scaled_dot_product_attention(*tensors, **options)
        blocks.append(out.squeeze(0))
    return torch.cat(blocks, dim=1)
