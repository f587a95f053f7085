# SPDX-License-Identifier: Apache-2.0
"""Page representations of random keys, for the benchmarks of single kernels."""

from __future__ import annotations

import torch

from sglang.srt.layers.attention.hsa.chunk_repr import KINDS, slow_channels
from sglang.srt.layers.attention.hsa.ops.chunk_repr.reference import chunk_repr_fwd

PAGES_AT_ONCE = 4096


def kept_channels(kind: str, dim: int) -> torch.Tensor | None:
    """Channels that the kind keeps of heads of ``dim`` with an ordinary rotary embedding ``[R]`` int32; None for all."""
    if not KINDS[kind].slow:
        return None
    pairs = 1e6 ** -(torch.arange(0, dim, 2) / dim)
    return slow_channels(torch.cat([pairs, pairs])).cuda()


def empty_representations(kind: str, k: torch.Tensor, page_size: int) -> torch.Tensor:
    """Unwritten representations ``[num_pages, H_kv, repr_dim]`` of keys ``[num_slots, H_kv, D]``."""
    entry = KINDS[kind]
    shape = len(k) // page_size, k.shape[1], entry.repr_dim(k.shape[-1], page_size)
    return torch.zeros(shape, dtype=entry.storage_dtype(k.dtype), device=k.device)


def represent(kind: str, k: torch.Tensor, page_size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(representations of every page, kept channels) of keys ``[num_slots, H_kv, D]``."""
    out, channels = empty_representations(kind, k, page_size), kept_channels(kind, k.shape[-1])
    for pages in torch.arange(len(out), device=k.device).split(PAGES_AT_ONCE):
        reprs = chunk_repr_fwd(k, pages, page_size=page_size, kind=kind, channels=channels)
        out[pages] = reprs.to(out.dtype)
    return out, channels
