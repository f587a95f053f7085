# SPDX-License-Identifier: Apache-2.0
"""Selection and attention of one layer on the torch reference ops: extend and decode, on any device."""

from __future__ import annotations

from typing import Optional, Tuple

import torch

from sglang.srt.layers.attention.hsa.ops.decode.reference import (
    decode_hsa_fwd,
    decode_local_fwd,
)
from sglang.srt.layers.attention.hsa.ops.extend.reference import (
    extend_hsa_fwd,
    extend_local_fwd,
)
from sglang.srt.layers.attention.hsa.ops.merge.reference import merge_state
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache
from sglang.srt.layers.attention.hsa.selector import HSASelector


def attend_reference(
    q: torch.Tensor,
    cache: LayerCache,
    repr_valid: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    params: AttentionParams,
    *,
    decode: bool,
    own: Optional[torch.Tensor] = None,
    select_q: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """One layer; its new keys, values and representations are written.

    Args:
        q: packed queries ``[T, H_q, D]``.
        repr_valid: which logical pages have a representation ``[B, max_pages]`` bool.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        seq_lens: keys of each sequence, its new ones included ``[B]`` int32.
        cu_seqlens_q: prefix sums of the new tokens ``[B + 1]`` int32.
        decode: one new token per sequence.
        own: pages of this batch ``[B, max_pages]`` bool, the only ones to select; None for all.
        select_q: queries that choose the pages ``[T, H_q, D]``; None for those that attend.

    Returns:
        (o ``[T, H_q, D_v]`` float32, selected physical pages ``[T, H_kv, K]`` int32, -1 for none).
    """
    keys, values = cache.keys, cache.values
    if decode:
        o, lse = decode_local_fwd(q, keys, values, page_table, seq_lens, params)
    else:
        o, lse = extend_local_fwd(
            q, keys, values, page_table, cu_seqlens_q, seq_lens, params
        )
    selected, scores = HSASelector(params, cache.channels).select(
        q if select_q is None else select_q,
        cache.reprs,
        repr_valid,
        page_table,
        cu_seqlens_q,
        seq_lens,
        lse,
        own,
        cache.biases,
    )
    scores = scores if params.by_score else None
    if not selected.shape[-1]:  # no row has a candidate page
        pass
    elif decode:
        far = decode_hsa_fwd(
            q, keys, values, selected, page_table, seq_lens, params, scores
        )
        o, lse = merge_state(o, lse, *far)
    else:
        far = extend_hsa_fwd(
            q, keys, values, selected, cu_seqlens_q, seq_lens, params, scores
        )
        o, lse = merge_state(o, lse, *far)
    return share_with_sinks(o, lse, params), selected


def share_with_sinks(
    o: torch.Tensor, lse: torch.Tensor, params: AttentionParams
) -> torch.Tensor:
    """Attention ``[T, H_q, D_v]`` whose log-sum-exp is lse ``[T, H_q]``, once its sink logits have their share."""
    if params.sink_logits is None:
        return o
    return o * torch.sigmoid(lse - params.sink_logits.float()).unsqueeze(-1)
