# SPDX-License-Identifier: Apache-2.0
"""MiniEngine: generate text with a Hugging Face model on SGLang's attention kernels."""

from __future__ import annotations

import threading
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Union

import torch

from sglang.mini.api import Completion, Delta, MiniError, SamplingParams, plain, shown
from sglang.mini.backend import make_backend, resolve_name
from sglang.mini.kv_cache import PagedKVCache
from sglang.mini.model import ModelRunner, load, pick_device
from sglang.mini.prefix_cache import PrefixCache
from sglang.mini.scheduler import Request, Scheduler

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig

Prompt = Union[str, Sequence[int]]
Sampling = Union[SamplingParams, Sequence[SamplingParams], None]


class MiniEngine:
    """An engine for one model on one device.

    Args:
        model: folder of a Hugging Face checkpoint, or a loaded transformers model.
        tokenizer: for a loaded model; without one prompts are token ids and text stays empty.
        backend: ``torch``, ``sgl_kernel`` or ``hsa``; None takes ATTN_BACKEND, or else ``torch``.
        device: None takes CUDA if there is one, else the CPU. A loaded model stays where it is.
        dtype: of a model that is loaded here; None is float32 on a CPU and the checkpoint's own elsewhere.
        page_size: tokens per page, a power of two from 16; None is 512, and HSA's 64 with ``hsa``.
        token_budget: tokens that the cache holds, all requests and the prefix cache together.
        max_running: requests that run at once.
        chunk_size: prompt tokens per pass.
        prefix_cache: keep full pages for later requests that begin with the same tokens.
        eviction: ``lru`` or ``lfu``, which kept pages go first.
        hsa: options of HSA; their page size gives way to ``page_size``.
        tp_size: only 1 is supported.

    Raises:
        MiniError: a value is not valid, the model is not supported, or it cannot be loaded.
    """

    def __init__(
        self,
        model: Union[str, torch.nn.Module],
        tokenizer=None,
        *,
        backend: Optional[str] = None,
        device: Optional[str] = None,
        dtype: Optional[torch.dtype] = None,
        page_size: Optional[int] = None,
        token_budget: int = 16384,
        max_running: int = 32,
        chunk_size: int = 2048,
        prefix_cache: bool = True,
        eviction: str = "lru",
        hsa: Optional[HSAConfig] = None,
        tp_size: int = 1,
    ):
        if tp_size != 1:
            raise MiniError(
                f"tp_size {tp_size} is not supported: the mini engine runs on one device; use sglang.launch_server."
            )
        for name, value in (("max_running", max_running), ("chunk_size", chunk_size)):
            if value < 1:
                raise MiniError(f"{name} {value} is not valid: use at least 1.")
        backend = resolve_name(backend)  # before the model is loaded
        if not isinstance(model, torch.nn.Module):
            model, found = load(str(model), pick_device(device), dtype)
            tokenizer = tokenizer or found
        self.tokenizer, self.vocab_size = tokenizer, model.config.vocab_size
        self.runner = runner = ModelRunner(model)
        place = dict(device=runner.device, dtype=runner.dtype)
        self.backend = make_backend(
            backend, specs=runner.specs, page_size=page_size, hsa=hsa, **place
        )
        self.kv = PagedKVCache(
            len(runner.specs),
            runner.specs[0].num_kv_heads,
            runner.specs[0].head_dim,
            token_budget=token_budget,
            page_size=self.backend.page_size,
            max_requests=max_running,
            max_tokens=getattr(model.config, "max_position_embeddings", token_budget),
            **place,
        )
        self.prefix = PrefixCache(self.kv, eviction, enabled=prefix_cache)
        eos = model.generation_config.eos_token_id
        if eos is None:
            eos = getattr(tokenizer, "eos_token_id", None)
        eos = [] if eos is None else [eos] if isinstance(eos, int) else eos
        # Not a method of self: a cycle would keep the cache alive after the engine.
        forward = partial(runner.forward, self.kv, self.backend)
        self.scheduler = Scheduler(
            forward, self.kv, self.prefix, max_running, chunk_size, frozenset(eos)
        )
        self._lock = threading.RLock()

    def submit(
        self, prompt: Prompt, sampling: Optional[SamplingParams] = None, index: int = 0
    ) -> Request:
        """Queue a request. One that cannot run is returned as finished with its error, and harms no other."""
        return self._queue([self._request(prompt, sampling, index)])[0]

    def step(self) -> bool:
        """Let all requests progress by one round; False if there are none."""
        with self._lock:
            return self.scheduler.step()

    def cancel(self, request: Request) -> None:
        """End a request now; what it generated stays in its result."""
        with self._lock:
            self.scheduler.cancel(request)

    def generate(
        self, prompts: Union[Prompt, Sequence[Prompt]], sampling: Sampling = None
    ) -> Union[Completion, List[Completion]]:
        """Complete a prompt (one Completion) or several at once (a list, in order).

        Args:
            prompts: text or token ids, or a list of such.
            sampling: for all prompts, or one per prompt; None is greedy.
        """
        prompts = plain(prompts)
        requests = self._submit_all(prompts, sampling)
        for _ in self._follow(requests):
            pass
        results = [request.result for request in requests]
        return results[0] if _is_prompt(prompts) else results

    def stream(
        self, prompts: Union[Prompt, Sequence[Prompt]], sampling: Sampling = None
    ) -> Iterator[Delta]:
        """As ``generate``, piece by piece. Closing the iterator cancels what is not finished.

        Several streams may be open at once, in one thread or in many: whoever waits for a piece moves all of them.
        """
        yield from self._follow(self._submit_all(plain(prompts), sampling))

    def _follow(self, requests: List[Request]) -> Iterator[Delta]:
        live = requests
        try:
            while live:
                with self._lock:
                    if not any(request.deltas for request in live):
                        self.scheduler.step()
                for request in live:
                    while request.deltas:
                        yield request.deltas.popleft()
                live = [r for r in live if r.deltas or not r.finished]
        finally:
            for request in requests:
                self.cancel(request)

    def stats(self) -> Dict[str, object]:
        """What runs and what the cache holds now; with HSA also its counters (see docs/hsa.md)."""
        with self._lock:
            counters = self.backend.counters
            return {
                "backend": self.backend.name,
                "device": str(self.runner.device),
                "dtype": str(self.runner.dtype).split(".")[-1],
                "page_size": self.kv.page_size,
                "pages": self.kv.num_pages,
                "pages_free": self.kv.free_pages,
                "pages_cached": len(self.prefix.entries),
                "pages_evicted": self.prefix.evicted,
                "retracted": self.scheduler.retracted,
                **({"hsa": counters.snapshot()} if counters else {}),
            }

    def _submit_all(self, prompts, sampling: Sampling) -> List[Request]:
        if _is_prompt(prompts):
            prompts = [prompts]
        if not isinstance(sampling, (list, tuple)):
            sampling = [sampling] * len(prompts)
        if len(sampling) != len(prompts):
            raise MiniError(
                f"{len(sampling)} sampling parameters for {len(prompts)} prompts: give one, or one per prompt."
            )
        both = enumerate(zip(prompts, sampling))
        return self._queue([self._request(*pair, i) for i, pair in both])

    def _request(self, prompt: Prompt, sampling, index: int) -> Request:
        """A request that can run, or one that is finished with the reason why it cannot."""
        params = SamplingParams() if sampling is None else sampling
        try:
            ids = self._encode(prompt, params)
        except MiniError as error:
            request = Request(index, [], SamplingParams(), None, "cpu")
            request.finish("error", str(error))
            return request
        return Request(index, ids, params, self.tokenizer, self.runner.device)

    def _queue(self, requests: List[Request]) -> List[Request]:
        """All of a call at once: if one of them raises, none is left behind."""
        with self._lock:
            self.scheduler.waiting.extend(r for r in requests if not r.finished)
        return requests

    def _encode(self, prompt: Prompt, params: SamplingParams) -> List[int]:
        """Token ids of a prompt that can run with these parameters."""
        if not isinstance(params, SamplingParams):
            raise MiniError(
                f"sampling {shown(params)} is not valid: use SamplingParams."
            )
        if self.tokenizer is None and (isinstance(prompt, str) or params.stop):
            raise MiniError(
                "text and stop strings need a tokenizer, and the engine has no tokenizer: give token ids."
            )
        if isinstance(prompt, str):
            try:
                prompt = self.tokenizer(prompt).input_ids if prompt else []
            except Exception as error:  # whatever the tokenizer's own code raises
                raise MiniError(
                    f"the tokenizer cannot read the prompt ({error!r}): give other text, or token ids."
                ) from error
        prompt = plain(prompt)
        listed = _is_list(prompt)
        size = len(prompt) if listed else 1
        if size == 0:
            raise MiniError("the prompt is empty: give at least one token.")
        if size + params.max_tokens > self.kv.max_tokens:
            raise MiniError(
                f"the prompt has {size} tokens, which with max_tokens {shown(params.max_tokens)} is more than "
                f"the {self.kv.max_tokens} tokens of a request here: shorten it, lower max_tokens or raise token_budget."
            )
        for part in prompt if listed else [prompt]:
            whole = isinstance(part, Integral) and not isinstance(part, bool)
            if not (listed and whole):
                raise MiniError(
                    f"a prompt is text or a list of token ids: it cannot be or contain {shown(part)}."
                )
        for kind, tokens in (("token", prompt), ("stop token", params.stop_token_ids)):
            if foreign := [t for t in tokens if not 0 <= t < self.vocab_size]:
                raise MiniError(
                    f"{kind} id {shown(foreign[0])} is not in the vocabulary of {self.vocab_size}: "
                    f"use 0 to {self.vocab_size - 1}."
                )
        return [int(token) for token in prompt]


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(
        value, (str, bytes, bytearray)
    )


def _is_prompt(prompts) -> bool:
    """Whether it is one prompt, a wrong one included, and not a list of prompts."""
    return not _is_list(prompts) or (
        len(prompts) > 0 and isinstance(prompts[0], Integral)
    )
