# SPDX-License-Identifier: Apache-2.0
"""The paged KV cache: tensors, reference-counted pages, where each token of a request lies, and what a pass sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, List, Optional, Sequence, Tuple

import torch

from sglang.mini.api import MiniError


class PagedKVCache:
    """Keys and values of all layers in pages of equal size.

    A slot is a token's place: page * page_size + offset. A page is free when its count is 0; every request that
    uses it counts once, and so does the prefix cache.

    Args:
        num_layers, num_kv_heads, head_dim: of the model.
        token_budget: tokens to hold; what does not fill a page is left out.
        page_size: tokens per page, a power of two of at least 16.
        max_requests: requests that can hold pages at once.
        max_tokens: tokens of the longest request, if the cache holds so many.

    Attributes:
        k_cache, v_cache: one tensor per layer ``[num_pages, page_size, num_kv_heads, head_dim]``.
        req_to_token: slot of each position of each request ``[max_requests, max_tokens]`` int32.
        free_rows: rows of it that no request has. refs: users of each page.

    Raises:
        MiniError: the page size is not valid, or the cache holds no page or does not fit into memory.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        token_budget: int,
        page_size: int,
        max_requests: int,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        if page_size < 16 or page_size & (page_size - 1):
            raise MiniError(
                f"page_size {page_size} is not valid: use a power of two of at least 16."
            )
        self.page_size, self.num_pages = page_size, token_budget // page_size
        if self.num_pages < 1:
            raise MiniError(
                f"the token budget holds no page of {page_size} tokens: raise token_budget or lower page_size."
            )
        shape = (num_layers, self.num_pages, page_size, num_kv_heads, head_dim)
        # Zeros, because kernels multiply masked values by 0 and 0 * NaN is NaN.
        try:
            self.k_cache = torch.zeros(shape, device=device, dtype=dtype).unbind()
            self.v_cache = torch.zeros(shape, device=device, dtype=dtype).unbind()
        except RuntimeError as error:  # out of memory, on every device
            size = 2 * torch.Size(shape).numel() * dtype.itemsize / 1e9
            raise MiniError(
                f"a cache of {size:.1f} GB does not fit into memory: lower token_budget."
            ) from error
        self.max_tokens = min(self.num_pages * page_size, max_tokens)
        table = (max_requests, self.max_tokens)
        self.req_to_token = torch.zeros(table, dtype=torch.int32, device=device)
        self.free_rows = list(range(max_requests))
        self.refs = [0] * self.num_pages
        self._free = list(range(self.num_pages - 1, -1, -1))

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def allocate(self, count: int) -> Optional[List[int]]:
        """``count`` pages with one user each, or None if there are not so many."""
        if count > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(count)]
        self.retain(pages)
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.refs[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.refs[page] -= 1
            if self.refs[page] == 0:
                self._free.append(page)

    def map_pages(self, row: int, pages: Sequence[int]) -> None:
        """Let the positions of a request lie in ``pages``."""
        slots = torch.tensor(pages, dtype=torch.int32)[:, None] * self.page_size
        slots = (slots + torch.arange(self.page_size, dtype=torch.int32)).flatten()
        place = self.req_to_token[row, : len(slots)]
        place.copy_(slots[: len(place)])

    def write(
        self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Store keys and values ``[T, num_kv_heads, head_dim]`` at ``slots`` ``[T]`` int64."""
        self.k_cache[layer].flatten(0, 1)[slots] = k
        self.v_cache[layer].flatten(0, 1)[slots] = v


@dataclass(frozen=True)
class LayerSpec:
    """What attention has to know of a layer; window and softcap are 0 for none.

    ``rotary``: the module that turns queries and keys by their positions; None if that is not known.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scaling: float
    window: int = 0
    softcap: float = 0.0
    rotary: Optional[torch.nn.Module] = None


class CacheState:
    """One forward pass over B requests with T new tokens, seen from one layer after another.

    Args:
        kv: the cache. specs: of all layers.
        rows: row of each request in ``kv.req_to_token``, which has its pages.
        spans: (first new position, end) of each request.

    Attributes:
        spec, k_cache, v_cache: of the layer that ``at`` named last.
        decode: every request has exactly one new token, and tokens before it.
        rows: ``[B]`` int64. spans: as given, the same list in all layers.
        positions, slots: of the new tokens ``[T]`` int64.
        page_table: physical page of each logical page ``[B, max_pages]`` int32; undefined past a request's end.
        cache_seqlens: keys of each request, the new ones included ``[B]`` int32.
        cu_seqlens_q: prefix sums of the new tokens ``[B + 1]`` int32. counts: new tokens of each request.
        completed_pages: physical pages that this pass fills to the end ``[C]`` int64.
    """

    def __init__(
        self,
        kv: PagedKVCache,
        specs: Sequence[LayerSpec],
        rows: List[int],
        spans: List[Tuple[int, int]],
    ):
        self.kv, self.specs, self.spans = kv, specs, spans
        self.counts = [end - first for first, end in spans]
        self.decode = all(0 < first == end - 1 for first, end in spans)
        device, size = kv.req_to_token.device, kv.page_size
        ends = torch.tensor([end for _, end in spans], dtype=torch.int32)
        counts = torch.tensor([0, *self.counts])
        self.rows, self.cache_seqlens = torch.tensor(rows).to(device), ends.to(device)
        self.cu_seqlens_q = counts.cumsum(0).int().to(device)
        self.positions = torch.cat([torch.arange(*span) for span in spans]).to(device)
        row = torch.tensor(rows).repeat_interleave(counts[1:]).to(device)  # [T]
        self.slots = kv.req_to_token[row, self.positions].long()
        self.page_table = kv.req_to_token[self.rows, : int(ends.max()) : size] // size
        full = [slice(first // size, end // size) for first, end in spans]
        pages = [self.page_table[b, logical] for b, logical in enumerate(full)]
        self.completed_pages = torch.cat(pages).long()

    def at(self, layer: int) -> CacheState:
        """Turn to a layer."""
        self.spec = self.specs[layer]
        self.k_cache, self.v_cache = self.kv.k_cache[layer], self.kv.v_cache[layer]
        return self
