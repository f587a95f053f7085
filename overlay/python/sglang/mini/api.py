# SPDX-License-Identifier: Apache-2.0
"""What a caller of the engine sees: sampling parameters, deltas, completions and the error."""

from __future__ import annotations

import math
import reprlib
import sys
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Collection, List, Optional, Tuple, Union

STOP_CHARACTERS = 4096  # at most, since all are searched for after every token
TINY, MAX = math.ulp(0.0), sys.float_info.max


class MiniError(ValueError):
    """A refusal in one line: what was asked, why not, what to do instead."""


def shown(value: object) -> str:
    """A value in one short line, for a message."""
    try:
        return " ".join(reprlib.repr(value).split())
    except ValueError:  # Python prints no integer of thousands of digits
        return f"<{type(value).__name__}>"


def plain(value):
    """Arrays and tensors as lists, everything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _number(value, kind: type, least: float, most: float = math.inf):
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError
    value = int(value) if kind is Integral else float(value)
    if not least <= value <= most:
        raise ValueError
    return value


def _elements(value) -> Collection:
    value = [value] if isinstance(value, str) else plain(value)
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError
    return value


def _strings(value) -> Tuple[str, ...]:
    value = tuple(_elements(value))
    if not all(isinstance(text, str) and text for text in value):
        raise TypeError
    if sum(map(len, value)) > STOP_CHARACTERS:
        raise ValueError
    return value


def _flag(value) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


# How each parameter is read, by functions that raise TypeError, ValueError or OverflowError, and what it may be.
_READ = {
    "max_tokens": (lambda x: _number(x, Integral, 1), "a whole number from 1"),
    "temperature": (lambda x: _number(x, Real, 0, MAX), "a number from 0"),
    "top_p": (lambda x: _number(x, Real, TINY, 1), "a number above 0 and at most 1"),
    "top_k": (lambda x: _number(x, Integral, 0), "0 for all, or a whole number"),
    "seed": (
        lambda x: None if x is None else _number(x, Integral, -(2**63), 2**64 - 1),
        "None or a whole number from -2**63 to 2**64 - 1",
    ),
    "stop": (
        _strings,
        f"strings that are not empty, at most {STOP_CHARACTERS} characters in all",
    ),
    "stop_token_ids": (
        lambda x: frozenset(_number(token, Integral, 0) for token in _elements(x)),
        "a list of token ids",
    ),
    "ignore_eos": (_flag, "True or False"),
}


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen.

    Attributes:
        max_tokens: new tokens at most, at least 1.
        temperature: 0 is greedy.
        top_p: smallest set of tokens with at least this probability, in (0, 1].
        top_k: most likely tokens to keep; 0 keeps all.
        seed: the tokens of a seeded request do not depend on what else runs, on one device; None draws a seed.
        stop: strings that end the text; they are not part of it. Together at most 4,096 characters.
        stop_token_ids: tokens that end the request, in addition to the model's end-of-sequence tokens.
        ignore_eos: do not stop at the model's end-of-sequence tokens.

    Raises:
        MiniError: for a value of another type or out of range. Token ids beyond the vocabulary end the request.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: Optional[int] = None
    stop: Union[str, Collection[str]] = ()
    stop_token_ids: Collection[int] = ()
    ignore_eos: bool = False

    def __post_init__(self):
        for name, (read, expected) in _READ.items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, read(value))
            except (TypeError, ValueError, OverflowError):
                raise MiniError(
                    f"{name} {shown(value)} is not valid: use {expected}."
                ) from None


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
