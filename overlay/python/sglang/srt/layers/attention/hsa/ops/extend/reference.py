# SPDX-License-Identifier: Apache-2.0
"""Reference of the extend op: attention of new tokens over the paged past, for a batch of sequences.

Attention is computed in two parts that ``merge_state`` joins into one softmax: the local part (window and
sink pages) and the selected pages. Both read K and V through the page table only.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple, Optional, Tuple

import torch

from sglang.srt.layers.attention.hsa.layout import window_start_page
from sglang.srt.layers.attention.hsa.ops.gather import take
from sglang.srt.layers.attention.hsa.ops.softmax import (
    masked_logits,
    rescale_pages,
    softmax_attend,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams

# Query rows attended at once: bounds the logits held in memory to rows * H_q * keys.
ROWS_PER_BLOCK = 256


class _Block(NamedTuple):
    """Rows ``lo:hi`` of the packed queries, all of one sequence."""

    sequence: int
    lo: int
    hi: int
    first_position: int


def _blocks(cu_seqlens_q: torch.Tensor, seq_lens: torch.Tensor) -> Iterator[_Block]:
    starts, lens = cu_seqlens_q.tolist(), seq_lens.tolist()
    for b, seq_len in enumerate(lens):
        shift = seq_len - starts[b + 1]  # position of row r is r + shift
        for lo in range(starts[b], starts[b + 1], ROWS_PER_BLOCK):
            yield _Block(b, lo, min(lo + ROWS_PER_BLOCK, starts[b + 1]), lo + shift)


def _heads_first(rows: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """``[T, H_q, D]`` -> ``[H_kv, G * T, D]`` float32: the query heads of a KV head share its keys."""
    grouped = rows.float().unflatten(1, (num_kv_heads, -1))  # [T, H_kv, G, D]
    return grouped.permute(1, 2, 0, 3).flatten(1, 2)


def _rows_first(x: torch.Tensor, num_rows: int) -> torch.Tensor:
    """``[H_kv, G * T, ...]`` -> ``[T, H_q, ...]``."""
    x = x.unflatten(1, (-1, num_rows))  # [H_kv, G, T, ...]
    return x.movedim(2, 0).flatten(1, 2)


def _gather(buffer: torch.Tensor, slots: torch.Tensor, scale: float) -> torch.Tensor:
    """``[num_slots, H_kv, D]``, ``[J]`` -> ``[H_kv, J, D]`` float32, dequantised."""
    return (take(buffer, slots).float() * scale).transpose(0, 1)


def _empty_partials(
    q: torch.Tensor, v_buffer: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    o = q.new_zeros((*q.shape[:2], v_buffer.shape[-1]), dtype=torch.float32)
    lse = q.new_full(q.shape[:2], float("-inf"), dtype=torch.float32)
    return o, lse


def extend_local_fwd(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    page_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    params: AttentionParams,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Causal attention over the window and the sink pages (see ``layout``).

    Args:
        q: queries ``[T, H_q, D]``; those of sequence b are its last positions.
        k_buffer, v_buffer: ``[num_slots, H_kv, D]``, ``[num_slots, H_kv, D_v]``; the new tokens are written.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        cu_seqlens_q: ``[B + 1]`` int32.
        seq_lens: keys of each sequence, its new ones included ``[B]`` int32.

    Returns:
        (o ``[T, H_q, D_v]``, lse ``[T, H_q]``) float32.
    """
    o, lse = _empty_partials(q, v_buffer)
    num_kv_heads = k_buffer.shape[1]
    page_size, sink_pages = params.page_size, params.sink_pages
    layout = params.window_size, page_size, params.dense_below
    for block in _blocks(cu_seqlens_q, seq_lens):
        rows = slice(block.lo, block.hi)
        num_rows = block.hi - block.lo
        last_position = block.first_position + num_rows - 1
        position = torch.arange(block.first_position, last_position + 1).to(q.device)
        start = window_start_page(position, *layout)  # [T]

        # Keys that any row of the block needs: sink pages, then from the first row's window on.
        first_start = window_start_page(block.first_position, *layout)
        last_start = window_start_page(last_position, *layout)
        sink_end = min(sink_pages, last_start) * page_size
        window_begin = max(first_start * page_size, sink_end)
        key = torch.cat(
            [torch.arange(sink_end), torch.arange(window_begin, last_position + 1)]
        ).to(q.device)
        if params.mask_last_slot:
            key = key[key % page_size < page_size - 1]
        table = page_table[block.sequence].long()
        slots = table[key // page_size] * params.slots_per_page + key % page_size

        in_window = (key >= start.unsqueeze(1) * page_size) & (
            key <= position.unsqueeze(1)
        )
        if params.exact_window:
            in_window &= key > position.unsqueeze(1) - params.exact_window
        in_sinks = key < start.clamp(max=sink_pages).unsqueeze(1) * page_size
        mask = in_window | in_sinks  # [T, J]
        group = q.shape[1] // num_kv_heads
        logits = masked_logits(
            _heads_first(q[rows], num_kv_heads),
            _gather(k_buffer, slots, params.k_scale),
            mask.repeat(group, 1),
            params,
        )
        block_o, block_lse = softmax_attend(
            logits, _gather(v_buffer, slots, params.v_scale)
        )
        o[rows] = _rows_first(block_o, num_rows)
        lse[rows] = _rows_first(block_lse, num_rows)
    return o, lse


def extend_hsa_fwd(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    selected_pages: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    params: AttentionParams,
    scores: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Attention over the selected pages of each query and KV head.

    Selected pages are complete and lie left of the query's window, so no causal mask is needed.

    Args:
        q, k_buffer, v_buffer, cu_seqlens_q, seq_lens: as in ``extend_local_fwd``.
        selected_pages: physical pages ``[T, H_kv, K]`` int32, -1 for none.
        scores: ``[T, H_q, K]`` float32. None weighs keys by their logits (``mass``); given, a page weighs
            exp(score) and its keys share that by the softmax within the page (``score``).

    Returns:
        (o ``[T, H_q, D_v]``, lse ``[T, H_q]``) float32; o = 0, lse = -inf where nothing is selected.
    """
    o, lse = _empty_partials(q, v_buffer)
    num_kv_heads = k_buffer.shape[1]
    group = q.shape[1] // num_kv_heads
    keys_per_page = params.keys_per_page
    for block in _blocks(cu_seqlens_q, seq_lens):
        rows = slice(block.lo, block.hi)
        num_rows = block.hi - block.lo
        # Gather the union of the block's pages once; each row attends its own through the mask.
        chosen = selected_pages[rows].long()  # [T, H_kv, K]
        pages = torch.unique(chosen[chosen >= 0])  # [C]
        if pages.numel() == 0:
            continue
        column = torch.searchsorted(pages, chosen.clamp(min=0)).clamp(
            max=pages.numel() - 1
        )
        column = column.masked_fill(chosen < 0, pages.numel())  # a column to drop
        member = torch.zeros(
            (num_rows, num_kv_heads, pages.numel() + 1),
            dtype=torch.bool,
            device=q.device,
        )
        member = member.scatter_(-1, column, True)[..., :-1]  # [T, H_kv, C]

        offset = torch.arange(keys_per_page, device=q.device)
        slots = (pages.unsqueeze(1) * params.slots_per_page + offset).flatten()
        mask = member.transpose(0, 1).repeat(1, group, 1)  # [H_kv, G * T, C]
        logits = masked_logits(
            _heads_first(q[rows], num_kv_heads),
            _gather(k_buffer, slots, params.k_scale),
            mask.repeat_interleave(keys_per_page, dim=-1),
            params,
        )
        if scores is not None:
            by_page = torch.full(
                (num_rows, q.shape[1], pages.numel() + 1),
                float("-inf"),
                device=q.device,
            )
            by_page.scatter_(-1, column.repeat_interleave(group, dim=1), scores[rows])
            page_scores = _heads_first(by_page[..., :-1], num_kv_heads)
            logits = rescale_pages(logits, page_scores, keys_per_page)
        block_o, block_lse = softmax_attend(
            logits, _gather(v_buffer, slots, params.v_scale)
        )
        o[rows] = _rows_first(block_o, num_rows)
        lse[rows] = _rows_first(block_lse, num_rows)
    return o, lse
