# SPDX-License-Identifier: Apache-2.0
"""Pass keys hidden in real text: what is planted, what is asked, and how an answer is graded.

Everything is made of token ids, so that a prompt has the asked length to the token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable

KEY = "\n\nThe secret pass key is {key}. Remember it. {key} is the pass key.\n\n"
QUESTION = "\n\nWhat is the secret pass key? The secret pass key is"
# Facts for one text that holds several: a small model mixes up keys that differ in a name alone.
SUBJECTS = (
    "secret pass key",
    "price of the painting",
    "number of the train ticket",
    "height of the mountain",
    "telephone number of the bakery",
    "weight of the elephant",
)
NAMED_KEY = "\n\nThe {name} is {key}. Remember it. {key} is the {name}.\n\n"
NAMED_QUESTION = "\n\nWhat is the {name}? The {name} is"
SHALLOWEST, DEEPEST = 0.05, 0.85
NEW_TOKENS = 7  # a space and five digits, each of them a token, and what shows that the number ends
PAGE = 64
WINDOW = 576  # tokens: HSA's window of 512, extended to a page boundary
SEED = 11

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Question:
    """A prompt of token ids and the key that should follow.

    Attributes:
        begin: first token of the planted text.
        end: one past its last.
    """

    ids: list[int]
    key: str
    begin: int
    end: int


def grade(key: str, text: str) -> bool:
    """Whether a continuation begins with the key and no further digit."""
    said = text.strip()
    return said[: len(key)] == key and not said[len(key) : len(key) + 1].isdigit()


def _key(pick: random.Random) -> str:
    return str(pick.randrange(10000, 100000))


def single(documents: list[list[int]], encode: Encode, bos: int, length: int, count: int, seed: int = SEED):
    """``count`` prompts of ``length`` tokens, the documents in turn, one key in each at a random depth."""
    pick = random.Random(f"{seed} {length}")
    asked = encode(QUESTION)
    made = []
    for i in range(count):
        key, depth = _key(pick), pick.uniform(SHALLOWEST, DEEPEST)
        planted = encode(KEY.format(key=key))
        body = documents[i % len(documents)][: length - 1 - len(planted) - len(asked)]
        at = _place(1 + int(depth * len(body)), len(planted), len(asked), length)
        ids = [bos, *body[: at - 1], *planted, *body[at - 1 :], *asked]
        made.append(Question(ids, key, at, at + len(planted)))
    return made


def shared(document: list[int], encode: Encode, bos: int, length: int, count: int, seed: int = SEED):
    """``count`` prompts of about ``length`` tokens that differ in the question alone, and what they begin with.

    The document holds one number per subject, evenly apart. A server that keeps its prefix reads it once.
    """
    pick = random.Random(f"{seed} {length} shared")
    names = SUBJECTS[:count]
    values = {name: _key(pick) for name in names}
    planted = {name: encode(NAMED_KEY.format(name=name, key=values[name])) for name in names}
    asked = {name: encode(NAMED_QUESTION.format(name=name)) for name in names}
    room = length - 1 - sum(map(len, planted.values())) - max(map(len, asked.values()))
    body, ids, places, done = document[:room], [bos], {}, 0
    for i, name in enumerate(names):
        depth = SHALLOWEST + (DEEPEST - SHALLOWEST) * i / max(1, count - 1)
        upto = max(PAGE, min(int(depth * len(body)), len(body) - WINDOW))
        ids += body[done:upto]
        places[name] = len(ids)
        ids += planted[name]
        done = upto
    ids += body[done:]
    return ids, [
        Question(ids + asked[name], values[name], places[name], places[name] + len(planted[name])) for name in names
    ]


def _place(at: int, planted: int, asked: int, length: int) -> int:
    """Begin of a planted text, moved if need be: behind the first page, in front of the window of the question's begin."""
    return max(PAGE, min(at, length - asked - WINDOW - planted))
