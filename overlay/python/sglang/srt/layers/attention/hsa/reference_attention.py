# SPDX-License-Identifier: Apache-2.0
"""Selection and attention of one layer on the torch reference ops: extend and decode, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

import torch

from sglang.srt.layers.attention.hsa.layer_buffers import LayerBuffers
from sglang.srt.layers.attention.hsa.ops.decode.reference import (
    decode_hsa_fwd,
    decode_local_fwd,
)
from sglang.srt.layers.attention.hsa.ops.extend.reference import (
    extend_hsa_fwd,
    extend_local_fwd,
)
from sglang.srt.layers.attention.hsa.ops.merge.reference import merge_state
from sglang.srt.layers.attention.hsa.selector import HSASelector

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig


def attend_reference(
    q: torch.Tensor,
    layer: LayerBuffers,
    repr_valid: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    *,
    decode: bool,
    config: HSAConfig,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """One layer; its new keys, values and representations are written.

    Args:
        q: packed queries ``[T, H_q, D]``.
        repr_valid: which logical pages have a representation ``[B, max_pages]`` bool.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        seq_lens: keys of each sequence, its new ones included ``[B]`` int32.
        cu_seqlens_q: prefix sums of the new tokens ``[B + 1]`` int32.
        decode: one new token per sequence.

    Returns:
        (o ``[T, H_q, D_v]`` float32, selected physical pages ``[T, H_kv, K]`` int32, -1 for none).
    """
    keys, values, scales = layer.keys, layer.values, layer.scales
    common = dict(
        page_size=config.page_size,
        sm_scale=layer.scaling,
        logit_cap=layer.logit_cap,
        k_scale=scales.k,
        v_scale=scales.v,
        mask_last_slot=layer.mask_last_slot,
    )
    cut = dict(window_size=config.effective_window, sink_pages=config.sink_pages)
    if decode:
        o, lse = decode_local_fwd(
            q, keys, values, page_table, seq_lens, **common, **cut
        )
    else:
        o, lse = extend_local_fwd(
            q, keys, values, page_table, cu_seqlens_q, seq_lens, **common, **cut
        )
    selector = HSASelector(config)
    selected, scores = selector.select(
        q,
        layer.reprs,
        repr_valid,
        page_table,
        cu_seqlens_q,
        seq_lens,
        layer.scaling * scales.score,
        lse if selector.needs_local_lse else None,
        layer.channels,
    )
    if not selected.shape[-1]:  # no row has a candidate page
        return o, selected
    common["scores"] = scores if config.weight_mode == "score" else None
    if decode:
        far = decode_hsa_fwd(q, keys, values, selected, page_table, seq_lens, **common)
    else:
        far = extend_hsa_fwd(
            q, keys, values, selected, cu_seqlens_q, seq_lens, **common
        )
    return merge_state(o, lse, *far)[0], selected
