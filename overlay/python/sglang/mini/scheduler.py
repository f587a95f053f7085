# SPDX-License-Identifier: Apache-2.0
"""Which requests run next: admission, chunked prefill, decode, and giving pages back when they run out."""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Callable, Deque, FrozenSet, List, Optional, Tuple

import torch

from sglang.mini.api import Completion, Delta, MiniError, SamplingParams
from sglang.mini.kv_cache import PagedKVCache
from sglang.mini.prefix_cache import PrefixCache
from sglang.mini.sampling import TextStream, sample


class Request:
    """One prompt on its way through the engine.

    Attributes:
        tokens: prompt and output. computed: how many of them have keys and values in the cache.
        pages: in the order of positions. row: in ``req_to_token``; None while it waits.
        limit: how many tokens there will be at most.
        deltas: what was not yet fetched by a stream.
        result: filled in as the request goes; the caller may take from it.
    """

    def __init__(
        self, index: int, prompt: List[int], params: SamplingParams, tokenizer, device
    ):
        self.index, self.params, self.tokens = index, params, list(prompt)
        self.limit = len(prompt) + params.max_tokens
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
        if not self.deltas:
            self.deltas.append(Delta(self.index, "", []))
        for end in (self.result, self.deltas[-1]):
            end.finish_reason, end.error = reason, error
        self.result.text = self.stream.text


@dataclass
class Scheduler:
    """Continuous batching over a fixed number of pages.

    Attributes:
        forward: (row, tokens, first position) of each request of a batch -> logits, see ``ModelRunner.forward``.
        max_running: requests that hold pages at once.
        chunk_size: prompt tokens per pass.
        eos: tokens that end a request unless it says ``ignore_eos``.
        running: oldest first: admission is in order, and only the youngest ever goes back.
        retracted: how often one did.
    """

    forward: Callable[..., torch.Tensor]
    kv: PagedKVCache
    prefix: PrefixCache
    max_running: int
    chunk_size: int
    eos: FrozenSet[int]
    waiting: Deque[Request] = field(default_factory=deque)
    running: List[Request] = field(default_factory=list)
    retracted: int = 0
    stepping: bool = False
    cancelled: List[Request] = field(default_factory=list)  # in the middle of a round

    def step(self) -> bool:
        """One round: admit, one pass over prompt chunks, one decode pass. False if nothing is left to do."""
        self.stepping = True
        try:
            self._round()
        finally:
            self.stepping = False
            while self.cancelled:
                self.cancel(self.cancelled.pop())
        return bool(self.running or self.waiting)

    def cancel(self, request: Request) -> None:
        """End a request between two rounds: the garbage collector may close a stream in the middle of one."""
        if self.stepping:
            self.cancelled.append(request)
        elif request in self.waiting or request in self.running:
            self.drop(request, "cancelled")
        elif not request.finished:
            raise MiniError("the request is of another engine: cancel it there.")

    def _round(self) -> None:
        self._admit()
        chunks, room = [], self.chunk_size
        for request in self.running:
            if request.remaining > 1 and room:
                chunks.append((request, min(request.remaining, room)))
                room -= chunks[-1][1]
        self._run(chunks)
        self._grow()
        self._run([(r, 1) for r in self.running if r.remaining == 1])

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
            path = self.prefix.match(request.tokens[:-1])
            cached = [entry.page for entry in path]
            self.kv.retain(cached)
            missing = self.kv.pages_for(len(request.tokens)) - len(cached)
            pages = self.prefix.allocate(missing)
            if pages is None:
                self.kv.release(cached)
                return
            self.running.append(self.waiting.popleft())
            self.prefix.count_hit(path)
            request.pages, request.row = cached + pages, self.kv.free_rows.pop()
            request.computed = len(cached) * self.kv.page_size
            if not request.result.token_ids:
                request.result.cached_tokens = request.computed
            self.kv.map_pages(request.row, request.pages)
            pending += request.remaining

    def _grow(self) -> None:
        """A page for every request whose next token begins one; the youngest requests make room."""
        for request in list(self.running):
            # A request that had to make room has no row.
            while (
                request.row is not None
                and request.remaining == 1
                and self.kv.pages_for(len(request.tokens)) > len(request.pages)
            ):
                if pages := self.prefix.allocate(1):
                    request.pages += pages
                    self.kv.map_pages(request.row, request.pages)
                else:
                    youngest = self.running[-1]
                    self._leave(youngest)
                    self.waiting.appendleft(youngest)
                    self.retracted += 1

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self.kv.release(request.pages)
        self.kv.free_rows.append(request.row)
        request.pages, request.row, request.computed = [], None, 0

    def _run(self, batch: List[Tuple[Request, int]]) -> None:
        """One pass over the next ``count`` tokens of each request; samples for those that reach their end."""
        if not batch:
            return
        spans = [(r, r.computed, r.computed + count) for r, count in batch]
        logits = self.forward([(r.row, r.tokens[a:b], a) for r, a, b in spans])
        for request, first, end in spans:
            request.computed = end
            if end // self.kv.page_size > first // self.kv.page_size:
                self.prefix.insert(request.tokens[:end], request.pages)
                self.kv.map_pages(request.row, request.pages)
        done = [i for i, (request, _) in enumerate(batch) if request.remaining == 0]
        requests = [batch[i][0] for i in done]
        params = [r.params for r in requests]
        tokens = sample(logits[done], params, [r.generator for r in requests])
        for request, token in zip(requests, tokens):
            self._accept(request, token)

    def _accept(self, request: Request, token: Optional[int]) -> None:
        if token is None:
            self.drop(request, "error", "the model's logits are not numbers.")
            return
        result, params = request.result, request.params
        if not result.token_ids:
            result.first_token_s = time.perf_counter() - request.submitted
        result.token_ids.append(token)
        request.tokens.append(token)
        reason = None
        if len(request.tokens) == request.limit:
            reason = "length"
        ends = token in self.eos and not params.ignore_eos
        if ends or token in params.stop_token_ids:
            reason = "stop"
        try:
            text = request.stream.push(token, last=reason is not None)
        except Exception as error:  # whatever the tokenizer's own code raises
            self.drop(
                request, "error", f"the tokenizer cannot decode its tokens: {error!r}."
            )
            return
        request.deltas.append(Delta(request.index, text, [token]))
        if request.stream.stopped:
            reason = "stop"
        if reason:
            self.drop(request, reason)
