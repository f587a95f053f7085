# SPDX-License-Identifier: Apache-2.0
"""Prefix cache: a tree of full pages, keyed by their tokens, evicted leaf by leaf."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from sglang.mini.api import MiniError
from sglang.mini.kv_cache import PagedKVCache

Key = Tuple[int, ...]


@dataclass(eq=False)
class _Node:
    """One page. Its tokens (``key``) and those of its ancestors are the prefix it belongs to."""

    page: int
    key: Key = ()
    parent: Optional[_Node] = None
    children: Dict[Key, _Node] = field(default_factory=dict)
    last_used: int = 0
    hits: int = 0


class PrefixCache:
    """Keeps the pages of past requests for requests that begin with the same tokens.

    Args:
        kv: owner of the pages; the tree counts as one user of each of its pages.
        policy: ``lru`` evicts the page that was used longest ago, ``lfu`` the one that was matched least often.

    Raises:
        MiniError: for another policy.
    """

    def __init__(self, kv: PagedKVCache, policy: str = "lru"):
        if policy not in ("lru", "lfu"):
            raise MiniError(f"eviction {policy!r} is not known: use lru or lfu.")
        self.kv, self.policy = kv, policy
        self.root = _Node(page=-1)
        self.clock = self.evicted = 0

    def _keys(self, tokens: Sequence[int]) -> List[Key]:
        """Tokens of each full page."""
        size = self.kv.page_size
        ends = range(size, len(tokens) + 1, size)
        return [tuple(tokens[end - size : end]) for end in ends]

    def _touch(self, node: _Node) -> None:
        self.clock += 1
        node.last_used = self.clock

    def match(self, tokens: Sequence[int]) -> List[_Node]:
        """Path of the longest cached prefix in full pages. Retain its pages before anything can be evicted."""
        node, path = self.root, []
        for key in self._keys(tokens):
            node = node.children.get(key)
            if node is None:
                break
            path.append(node)
        return path

    def count_hit(self, path: Sequence[_Node]) -> None:
        """A request runs with this path: what eviction goes by."""
        for node in path:
            node.hits += 1
            self._touch(node)

    def insert(self, tokens: Sequence[int], pages: List[int]) -> int:
        """Add the full pages of a request, and replace in ``pages`` those that the tree already has.

        After this a request that uses a page of the tree uses all ancestors of it too, so a page without users
        never stands above one that has some.

        Returns:
            Index of the first page that was replaced; ``len(pages)`` if none was.
        """
        node, replaced = self.root, len(pages)
        for index, key in enumerate(self._keys(tokens)):
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = _Node(pages[index], key, node)
                self.kv.retain([child.page])
            elif child.page != pages[index]:
                self.kv.retain([child.page])
                self.kv.release([pages[index]])
                pages[index] = child.page
                replaced = min(replaced, index)
            self._touch(child)
            node = child
        return replaced

    def evictable(self) -> int:
        """Pages that only the tree uses; all of them can be evicted."""
        return sum(self.kv.refs[page] == 1 for page in self.pages())

    def evict(self, count: int) -> int:
        """Free up to ``count`` pages that nobody but the tree uses; returns how many."""
        heap = [self._entry(node) for node in self._nodes() if self._removable(node)]
        heapq.heapify(heap)
        freed = 0
        while heap and freed < count:
            node = heapq.heappop(heap)[-1]
            del node.parent.children[node.key]
            self.kv.release([node.page])
            freed += 1
            if self._removable(node.parent):
                heapq.heappush(heap, self._entry(node.parent))
        self.evicted += freed
        return freed

    def _entry(self, node: _Node) -> Tuple[int, int, int, _Node]:
        hits = node.hits if self.policy == "lfu" else 0
        return hits, node.last_used, id(node), node

    def _removable(self, node: _Node) -> bool:
        unused = node is not self.root and self.kv.refs[node.page] == 1
        return unused and not node.children

    def _nodes(self) -> Iterator[_Node]:
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            yield node

    def pages(self) -> List[int]:
        """All pages of the tree."""
        return [node.page for node in self._nodes()]
