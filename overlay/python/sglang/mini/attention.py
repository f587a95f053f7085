# SPDX-License-Identifier: Apache-2.0
"""What every attention backend has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Optional, Tuple

import torch

from sglang.mini.kv_cache import CacheState

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.counters import HSACounters

QKV = Tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class AttentionBackend(ABC):
    """Attention of new tokens over the paged cache.

    Attributes:
        requested, name: what was asked for and what runs. reason: why they differ, or None.
        page_size: tokens per page that it was made for.
        counters: what it selected and attended; None if it does not count.
    """

    requested: str
    reason: Optional[str] = None
    counters: Optional[HSACounters] = None

    def __init__(self, page_size: Optional[int] = None):
        self.page_size = 512 if page_size is None else page_size

    @property
    def name(self) -> str:
        return self.requested if self.available() else "torch"

    def available(self) -> bool:
        """Whether what was asked for runs on this device, dtype and model; if not, torch does in its place."""
        return self.reason is None

    def prefill(
        self, qkv: QKV, cache_state: CacheState, positions: torch.Tensor
    ) -> torch.Tensor:
        """Store keys and values, then attend causally over the cache.

        Args:
            qkv: rotated queries ``[T, H_q, D]``, keys and values ``[T, H_kv, D]``, request after request.
            cache_state: of this layer.
            positions: of the new tokens ``[T]`` int64.

        Returns:
            ``[T, H_q, D]`` in the dtype of the queries.
        """
        q, k, v = qkv
        cache_state.kv.write(cache_state.spec.layer, cache_state.slots, k, v)
        return self.attend(q, cache_state, positions)

    def decode(self, last_token: QKV, cache_state: CacheState) -> torch.Tensor:
        """As ``prefill``, with one new token per request: ``[B, H_q, D]``."""
        return self.prefill(last_token, cache_state, cache_state.positions)

    @abstractmethod
    def attend(
        self, q: torch.Tensor, state: CacheState, positions: torch.Tensor
    ) -> torch.Tensor:
        """Queries ``[T, H_q, D]`` at ``positions`` ``[T]`` int64 -> ``[T, H_q, D]``; keys and values are stored."""
