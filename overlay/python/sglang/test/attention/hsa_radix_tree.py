# SPDX-License-Identifier: Apache-2.0
"""The radix cache that the release's scheduler takes by default, behind the calls that the storage tests make of it."""

from __future__ import annotations

from array import array
from typing import List, Tuple

import torch

from sglang.srt.mem_cache.base_prefix_cache import (
    BasePrefixCache,
    EvictParams,
    InsertParams,
    MatchPrefixParams,
)
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.test.attention.hsa_release import finish


class RadixTree:
    """``RadixCache``: until 0.5.18 the only one.

    Args:
        rows: ReqToTokenPool.
        allocator: of the pages.
    """

    def __init__(self, rows, allocator, page_size: int):
        self.rows, self.allocator = rows, allocator
        self.cache = self.make(
            disable=False,
            req_to_token_pool=rows,
            token_to_kv_pool_allocator=allocator,
            page_size=page_size,
        )

    def make(self, **params) -> BasePrefixCache:
        return RadixCache(CacheInitParams(**params))

    @property
    def root(self):
        return self.cache.root_node

    def key(self, tokens: List[int]) -> RadixKey:
        return RadixKey(tokens)

    def match(self, tokens: List[int]) -> Tuple[torch.Tensor, object]:
        """Slots of the longest cached prefix ``[N]`` and the node where it ends."""
        found = self.cache.match_prefix(MatchPrefixParams(key=self.key(tokens)))
        return found.device_indices, found.last_device_node

    def hold(self, req) -> None:
        """Keep the path to a request's node from eviction."""
        self.cache.inc_lock_ref(req.last_node)

    def keep(self, req, chunked: bool = False) -> None:
        """Give a running request's pages to the tree; ``chunked``: its prompt is not complete."""
        self.cache.cache_unfinished_req(req, chunked=chunked)

    def finish(self, req, insert: bool) -> None:
        """Give a request's pages to the tree, or back, and end it there."""
        finish(self.cache, req, insert)

    def insert(self, tokens: List[int], slots: torch.Tensor, cached: int) -> None:
        """Give the tree the slots of a sequence; of the first ``cached`` it has them already."""
        self.cache.insert(InsertParams(key=self.key(tokens), value=slots))

    def evict(self, tokens: int) -> None:
        self.cache.evict(EvictParams(num_tokens=tokens))

    def reset(self) -> None:
        self.cache.reset()

    def tokens(self) -> int:
        return self.cache.evictable_size() + self.cache.protected_size()


class UnifiedTree(RadixTree):
    """``UnifiedRadixCache``, the default since 0.5.19: its core is compiled and knows nodes by number."""

    def make(self, **params) -> BasePrefixCache:
        from sglang.srt.mem_cache.unified_cache.components import ComponentType
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

        components = (ComponentType.FULL,)
        return UnifiedRadixCache(CacheInitParams(**params, tree_components=components))

    @property
    def root(self):
        return self.cache.root_node_handle()

    def key(self, tokens):
        return RadixKey(array("q", tokens))

    def match(self, tokens):
        found = self.cache.match_prefix(MatchPrefixParams(key=self.key(tokens)))
        path = self.cache.path_device_indices(found.last_device_node)
        return path[: found.device_prefix_len], found.last_device_node

    def insert(self, tokens, slots, cached):
        # It frees what it has in other slots after ``prev_prefix_len``.
        key = self.key(tokens)
        self.cache.insert(InsertParams(key=key, value=slots, prev_prefix_len=cached))

    def hold(self, req):
        req.lock = self.cache.lock(req.last_node)

    def keep(self, req, chunked=False):
        tokens = req.origin_input_ids
        req.origin_input_ids = array("q", tokens)
        self.cache.checkpoint(req, up_to=req.kv_committed_len)
        req.origin_input_ids = tokens

    def finish(self, req, insert):
        length = req.kv_committed_len
        if insert:
            self.keep(req)
        own = self.rows.req_to_token[req.req_pool_idx, req.cache_protected_len : length]
        self.allocator.free(own.long())
        self.cache.unlock(req.lock)
        req.lock = None
        self.cache.on_release(req, checkpointed=insert)


Tree = UnifiedTree if hasattr(BasePrefixCache, "checkpoint") else RadixTree
