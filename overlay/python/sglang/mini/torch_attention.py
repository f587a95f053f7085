# SPDX-License-Identifier: Apache-2.0
"""Attention with torch's SDPA, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sglang.mini.attention import AttentionBackend
from sglang.mini.kv_cache import CacheState


class TorchAttentionBackend(AttentionBackend):
    requested = "torch"

    def attend(
        self, q: torch.Tensor, state: CacheState, positions: torch.Tensor
    ) -> torch.Tensor:
        return torch_attention(q, state, positions)


def torch_attention(
    q: torch.Tensor, state: CacheState, positions: torch.Tensor
) -> torch.Tensor:
    """SDPA: queries ``[T, H_q, D]`` at ``positions`` ``[T]`` int64 -> ``[T, H_q, D]``."""
    ends = [end for _, end in state.spans]
    if state.decode:
        # The query heads of a KV head as so many queries: its keys need not be repeated.
        q = q.unflatten(1, (state.spec.num_kv_heads, -1)).transpose(1, 2)
        out = _attend(q, positions[:, None], state.rows, max(ends), state)
        return out.transpose(1, 2).flatten(1, 2)
    each = zip(q.split(state.counts), positions.split(state.counts), state.rows, ends)
    out = [_attend(q[None], p[None], row[None], end, state) for q, p, row, end in each]
    return torch.cat(out, dim=1)[0]


def _attend(q, positions, rows, longest: int, state: CacheState) -> torch.Tensor:
    """A batch: queries ``[B, Tq, H, D]`` at ``positions`` ``[B, Tq or 1]`` of ``rows`` ``[B]`` -> ``[B, Tq, H, D]``.

    H is H_q, or H_kv with the query heads of a KV head along Tq. No request has more than ``longest`` keys.
    """
    spec = state.spec
    count = longest
    if spec.window:
        count = min(longest, spec.window + positions.shape[1] - 1)
    # The last keys of every request. What is masked reads position 0, which is written.
    keys = positions[:, -1:] + torch.arange(1 - count, 1, device=q.device)  # [B, J]
    distance = positions[:, :, None] - keys[:, None]
    mask = (distance >= 0) & (keys >= 0)[:, None]  # [B, Tq or 1, J]
    if spec.window:
        mask &= distance < spec.window
    slots = state.kv.req_to_token[rows[:, None], keys.clamp(min=0)]
    k, v = (
        cache.flatten(0, 1)[slots].transpose(1, 2)  # [B, H_kv, J, D]
        for cache in (state.k_cache, state.v_cache)
    )
    if (group := q.shape[2] // spec.num_kv_heads) > 1:
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    q, mask = q.transpose(1, 2), mask[:, None]
    if spec.softcap:  # which SDPA lacks; in float32
        logits = q.float() @ k.float().transpose(-1, -2) * spec.scaling
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
        weights = logits.masked_fill(~mask, float("-inf")).softmax(-1)
        out = (weights @ v.float()).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=spec.scaling)
    return out.transpose(1, 2)
