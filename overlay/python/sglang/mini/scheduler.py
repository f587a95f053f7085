# SPDX-License-Identifier: Apache-2.0
"""Which requests run next: admission, chunked prefill, decode, and giving pages back when they run out."""

from __future__ import annotations

import random
import time
from collections import deque
from typing import Callable, Deque, List, Optional, Sequence, Tuple

import torch

from sglang.mini.api import Completion, Delta, SamplingParams
from sglang.mini.kv_cache import PagedKVCache
from sglang.mini.prefix_cache import PrefixCache
from sglang.mini.sampling import TextStream, sample


class Request:
    """One prompt on its way through the engine.

    Attributes:
        tokens: prompt and output. computed: how many of them have keys and values in the cache.
        pages: in the order of positions. row: in ``req_to_token``; None while it waits.
        deltas: what was not yet fetched by a stream.
        result: filled in as the request goes.
    """

    def __init__(
        self, index: int, prompt: List[int], params: SamplingParams, tokenizer, device
    ):
        self.index, self.params = index, params
        self.tokens, self.prompt_len = list(prompt), len(prompt)
        self.computed, self.pages, self.row = 0, [], None
        seed = random.getrandbits(63) if params.seed is None else params.seed
        self.generator = torch.Generator(device).manual_seed(seed)
        self.stream = TextStream(tokenizer, prompt, params.stop)
        self.deltas: Deque[Delta] = deque()
        self.result = Completion(prompt_tokens=len(prompt))
        self.submitted = time.perf_counter()

    @property
    def remaining(self) -> int:
        """Tokens without keys and values; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def finished(self) -> bool:
        return bool(self.result.finish_reason)

    def finish(self, reason: str, error: Optional[str] = None) -> None:
        self.result.finish_reason, self.result.error = reason, error
        self.result.text = self.stream.text
        if not self.deltas:
            self.deltas.append(Delta(self.index, "", []))
        self.deltas[-1].finish_reason, self.deltas[-1].error = reason, error


class Scheduler:
    """Continuous batching over a fixed number of pages.

    Args:
        forward: rows, tokens and first positions of a batch -> logits, see ``ModelRunner.forward``.
        kv, prefix: the cache, and the prefix cache or None.
        max_running: requests that hold pages at once.
        chunk_size: prompt tokens per pass.
        eos: tokens that end a request unless it says ``ignore_eos``.
    """

    def __init__(
        self,
        forward: Callable,
        kv: PagedKVCache,
        prefix: Optional[PrefixCache],
        max_running: int,
        chunk_size: int,
        eos: Sequence[int],
    ):
        self.forward, self.kv, self.prefix = forward, kv, prefix
        self.max_running, self.chunk_size = max_running, chunk_size
        self.eos = frozenset(eos)
        self.waiting: Deque[Request] = deque()
        # Oldest first: admission is in order, and only the youngest ever goes back.
        self.running: List[Request] = []
        self.retracted = 0

    def step(self) -> bool:
        """One round: admit, one pass over prompt chunks, one decode pass. False if there was nothing to do."""
        self._admit()
        chunks, room = [], self.chunk_size
        for request in self.running:
            if request.remaining > 1 and room:
                chunks.append((request, min(request.remaining, room)))
                room -= chunks[-1][1]
        self._run(chunks)
        self._grow()
        self._run([(r, 1) for r in self.running if r.remaining == 1])
        return bool(self.running or self.waiting)

    def drop(self, request: Request, reason: str, error: Optional[str] = None) -> None:
        """End a request, wherever it is; its pages go back."""
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            self._leave(request)
        request.finish(reason, error)

    def _admit(self) -> None:
        # Only what the next pass can take: who waits a little longer may find its prefix in the cache.
        pending = sum(r.remaining for r in self.running if r.remaining > 1)
        while self.waiting and len(self.running) < self.max_running:
            request = self.waiting[0]
            if pending and pending + request.remaining > self.chunk_size:
                return
            # At least the last token runs, since its logits are needed.
            path = self.prefix.match(request.tokens[:-1]) if self.prefix else []
            cached = [node.page for node in path]
            self.kv.retain(cached)
            pages = self._allocate(self.kv.pages_for(len(request.tokens)) - len(cached))
            if pages is None:
                self.kv.release(cached)
                return
            self.running.append(self.waiting.popleft())
            if path:
                self.prefix.count_hit(path)
            request.pages, request.row = cached + pages, self.kv.free_rows.pop()
            request.computed = len(cached) * self.kv.page_size
            if not request.result.token_ids:
                request.result.cached_tokens = request.computed
            self.kv.map_pages(request.row, request.pages, 0)
            pending += request.remaining

    def _allocate(self, count: int) -> Optional[List[int]]:
        missing = count - self.kv.free_pages
        if self.prefix and 0 < missing <= self.prefix.evictable():
            self.prefix.evict(missing)
        return self.kv.allocate(count)

    def _grow(self) -> None:
        """A page for every request whose next token begins one; the youngest requests make room."""
        for request in list(self.running):
            # A request that had to make room has no row.
            while (
                request.row is not None
                and request.remaining == 1
                and self.kv.pages_for(len(request.tokens)) > len(request.pages)
            ):
                pages = self._allocate(1)
                if pages is None:
                    youngest = self.running[-1]
                    self._leave(youngest)
                    self.waiting.appendleft(youngest)
                    self.retracted += 1
                else:
                    request.pages += pages
                    first = len(request.pages) - 1
                    self.kv.map_pages(request.row, request.pages, first)

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self.kv.release(request.pages)
        self.kv.free_rows.append(request.row)
        request.pages, request.row, request.computed = [], None, 0

    def _run(self, batch: List[Tuple[Request, int]]) -> None:
        """One pass over the next ``count`` tokens of each request; samples for those that reach their end."""
        if not batch:
            return
        ranges = [(r, r.computed, r.computed + count) for r, count in batch]
        logits = self.forward([(r.row, r.tokens[a:b], a) for r, a, b in ranges])
        for request, count in batch:
            request.computed += count
            self._share(request, count)
        done = [i for i, (request, _) in enumerate(batch) if request.remaining == 0]
        requests = [batch[i][0] for i in done]
        params = [r.params for r in requests]
        tokens = sample(logits[done], params, [r.generator for r in requests])
        for request, token in zip(requests, tokens):
            self._accept(request, token)

    def _share(self, request: Request, count: int) -> None:
        """Hand pages that were just filled to the prefix cache."""
        size, computed = self.kv.page_size, request.computed
        if self.prefix and computed // size > (computed - count) // size:
            replaced = self.prefix.insert(request.tokens[:computed], request.pages)
            self.kv.map_pages(request.row, request.pages, replaced)

    def _accept(self, request: Request, token: Optional[int]) -> None:
        if token is None:
            self.drop(request, "error", "the model's logits are not numbers.")
            return
        result, params = request.result, request.params
        if not result.token_ids:
            result.first_token_s = time.perf_counter() - request.submitted
        result.token_ids.append(token)
        request.tokens.append(token)
        ends = token in self.eos and not params.ignore_eos
        reason = None
        if ends or token in params.stop_token_ids:
            reason = "stop"
        elif len(result.token_ids) == params.max_tokens:
            reason = "length"
        text = request.stream.push(token, last=reason is not None)
        request.deltas.append(Delta(request.index, text, [token]))
        if request.stream.stopped:
            reason = "stop"
        if reason:
            self.drop(request, reason)
