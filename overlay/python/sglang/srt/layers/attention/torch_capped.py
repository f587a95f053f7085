# SPDX-License-Identifier: Apache-2.0
"""Attention with a soft cap of its logits, in place of torch's, which has none."""

from __future__ import annotations

import functools
from typing import Callable, Optional

import torch
from torch.nn.functional import scaled_dot_product_attention

Q_BLOCK = 256  # queries at a time: their logits over all keys stand in memory


def sdpa_with_cap(logit_cap: Optional[float]) -> Callable[..., torch.Tensor]:
    """torch's attention, or one of the same signature that caps the logits if ``logit_cap`` is not 0 or None."""
    if not logit_cap:
        return scaled_dot_product_attention
    return functools.partial(capped_attention, logit_cap=logit_cap)


def capped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[torch.Tensor] = None,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
    *,
    logit_cap: float,
) -> torch.Tensor:
    """As ``scaled_dot_product_attention``; logits become ``cap * tanh(logits / cap)`` before the mask.

    Args:
        query, key, value: ``[1, H, L, D]``, ``[1, H_kv, S, D]``, ``[1, H_kv, S, D_v]``; with ``is_causal`` L is S.
        attn_mask: ``[L, S]`` bool, True where a query sees a key; None for no mask.
    """
    if enable_gqa:
        group = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(group, dim=1)
        value = value.repeat_interleave(group, dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    k_pos = torch.arange(key.shape[2], device=query.device)
    out = []
    for begin in range(0, query.shape[2], Q_BLOCK):
        block = query[:, :, begin : begin + Q_BLOCK]
        logits = (block @ key.transpose(2, 3)).float() * scale
        logits = logit_cap * torch.tanh(logits / logit_cap)
        if attn_mask is not None:
            hidden = ~attn_mask[begin : begin + Q_BLOCK]
            logits = logits.masked_fill(hidden, float("-inf"))
        if is_causal:
            q_pos = torch.arange(begin, begin + block.shape[2], device=query.device)
            logits = logits.masked_fill(k_pos > q_pos.unsqueeze(1), float("-inf"))
        out.append(logits.softmax(dim=-1).to(value.dtype) @ value)
    return torch.cat(out, dim=2)
