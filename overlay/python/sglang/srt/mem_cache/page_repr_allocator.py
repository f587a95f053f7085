# SPDX-License-Identifier: Apache-2.0
"""Allocators that tell a pool with page representations which pages they hand out (see ``page_repr_pool``)."""

from __future__ import annotations

from typing import Optional

import torch

from sglang.srt.layers.attention.hsa.compat import swa_allocator_class
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.page_repr_pool import HSASWAKVPool

SWATokenToKVPoolAllocator = swa_allocator_class()


class HSAPagedTokenToKVPoolAllocator(PagedTokenToKVPoolAllocator):
    """PagedTokenToKVPoolAllocator that bumps the version of every page it hands out."""

    def alloc(self, need_size: int):
        return self._handed_out(super().alloc(need_size))

    def alloc_extend(self, *args, **kwargs):
        return self._handed_out(super().alloc_extend(*args, **kwargs))

    def alloc_decode(self, *args, **kwargs):
        return self._handed_out(super().alloc_decode(*args, **kwargs))

    def clear(self):
        super().clear()
        self._kvcache.invalidate_all_pages()

    @property
    def page_handouts(self) -> int:
        """Hand-outs so far; a batch takes this number with it when it is built."""
        return self._kvcache.page_handouts

    def _handed_out(self, slots: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
        if slots is not None:
            self._kvcache.bump_page_version(slots)
        return slots


class HSASWATokenToKVPoolAllocator(SWATokenToKVPoolAllocator):
    """SWATokenToKVPoolAllocator that bumps the version of every full-attention page it hands out."""

    def __init__(
        self,
        size: int,
        size_swa: int,
        page_size: int,
        dtype: torch.dtype,
        device: str,
        kvcache: HSASWAKVPool,
        need_sort: bool,
        **later,  # what later releases hand on
    ):
        super().__init__(
            size, size_swa, page_size, dtype, device, kvcache, need_sort, **later
        )
        self.full_attn_allocator = HSAPagedTokenToKVPoolAllocator(
            size, page_size, dtype, device, kvcache, need_sort
        )

    @property
    def page_handouts(self) -> int:
        """Hand-outs so far; a batch takes this number with it when it is built."""
        return self._kvcache.page_handouts
