# SPDX-License-Identifier: Apache-2.0
"""Samples: a problem in as much filler as its length allows, measured with a tokenizer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable

from .tasks import TASKS, Fact, filler

INTRO = "Read the text and answer the question after it.\n\nText:"
# Tokens that are kept free for the continuation.
NEW_TOKENS = 64


@dataclass(frozen=True)
class Sample:
    """One prompt with what its continuation is graded by.

    Attributes:
        task: name in ``TASKS``.
        length: tokens that prompt and continuation may take together.
        depth: where the asked facts lie, 0 to 1.
        seed: number of the sample.
        tokens: tokens of the prompt.
    """

    task: str
    length: int
    depth: float
    seed: int
    prompt: str
    tokens: int
    reply: str
    answers: tuple[str, ...]
    pattern: str

    @property
    def key(self) -> str:
        """Name of the sample within a run."""
        return f"{self.task}/{self.length}/{self.depth:g}/{self.seed}"


def weave(facts: tuple[Fact, ...] | list[Fact], fillers: list[str]) -> list[str]:
    """Sentences in order: each fact before the filler sentence that its place says."""
    slots: dict[int, list[str]] = {}
    for fact in sorted(facts, key=lambda fact: fact.place):
        slots.setdefault(round(fact.place * len(fillers)), []).append(fact.sentence)
    sentences: list[str] = []
    for i in range(len(fillers) + 1):
        sentences += slots.get(i, [])
        sentences += fillers[i : i + 1]
    return sentences


def make(task: str, length: int, depth: float, seed: int, count: Callable[[str], int]) -> Sample:
    """The sample of a task, length, depth and seed.

    Args:
        count: tokens of a text, special tokens included.

    Raises:
        ValueError: the facts alone are longer than ``length``.
    """
    problem = TASKS[task](random.Random(f"{task} {length} {depth:g} {seed}"), length, depth)
    pick = random.Random(f"filler {seed}")
    fillers: list[str] = []

    def prompt(sentences: int) -> str:
        while len(fillers) < sentences:
            fillers.append(filler(pick))
        return INTRO + "".join(weave(problem.facts, fillers[:sentences])) + problem.question

    room = length - NEW_TOKENS
    least = count(prompt(0))
    if least > room:
        raise ValueError(f"{task} needs at least {least + NEW_TOKENS} tokens with this tokenizer, length is {length}")
    # The number of sentences grows to what fits; a guess from one sentence's tokens keeps the search short.
    step = max(1, (room - least) // max(1, (count(prompt(8)) - least) // 8) // 8)
    fits = 0
    while step:
        while count(prompt(fits + step)) <= room:
            fits += step
        step //= 2
    text = prompt(fits)
    return Sample(task, length, depth, seed, text, count(text), problem.reply, problem.answers, problem.pattern)
