# SPDX-License-Identifier: Apache-2.0
"""Reference of the page_repr op: page representations from cached keys."""

from __future__ import annotations

from typing import Optional, Tuple

import torch

from sglang.srt.layers.attention.hsa.ops.gather import take
from sglang.srt.layers.attention.hsa.params import AttentionParams


def page_repr_fwd(
    k_buffer: torch.Tensor,
    page_ids: torch.Tensor,
    params: AttentionParams,
    channels: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Representations of complete physical pages.

    Args:
        k_buffer: cached keys ``[num_slots, H_kv, D]``, any float dtype.
        page_ids: physical pages ``[N]`` int32 or int64, each one complete.
        channels: that a kind which keeps some of them takes ``[R]`` int32.

    Returns:
        ``[N, H_kv, repr_dim]``, float32 or the bytes of a kind that is stored as such.
    """
    # [num_pages, P, H_kv, D]
    pages = k_buffer.view(-1, params.page_size, *k_buffer.shape[1:])
    keys = take(pages, page_ids.long()).float() * params.k_scale
    return params.kind.represent(keys, channels)


def landmark_repr_fwd(
    k_buffer: torch.Tensor,
    page_ids: torch.Tensor,
    queries: torch.Tensor,
    params: AttentionParams,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Representations of complete physical pages that the queries of their landmarks make.

    Args:
        k_buffer: cached keys ``[num_slots, H_kv, D]``, any float dtype.
        page_ids: physical pages ``[N]`` int32 or int64, each one complete.
        queries: that the landmarks select pages with ``[N, H_q, D]``.

    Returns:
        (k' ``[N, H_kv, G * D]``, b' ``[N, H_kv, G]``) float32.
    """
    pages = k_buffer.view(-1, params.slots_per_page, *k_buffer.shape[1:])
    keys = take(pages, page_ids.long()).float() * params.k_scale
    queries = queries.unflatten(1, (k_buffer.shape[1], -1))
    return params.kind.represent(keys, queries, params.sm_scale)
