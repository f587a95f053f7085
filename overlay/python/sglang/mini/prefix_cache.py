# SPDX-License-Identifier: Apache-2.0
"""Prefix cache: full pages, keyed by their tokens and the page before them, evicted from the end of a prefix."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Tuple

from sglang.mini.api import MiniError
from sglang.mini.kv_cache import PagedKVCache

Key = Tuple[int, Tuple[int, ...]]  # the page before (-1 for none), tokens of the page


@dataclass
class Entry:
    page: int
    key: Key
    hits: int = 0


class PrefixCache:
    """Keeps the pages of past requests for requests that begin with the same tokens.

    Who uses a page uses all pages before it, too. So a page is used and hit no later and no more often than those
    before it, and eviction, which goes by that, never leaves a page whose prefix is gone.

    Args:
        kv: owner of the pages; the cache counts as one user of each of its pages.
        policy: ``lru`` evicts the page that was used longest ago, ``lfu`` the one that was matched least often.
        enabled: if not, nothing is kept.

    Raises:
        MiniError: for another policy.
    """

    def __init__(self, kv: PagedKVCache, policy: str = "lru", enabled: bool = True):
        if policy not in ("lru", "lfu"):
            raise MiniError(f"eviction {policy!r} is not known: use lru or lfu.")
        self.kv, self.policy, self.enabled = kv, policy, enabled
        self.entries: OrderedDict[Key, Entry] = OrderedDict()  # last used last
        self.evicted = 0

    def pages(self) -> List[int]:
        return [entry.page for entry in self.entries.values()]

    def _full_pages(self, tokens: Sequence[int]) -> Iterator[Tuple[int, ...]]:
        size = self.kv.page_size
        for end in range(size, len(tokens) + 1, size) if self.enabled else ():
            yield tuple(tokens[end - size : end])

    def match(self, tokens: Sequence[int]) -> List[Entry]:
        """The longest cached prefix in full pages. Retain its pages before anything can be evicted."""
        path, before = [], -1
        for content in self._full_pages(tokens):
            entry = self.entries.get((before, content))
            if entry is None:
                break
            path.append(entry)
            before = entry.page
        return path

    def count_hit(self, path: Sequence[Entry]) -> None:
        """A request runs with this prefix."""
        for entry in path:
            entry.hits += 1
        self._use(path)

    def _use(self, path: Sequence[Entry]) -> None:
        for entry in reversed(path):
            self.entries.move_to_end(entry.key)

    def insert(self, tokens: Sequence[int], pages: List[int]) -> None:
        """Add the full pages of a request, and replace in ``pages`` those that the cache already has."""
        path, before = [], -1
        for index, content in enumerate(self._full_pages(tokens)):
            key = (before, content)
            if key not in self.entries:
                self.entries[key] = Entry(pages[index], key)
                self.kv.retain([pages[index]])
            path.append(self.entries[key])
            before = path[-1].page
            if before != pages[index]:
                self.kv.retain([before])
                self.kv.release([pages[index]])
                pages[index] = before
        self._use(path)

    def evictable(self) -> List[Entry]:
        """What no request uses, in the order of eviction."""
        unused = [x for x in self.entries.values() if self.kv.refs[x.page] == 1]
        return sorted(unused, key=lambda x: x.hits) if self.policy == "lfu" else unused

    def evict(self, count: int) -> int:
        """Free up to ``count`` pages that no request uses; returns how many."""
        return self._drop(self.evictable()[:count])

    def _drop(self, gone: Sequence[Entry]) -> int:
        for entry in gone:
            del self.entries[entry.key]
            self.kv.release([entry.page])
        self.evicted += len(gone)
        return len(gone)

    def allocate(self, count: int) -> Optional[List[int]]:
        """Pages with one user each, evicted ones if need be; None, and nothing is evicted, if there are too few."""
        missing = count - self.kv.free_pages
        unused = self.evictable() if missing > 0 else []
        if 0 < missing <= len(unused):
            self._drop(unused[:missing])
        return self.kv.allocate(count)
