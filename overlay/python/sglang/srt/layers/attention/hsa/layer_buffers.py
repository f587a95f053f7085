# SPDX-License-Identifier: Apache-2.0
"""LayerBuffers: what selection and attention read of one layer, whoever keeps its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

import torch

from sglang.srt.layers.attention.hsa.scales import KVScales

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin


class LayerBuffers(NamedTuple):
    """Cache and constants of one layer.

    Attributes:
        keys, values: ``[num_slots, H_kv, D]``, ``[num_slots, H_kv, D_v]``; slot = page * page_size + offset.
        reprs: representations by physical page ``[num_pages, H_kv, repr_dim]``.
        stamps: page version that each representation was written for ``[num_pages]`` int64; None if every
            complete page has a valid one.
        versions: page versions, read before the page table ``[num_pages]`` int64; None where nobody compares them.
        scaling: softmax scale.
        logit_cap: soft cap of the logits, 0 for none.
        scales: of cached keys and values.
        mask_last_slot: the last slot of a page is no key of attention (see ``layout``).
        channels: that representations are taken from ``[R]`` int32; None for a kind that takes all.
    """

    keys: torch.Tensor
    values: torch.Tensor
    reprs: torch.Tensor
    stamps: Optional[torch.Tensor]
    versions: Optional[torch.Tensor]
    scaling: float
    logit_cap: float
    scales: KVScales
    mask_last_slot: bool = False
    channels: Optional[torch.Tensor] = None


def pool_buffers(
    layer: RadixAttention,
    pool: ChunkReprMixin,
    scales: KVScales,
    versions: Optional[torch.Tensor],
    mask_last_slot: bool,
) -> LayerBuffers:
    """Buffers of a layer in the server's pool; the last two arguments as in LayerBuffers. Views only, nothing is launched."""
    keys, values = pool.get_kv_buffer(layer.layer_id)
    stored = pool.chunk_repr_kind.stored
    return LayerBuffers(
        keys,
        values,
        pool.chunk_repr_pages(layer.layer_id),
        pool.chunk_repr_stamp(layer.layer_id) if stored else None,
        versions,
        layer.scaling,
        layer.logit_cap,
        scales,
        mask_last_slot,
        pool.chunk_repr_channels(layer.layer_id),
    )
