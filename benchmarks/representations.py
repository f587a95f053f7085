# SPDX-License-Identifier: Apache-2.0
"""Page representations of random keys, for the benchmarks of single kernels."""

from __future__ import annotations

import torch

from sglang.srt.layers.attention.hsa.page_repr import slow_channels
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd
from sglang.srt.layers.attention.hsa.params import AttentionParams

PAGES_AT_ONCE = 4096


def kept_channels(params: AttentionParams, dim: int) -> torch.Tensor | None:
    """Channels that the kind keeps of heads of ``dim`` with an ordinary rotary embedding ``[R]`` int32; None for all."""
    if not params.kind.slow:
        return None
    pairs = 1e6 ** -(torch.arange(0, dim, 2) / dim)
    return slow_channels(torch.cat([pairs, pairs])).cuda()


def empty_representations(k: torch.Tensor, params: AttentionParams) -> torch.Tensor:
    """Unwritten representations ``[num_pages, H_kv, repr_dim]`` of keys ``[num_slots, H_kv, D]``."""
    kind, page_size = params.kind, params.page_size
    shape = len(k) // page_size, k.shape[1], kind.repr_dim(k.shape[-1], page_size)
    return torch.zeros(shape, dtype=kind.storage_dtype(k.dtype), device=k.device)


def represent(k: torch.Tensor, params: AttentionParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(representations of every page, kept channels) of keys ``[num_slots, H_kv, D]``."""
    out, channels = empty_representations(k, params), kept_channels(params, k.shape[-1])
    for pages in torch.arange(len(out), device=k.device).split(PAGES_AT_ONCE):
        out[pages] = page_repr_fwd(k, pages, params, channels).to(out.dtype)
    return out, channels
