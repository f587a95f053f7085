# SPDX-License-Identifier: Apache-2.0
"""Reference of the decode op: attention of one new token per sequence over the paged past.

Same mathematics as the extend op, written over the batch: every row gathers its own keys.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch

from sglang.srt.layers.attention.hsa.layout import window_start_page
from sglang.srt.layers.attention.hsa.ops.gather import take
from sglang.srt.layers.attention.hsa.ops.softmax import (
    masked_logits,
    rescale_pages,
    softmax_attend,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams


def _grouped(q: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """``[B, H_q, D]`` -> ``[B, H_kv, G, D]`` float32."""
    return q.float().unflatten(1, (num_kv_heads, -1))


def _own_slot(
    page_table: torch.Tensor, position: torch.Tensor, page_size: int
) -> torch.Tensor:
    """Slot of each sequence's newest token ``[B]`` int64."""
    page = page_table.long().gather(1, (position // page_size).unsqueeze(1)).squeeze(1)
    return page * page_size + position % page_size


def decode_local_fwd(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    params: AttentionParams,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Attention over the window and the sink pages (see ``layout``).

    Args:
        q: queries ``[B, H_q, D]``, each at the last position of its sequence.
        k_buffer, v_buffer: ``[num_slots, H_kv, D]``, ``[num_slots, H_kv, D_v]``; the new tokens are written.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        seq_lens: keys of each sequence, the new one included ``[B]`` int32, at least 1.

    Returns:
        (o ``[B, H_q, D_v]``, lse ``[B, H_q]``) float32.
    """
    device = q.device
    position = seq_lens.long() - 1  # [B]
    page_size, window_size = params.page_size, params.window_size
    start = window_start_page(position, window_size, page_size)
    widest = (max(window_size, 1) - 1) // page_size + 2  # pages a window can touch
    sinks = torch.arange(params.sink_pages, device=device).expand(q.shape[0], -1)
    window = start.unsqueeze(1) + torch.arange(widest, device=device)
    logical = torch.cat([sinks, window], dim=1)  # [B, N]
    used = torch.cat(
        [
            sinks < start.unsqueeze(1),
            window <= (position // page_size).unsqueeze(1),
        ],
        dim=1,
    )
    physical = page_table.long().gather(1, logical.clamp(max=page_table.shape[1] - 1))

    keys_per_page = params.keys_per_page
    offset = torch.arange(keys_per_page, device=device)
    key = (logical.unsqueeze(-1) * page_size + offset).flatten(1)  # [B, J]
    mask = used.repeat_interleave(keys_per_page, dim=1) & (key <= position.unsqueeze(1))
    slots = (physical.unsqueeze(-1) * page_size + offset).flatten(1)
    # Unwritten slots may hold NaN, and 0 * NaN is NaN: masked keys read the newest token instead.
    slots = torch.where(
        mask, slots, _own_slot(page_table, position, page_size).unsqueeze(1)
    )

    k = (take(k_buffer, slots).float() * params.k_scale).transpose(
        1, 2
    )  # [B, H_kv, J, D]
    v = (take(v_buffer, slots).float() * params.v_scale).transpose(1, 2)
    logits = masked_logits(
        _grouped(q, k_buffer.shape[1]), k, mask[:, None, None, :], params
    )
    o, lse = softmax_attend(logits, v)
    return o.flatten(1, 2), lse.flatten(1, 2)


def decode_hsa_fwd(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    selected_pages: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    params: AttentionParams,
    scores: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Attention over the selected pages of each sequence and KV head.

    Args:
        q, k_buffer, v_buffer, page_table, seq_lens: as in ``decode_local_fwd``.
        selected_pages: physical pages ``[B, H_kv, K]`` int32, -1 for none.
        scores: ``[B, H_q, K]`` float32 or None, as in ``extend_hsa_fwd``.

    Returns:
        (o ``[B, H_q, D_v]``, lse ``[B, H_q]``) float32; o = 0, lse = -inf where nothing is selected.
    """
    device = q.device
    num_kv_heads = k_buffer.shape[1]
    page_size, keys_per_page = params.page_size, params.keys_per_page
    offset = torch.arange(keys_per_page, device=device)
    pages = selected_pages.long()
    slots = (pages.unsqueeze(-1) * page_size + offset).flatten(2)  # [B, H_kv, J]
    mask = (pages >= 0).repeat_interleave(keys_per_page, dim=-1)
    own = _own_slot(page_table, seq_lens.long() - 1, page_size)
    slots = torch.where(mask, slots, own[:, None, None])

    head = torch.arange(num_kv_heads, device=device).view(1, -1, 1)
    k = take(k_buffer, slots, head).float() * params.k_scale  # [B, H_kv, J, D]
    v = take(v_buffer, slots, head).float() * params.v_scale
    logits = masked_logits(_grouped(q, num_kv_heads), k, mask.unsqueeze(2), params)
    if scores is not None:
        logits = rescale_pages(logits, _grouped(scores, num_kv_heads), keys_per_page)
    o, lse = softmax_attend(logits, v)
    return o.flatten(1, 2), lse.flatten(1, 2)
