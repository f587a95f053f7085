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
        out, window = [], state.spec.window
        counts = [end - first for first, end in state.spans]
        for (first, end), row, queries, position in zip(
            state.spans, state.rows, q.split(counts), positions.split(counts)
        ):
            begin = max(0, first - window + 1) if window else 0
            distance = position[:, None] - torch.arange(begin, end, device=q.device)
            mask = distance >= 0  # [Tq, J]
            if window:
                mask &= distance < window
            slots = state.kv.req_to_token[row, begin:end]
            out.append(_attend(queries[None], slots[None], mask[None], state)[0])
        return torch.cat(out)

    def decode(self, q: torch.Tensor, state: CacheState) -> torch.Tensor:
        longest = max(end for _, end in state.spans)
        longest = min(longest, state.spec.window or longest)
        # The last keys of every request, padded in front. What is masked reads position 0, which is written.
        key = torch.arange(longest, device=q.device) - longest
        key = key + state.cache_seqlens[:, None]  # [B, J]
        slots = state.kv.req_to_token[state.rows[:, None], key.clamp(min=0).long()]
        # The query heads of a KV head as so many queries: its keys need not be repeated.
        q = q.unflatten(1, (state.spec.num_kv_heads, -1)).transpose(1, 2)
        out = _attend(q, slots, (key >= 0)[:, None], state)  # [B, G, H_kv, D]
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
