# SPDX-License-Identifier: Apache-2.0
"""Torch reference of fused_metadata_precompute_and_broadcast: what the kernel must write, bit for bit."""

from __future__ import annotations

from typing import Optional, Sequence

import torch

from sglang.jit_kernel.fused_metadata_checks import (
    DECODE,
    Destinations,
    check,
    destinations_of,
    error,
)

Tensors = Optional[Sequence[torch.Tensor]]


def run_reference(
    destinations: Destinations,
    seq_lens: torch.Tensor,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    extend_seq_lens: Optional[torch.Tensor],
    max_len: int,
    nsa_index_topk: Optional[int],
    real_page_size: int,
    num_draft_tokens: int,
    ragged: bool,
) -> None:
    """The op on checked arguments; it waits for the device."""
    batch = len(seq_lens)
    if extend_seq_lens is None:
        counts = torch.full_like(seq_lens, num_draft_tokens, dtype=torch.int64)  # [B]
    else:
        counts = extend_seq_lens.long()
        if batch and not 0 <= counts.min() <= counts.max() <= num_draft_tokens:
            raise error(
                f"extend_seq_lens must be from 0 to {num_draft_tokens}, got {counts.tolist()}"
            )
    if batch and not 0 <= req_pool_indices.min() <= req_pool_indices.max() < len(
        req_to_token
    ):
        raise error(
            f"req_pool_indices must be from 0 to {len(req_to_token) - 1}, got {req_pool_indices.tolist()}"
        )
    owner = torch.arange(batch, device=seq_lens.device).repeat_interleave(counts)  # [R]
    rows = len(owner)
    row_of_request = (
        torch.arange(rows, device=seq_lens.device) - (counts.cumsum(0) - counts)[owner]
    )  # [R]
    slots = req_to_token[req_pool_indices[owner].long(), :max_len]  # [R, max_len]
    pages = slots[:, ::real_page_size] // real_page_size  # [R, ceil(max_len / P)]
    columns = torch.arange(max_len, device=seq_lens.device)

    def running_sums(values):
        return torch.nn.functional.pad(values.cumsum(0, dtype=torch.int32), (1, 0))

    def write_table(out, values, used):
        target = out[:rows, : values.shape[1]]
        target.copy_(torch.where(used, values.int(), target) if ragged else values)

    for out, offset in zip(destinations.steps, destinations.offsets):
        lengths = (seq_lens.long() + offset).int()  # [B]
        expanded = ((lengths - counts + 1)[owner] + row_of_request).int()  # [R]
        used = columns < lengths[owner, None]  # [R, max_len]
        if out.cache_seqlens is not None:
            out.cache_seqlens.copy_(lengths)
        if out.cu_seqlens_k is not None:
            out.cu_seqlens_k.copy_(running_sums(lengths))
        if out.page_indices is not None:
            write_table(out.page_indices, slots, used)
        if out.seqlens_expanded is not None:
            out.seqlens_expanded[:rows].copy_(expanded)
        if out.nsa_cache_seqlens is not None:
            out.nsa_cache_seqlens[:rows].copy_(expanded.clamp(max=nsa_index_topk))
        if out.nsa_cu_seqlens_k is not None:
            clamped = expanded.clamp(max=nsa_index_topk)
            out.nsa_cu_seqlens_k[: rows + 1].copy_(running_sums(clamped))
        if out.real_page_table is not None:
            write_table(out.real_page_table, pages, used[:, ::real_page_size])


def fused_metadata_precompute_and_broadcast_reference(
    seq_lens: torch.Tensor,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    cache_seqlens_list: Tensors,
    cu_seqlens_k_list: Tensors,
    page_indices_list: Tensors,
    nsa_cache_seqlens_list: Tensors,
    nsa_cu_seqlens_k_list: Tensors,
    real_page_table_list: Tensors,
    max_len: int,
    nsa_index_topk: Optional[int],
    real_page_size: int,
    *,
    forward_mode: int = DECODE,
    num_draft_tokens: int = 1,
    extend_seq_lens: Optional[torch.Tensor] = None,
    seqlens_expanded_list: Tensors = None,
    seq_len_offsets: Optional[Sequence[int]] = None,
    ragged: bool = False,
) -> None:
    """``fused_metadata_precompute_and_broadcast_cuda`` in torch, on any device; see there for the arguments.

    Raises:
        ValueError: as there, and for request indices and ``extend_seq_lens`` out of range.
    """
    destinations = check(
        destinations_of(locals()),
        seq_lens,
        req_pool_indices,
        req_to_token,
        max_len,
        nsa_index_topk,
        real_page_size,
        forward_mode,
        num_draft_tokens,
        extend_seq_lens,
        seq_len_offsets,
    )
    run_reference(
        destinations,
        seq_lens,
        req_pool_indices,
        req_to_token,
        extend_seq_lens,
        max_len,
        nsa_index_topk,
        real_page_size,
        num_draft_tokens,
        ragged,
    )
