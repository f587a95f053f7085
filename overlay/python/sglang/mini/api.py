# SPDX-License-Identifier: Apache-2.0
"""What a caller of the engine sees: sampling parameters, deltas, completions and the error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional, Tuple, Union


class MiniError(ValueError):
    """A refusal in one line: what was asked, why not, what to do instead."""


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen.

    Attributes:
        max_tokens: new tokens at most, at least 1.
        temperature: 0 is greedy.
        top_p: smallest set of tokens with at least this probability, in (0, 1].
        top_k: most likely tokens to keep; 0 keeps all.
        seed: the tokens of a seeded request do not depend on what else runs, on one device; None draws a seed.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: tokens that end the request, in addition to the model's end-of-sequence tokens.
        ignore_eos: do not stop at the model's end-of-sequence tokens.

    Raises:
        MiniError: for a value out of range.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: Optional[int] = None
    stop: Union[str, Tuple[str, ...]] = ()
    stop_token_ids: Tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self):
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        for ok, name, expected in (
            (self.max_tokens >= 1, "max_tokens", "at least 1"),
            (0 <= self.temperature < float("inf"), "temperature", "0 or more"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (self.top_k >= 0, "top_k", "0 for all tokens, or a count"),
            (all(stop), "stop", "strings that are not empty"),
        ):
            if not ok:
                value = getattr(self, name)
                raise MiniError(f"{name} {value!r} is not valid: use {expected}.")


@dataclass
class Completion:
    """The result of one request.

    Attributes:
        text: decoded output without special tokens and stop strings; empty without a tokenizer.
        token_ids: all generated tokens, the one that ended the request included.
        finish_reason: ``stop``, ``length``, ``cancelled`` or ``error``; empty until the end.
        error: why the request failed, if it did.
        cached_tokens: tokens of the prompt whose keys and values came from the prefix cache.
        first_token_s: seconds from submission to the first token; None if there is none.
    """

    text: str = ""
    token_ids: List[int] = field(default_factory=list)
    finish_reason: str = ""
    error: Optional[str] = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: Optional[float] = None


@dataclass
class Delta:
    """A piece of a streamed request: its place among the prompts, new text, new tokens, and the end."""

    index: int
    text: str
    token_ids: List[int]
    finish_reason: Optional[str] = None
    error: Optional[str] = None
