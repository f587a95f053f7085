# SPDX-License-Identifier: Apache-2.0
"""Attention in plain torch, on any device: keys and values are gathered through the token table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from sglang.mini.backend import CacheState


class TorchOps:
    """SDPA; layers with a soft cap, which SDPA lacks, are computed in float32."""

    def prefill(
        self, q: torch.Tensor, state: CacheState, positions: torch.Tensor
    ) -> torch.Tensor:
        out, row = torch.empty_like(q), 0
        for b, (first, end) in enumerate(state.spans):
            rows = slice(row, row + end - first)
            begin = max(0, first - state.spec.window + 1) if state.spec.window else 0
            key = torch.arange(begin, end, device=q.device)  # [J]
            distance = positions[rows, None] - key  # [Tq, J]
            mask = distance >= 0
            if state.spec.window:
                mask &= distance < state.spec.window
            slots = state.kv.req_to_token[state.rows[b], begin:end]
            out[rows] = _attend(q[None, rows], slots[None], mask[None], state)[0]
            row = rows.stop
        return out

    def decode(self, q: torch.Tensor, state: CacheState) -> torch.Tensor:
        longest = max(end for _, end in state.spans)
        if state.spec.window:
            longest = min(longest, state.spec.window)
        # The last keys of every request, padded in front. What is masked reads position 0, which is written.
        key = state.cache_seqlens[:, None] - longest
        key = key + torch.arange(longest, device=q.device)  # [B, J]
        mask = key >= 0
        slots = state.kv.req_to_token[state.rows[:, None], key.clamp(min=0).long()]
        # The query heads of a KV head as so many queries: its keys need not be repeated.
        q = q.unflatten(1, (state.spec.num_kv_heads, -1)).transpose(1, 2)
        out = _attend(q, slots, mask[:, None], state)  # [B, G, H_kv, D]
        return out.transpose(1, 2).flatten(1, 2)


def _attend(
    q: torch.Tensor, slots: torch.Tensor, mask: torch.Tensor, state: CacheState
) -> torch.Tensor:
    """Queries ``[B, Tq, H, D]`` over the keys at ``slots`` ``[B, J]``; mask ``[B, Tq or 1, J]``, True where attended."""
    spec = state.spec
    k, v = (
        cache.flatten(0, 1)[slots].transpose(1, 2)  # [B, H_kv, J, D]
        for cache in (state.k_cache, state.v_cache)
    )
    if q.shape[2] > spec.num_kv_heads:
        group = q.shape[2] // spec.num_kv_heads
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    q, mask = q.transpose(1, 2), mask[:, None]
    if spec.softcap:
        logits = q.float() @ k.float().transpose(-1, -2) * spec.scaling
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
        weights = logits.masked_fill(~mask, float("-inf")).softmax(-1)
        out = (weights @ v.float()).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=spec.scaling)
    return out.transpose(1, 2)
