# SPDX-License-Identifier: Apache-2.0
"""Scales of a layer's cached keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin


class KVScales(NamedTuple):
    """Dequantisation factors of one layer.

    Attributes:
        k, v: of its cached keys and values; 1 for a cache that is not quantised.
        score: of its page scores: keys that serve as representations are still quantised.
    """

    k: float
    v: float
    score: float


def kv_scales(layer: RadixAttention, pool: ChunkReprMixin) -> KVScales:
    """Scales of a layer in its pool."""
    if pool.dtype.itemsize != 1 or layer.k_scale is None:
        return KVScales(1.0, 1.0, 1.0)
    score = 1.0 if pool.chunk_repr_kind.stored else layer.k_scale_float
    return KVScales(layer.k_scale_float, layer.v_scale_float, score)
