# SPDX-License-Identifier: Apache-2.0
"""HSAMetadata: what all HSA layers of one forward pass share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import torch

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.landmark_rows import (
    LandmarkRows,
    plan_landmark_rows,
)
from sglang.srt.layers.attention.hsa.layout import num_candidate_pages, num_places
from sglang.srt.layers.attention.hsa.ops.page_table.reference import build_page_table
from sglang.srt.layers.attention.hsa.params import NO_VERSION

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


@dataclass
class HSAMetadata:
    """Metadata of one forward pass over B sequences with T new tokens in all, without those that fill a batch up.

    Attributes:
        page_size: slots per page.
        cache_seqlens_int32: tokens per sequence, the new ones included ``[B]`` int32.
        new_tokens: new tokens per sequence ``[B]`` int32.
        places: places per sequence ``[B]`` int32: its tokens and the landmarks of its pages, if it has such rows.
        cu_seqlens_q: prefix sums of the rows of each sequence ``[B + 1]`` int32.
        landmark_rows: of the pass; None for a model without landmarks.
        page_table_1: slot of each position ``[B, max_seqlen_k]`` int32; undefined past a sequence's end.
        real_page_table: physical page of each logical page ``[B, max_pages]`` int32; undefined past the end.
        page_version: version of each page in real_page_table when the batch was built ``[B, max_pages]`` int64;
            NO_VERSION for a page that was handed out since.
        page_complete: pages whose tokens are all in the cache after this pass ``[B, max_pages]`` bool; never one
            that was handed out since the batch was built.
        page_completed_now: those that this pass completes ``[B, max_pages]`` bool.
        max_candidates: largest number of candidate pages of any row (host int).
        rows: T, or more by the landmarks. sparse_rows: rows with at least one candidate page (host ints).
    """

    page_size: int
    cache_seqlens_int32: torch.Tensor
    new_tokens: torch.Tensor
    places: torch.Tensor
    cu_seqlens_q: torch.Tensor
    page_table_1: torch.Tensor
    real_page_table: torch.Tensor
    page_version: torch.Tensor
    page_complete: torch.Tensor
    page_completed_now: torch.Tensor
    max_candidates: int
    rows: int
    sparse_rows: int
    pages_candidate: int
    landmark_rows: Optional[LandmarkRows] = None


def build_metadata(
    forward_batch: ForwardBatch,
    pool: PageReprMixin,
    req_to_token: torch.Tensor,
    config: HSAConfig,
    dense_below: int = 0,
) -> HSAMetadata:
    """Metadata of an eager forward pass in decode, extend or mixed mode.

    Args:
        forward_batch: the batch; its lengths on the host must be set.
        pool: pool that keeps the representations.
        req_to_token: slot of each position of each request ``[num_requests, context]`` int32.
        config: resolved options.
        dense_below: as in ``AttentionParams``.
    """
    page_size = config.page_size
    device = forward_batch.seq_lens.device
    requests = compat.real_requests(forward_batch)
    seq_lens_cpu = forward_batch.seq_lens_cpu[:requests].to(torch.int64)  # [B]
    if forward_batch.forward_mode.is_decode():
        q_lens_cpu = torch.ones_like(seq_lens_cpu)
    else:
        q_lens_cpu = torch.as_tensor(
            forward_batch.extend_seq_lens_cpu, dtype=torch.int64
        )

    seq_lens = seq_lens_cpu.to(device, torch.int32, non_blocking=True)
    q_lens = q_lens_cpu.to(device, torch.int32, non_blocking=True)
    max_seqlen_k = int(seq_lens_cpu.max())
    # Versions before the table: the scheduler may replace a running request's pages by their twins in the radix
    # cache and then hand the old ones out. Whoever still sees an old page must also see its old version.
    versions = pool.versions_at(pool.built_at(forward_batch))
    page_table_1 = req_to_token[
        forward_batch.req_pool_indices[:requests], :max_seqlen_k
    ]
    real_page_table = build_page_table(page_table_1, page_size)

    # A page with a later version than the batch belongs to a later batch, and the row that names it to a request
    # that has ended. A version only grows, so any other page has the one it had when the batch was built.
    page_version = versions[real_page_table.long()]
    own = page_version != NO_VERSION

    page = torch.arange(real_page_table.shape[1], device=device)
    complete = own & (page < (seq_lens // page_size).unsqueeze(1))
    already = page < ((seq_lens - q_lens) // page_size).unsqueeze(1)

    landmark_rows, places, row_lens = None, seq_lens_cpu, q_lens_cpu
    if config.has_landmark_rows:
        landmark_rows = plan_landmark_rows(
            seq_lens_cpu.numpy(), q_lens_cpu.numpy(), page_size, device
        )
        places = num_places(seq_lens_cpu, page_size)
        row_lens = places - num_places(seq_lens_cpu - q_lens_cpu, page_size)

    # Positions of all rows, on the host: how many have something to select from.
    first = places - row_lens
    sequence = torch.repeat_interleave(torch.arange(len(row_lens)), row_lens)
    begin = torch.cumsum(row_lens, 0) - row_lens
    position = torch.arange(len(sequence)) - begin[sequence] + first[sequence]
    candidates = num_candidate_pages(
        position,
        config.effective_window,
        config.places_per_page,
        config.sink_pages,
        dense_below,
    )

    return HSAMetadata(
        page_size=page_size,
        cache_seqlens_int32=seq_lens,
        new_tokens=q_lens,
        places=places.to(device, torch.int32, non_blocking=True),
        cu_seqlens_q=_prefix_sums(row_lens).to(device, non_blocking=True),
        page_table_1=page_table_1,
        real_page_table=real_page_table,
        page_version=page_version,
        page_complete=complete,
        page_completed_now=complete & ~already,
        max_candidates=int(candidates.max()) if len(candidates) else 0,
        rows=len(position),
        sparse_rows=int((candidates > 0).sum()),
        pages_candidate=int(candidates.sum()),
        landmark_rows=landmark_rows,
    )


def _prefix_sums(lens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(torch.cumsum(lens, dim=0, dtype=torch.int32), (1, 0))
