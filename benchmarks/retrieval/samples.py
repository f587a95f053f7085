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
    # The most sentences that fit, by guesses from the tokens of a sentence so far: counting a long text takes time.
    fits, tokens, beyond, guess = 0, least, None, 8
    while beyond is None or beyond > fits + 1:
        found = count(prompt(guess))
        if found <= room:
            fits, tokens = guess, found
        else:
            beyond = guess
        per_sentence = max(1.0, (found - least) / guess)
        guess = fits + max(1, int((room - tokens) / per_sentence))
        if beyond is not None:
            guess = min(guess, beyond - 1)
    return Sample(task, length, depth, seed, prompt(fits), tokens, problem.reply, problem.answers, problem.pattern)
