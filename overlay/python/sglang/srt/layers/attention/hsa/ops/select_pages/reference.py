# SPDX-License-Identifier: Apache-2.0
"""Reference of the select_pages op: score candidate pages, take the top k, map them to physical pages."""

from __future__ import annotations

from typing import Optional, Tuple

import torch

from sglang.srt.layers.attention.hsa.chunk_repr import KINDS
from sglang.srt.layers.attention.hsa.layout import num_candidate_pages
from sglang.srt.layers.attention.hsa.ops.gather import take

NEG_INF = float("-inf")
# Query rows scored at once: bounds the scores held in memory to rows * H_q * pages.
ROWS_PER_BLOCK = 256


def compute_logits(
    q: torch.Tensor,
    chunk_repr: torch.Tensor,
    candidate: torch.Tensor,
    *,
    kind: str,
    strategy: str,
    sm_scale: float,
    local_lse: Optional[torch.Tensor] = None,
    channels: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Scores of one sequence's pages for some of its queries.

    Args:
        q: queries ``[T, H_q, D]``.
        chunk_repr: representations of the sequence's pages ``[C, H_kv, repr_dim]``.
        candidate: which pages each query may select ``[T, C]`` bool.
        kind: representation kind, a name in ``chunk_repr.KINDS``.
        strategy: how the query heads of a KV head become one score: ``group`` sums them, ``head`` takes their
            maximum, ``softmax_head`` the maximum of raw minus the head's log normaliser.
        sm_scale: softmax scale of the layer.
        local_lse: log-sum-exp of window and sinks ``[T, H_q]`` float32; needed by ``softmax_head``.
        channels: that a kind which keeps some of them takes ``[R]`` int32.

    Returns:
        (logits ``[T, H_kv, C]``, raw ``[T, H_q, C]``), float32, -inf where ``candidate`` is False.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_pages, num_kv_heads, _ = chunk_repr.shape
    grouped = q.reshape(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    raw = KINDS[kind].raw_scores(grouped, chunk_repr, sm_scale, channels)
    # A page without a representation may hold anything, NaN included: mask before any arithmetic.
    raw = raw.masked_fill(~candidate[:, None, None, :], NEG_INF)

    if strategy == "group":
        logits = raw.sum(dim=2)
    elif strategy == "head":
        logits = raw.amax(dim=2)
    elif strategy == "softmax_head":
        lse = local_lse.view(num_tokens, num_kv_heads, -1)
        norm = torch.logaddexp(lse, torch.logsumexp(raw, dim=-1))
        logits = (raw - norm.unsqueeze(-1)).amax(dim=2)
    else:
        raise ValueError(f"unknown selection strategy {strategy!r}")
    return logits, raw.view(num_tokens, num_heads, num_pages)


def topk_transform(
    logits: torch.Tensor, topk: int, page_table: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The k best pages per query and KV head, as logical and as physical pages.

    The order is total: higher score first, then the smaller logical page. The output is ascending.

    Args:
        logits: ``[T, H_kv, C]`` float32, -inf where a page is not selectable.
        topk: pages to keep, at least 1.
        page_table: physical page of each logical page ``[C]``.

    Returns:
        (logical, physical) ``[T, H_kv, min(topk, C)]`` int32, padded at the end with -1.
    """
    num_pages = logits.shape[-1]
    width = min(topk, num_pages)
    scores, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    chosen = order[..., :width].masked_fill(scores[..., :width] == NEG_INF, num_pages)
    logical, _ = torch.sort(chosen, dim=-1)  # the absent ones, num_pages, go last
    absent = logical == num_pages
    physical = page_table.long()[logical.masked_fill(absent, 0)]
    return (
        logical.masked_fill(absent, -1).int(),
        physical.masked_fill(absent, -1).int(),
    )


def select_pages(
    q: torch.Tensor,
    repr_buffer: torch.Tensor,
    repr_valid: torch.Tensor,
    page_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    page_size: int,
    window_size: int,
    sink_pages: int,
    topk: int,
    kind: str,
    strategy: str,
    sm_scale: float,
    local_lse: Optional[torch.Tensor] = None,
    channels: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Select pages for a batch of sequences whose queries are packed one after another.

    Args:
        q: queries ``[T, H_q, D]``; those of sequence b are its last ``cu_seqlens_q[b + 1] - cu_seqlens_q[b]``
            positions.
        repr_buffer: representations by physical page ``[num_pages, H_kv, repr_dim]``.
        repr_valid: whether the sequence's logical page has a representation ``[B, max_pages]`` bool.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        cu_seqlens_q: ``[B + 1]`` int32.
        seq_lens: keys of each sequence, its new ones included ``[B]`` int32.
        local_lse, channels: see ``compute_logits``; ``[T, H_q]``, ``[R]``.

    Returns:
        selected physical pages ``[T, H_kv, K]`` int32, ascending by logical page, padded with -1, and their
        raw scores per query head ``[T, H_q, K]`` float32, -inf where padded. K is at most ``topk`` and at most
        the largest number of candidates in the batch.
    """
    starts, lens = cu_seqlens_q.tolist(), seq_lens.tolist()
    num_heads, num_kv_heads = q.shape[1], repr_buffer.shape[1]
    widest = max(
        num_candidate_pages(n - 1, window_size, page_size, sink_pages) for n in lens
    )
    width = min(topk, widest)
    selected = torch.full(
        (q.shape[0], num_kv_heads, width), -1, dtype=torch.int32, device=q.device
    )
    scores = torch.full(
        (q.shape[0], num_heads, width), NEG_INF, dtype=torch.float32, device=q.device
    )

    for b, seq_len in enumerate(lens):
        last = num_candidate_pages(seq_len - 1, window_size, page_size, sink_pages)
        if last == 0:
            continue
        pages = page_table[b, sink_pages : sink_pages + last]  # [C]
        chunk_repr = take(repr_buffer, pages.long())  # [C, H_kv, R]
        valid = repr_valid[b, sink_pages : sink_pages + last]
        first_position = seq_len - (starts[b + 1] - starts[b])
        for lo in range(starts[b], starts[b + 1], ROWS_PER_BLOCK):
            hi = min(lo + ROWS_PER_BLOCK, starts[b + 1])
            position = first_position + torch.arange(
                lo - starts[b], hi - starts[b], device=q.device
            )
            count = num_candidate_pages(position, window_size, page_size, sink_pages)
            candidate = valid & (
                torch.arange(last, device=q.device) < count.unsqueeze(1)
            )
            logits, raw = compute_logits(
                q[lo:hi],
                chunk_repr,
                candidate,
                kind=kind,
                strategy=strategy,
                sm_scale=sm_scale,
                local_lse=None if local_lse is None else local_lse[lo:hi],
                channels=channels,
            )
            logical, physical = topk_transform(logits, topk, pages)
            k = logical.shape[-1]
            selected[lo:hi, :, :k] = physical
            index = logical.long().repeat_interleave(num_heads // num_kv_heads, dim=1)
            picked = raw.gather(-1, index.clamp(min=0))
            scores[lo:hi, :, :k] = picked.masked_fill(index < 0, NEG_INF)
    return selected, scores
