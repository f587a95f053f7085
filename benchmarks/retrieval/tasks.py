# SPDX-License-Identifier: Apache-2.0
"""The seven tasks: facts to hide in a text, a question about them, and the answer.

A problem follows from its random stream alone. Facts that answer the question lie around the asked depth, distractors
of the same form lie anywhere. Every sentence begins with a space, so that a text can be put together from any of them.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Callable

from .lexicon import ADJECTIVES, COUNTED, NAMES, NOUNS, PLACES, VERBS

# Facts of one question lie within this share of the text on either side of the depth.
BAND = 0.12
VALUES = 3  # pass keys of one name (multivalue), names asked for at once (multiquery)
CHAIN = 4  # variables that hold the value (variables)
FREQUENT = 3
COMMON = 4
FALL = 0.6  # of the counts in frequent, from rank to rank
WORDS_PER_LIST = 12

NUMBER = r"(?<!\d)\d{6}(?!\d)"
NAME = r"\b(?:" + "|".join(NAMES) + r")\b"
WORD = r"\b(?:" + "|".join(COUNTED) + r")\b"


@dataclass(frozen=True)
class Fact:
    """A sentence and its place: 0 is the begin of the text, 1 its end."""

    place: float
    sentence: str


@dataclass(frozen=True)
class Problem:
    """What a task asks, before filler is added.

    Attributes:
        facts: sentences to hide, distractors included.
        question: what follows the text, up to where the model continues.
        reply: the continuation that is asked for.
        answers: the items of it that are graded.
        pattern: regular expression of such an item, wherever it stands in a continuation.
    """

    facts: tuple[Fact, ...]
    question: str
    reply: str
    answers: tuple[str, ...]
    pattern: str


@dataclass(frozen=True)
class Grade:
    """How well a continuation answers.

    Attributes:
        exact: it lists the answers and nothing else of their kind.
        recall: share of the answers that it lists.
        listed: how many items of their kind it lists.
    """

    exact: bool
    recall: float
    listed: int


def grade(answers: tuple[str, ...] | list[str], pattern: str, text: str) -> Grade:
    """Grade the first line of a continuation."""
    found = set(re.findall(pattern, text.strip().split("\n")[0]))
    wanted = set(answers)
    return Grade(found == wanted, len(found & wanted) / len(wanted), len(found))


def filler(pick: random.Random) -> str:
    """One sentence that answers nothing."""
    words = [pick.choice(part) for part in (ADJECTIVES, NOUNS, VERBS, ADJECTIVES, NOUNS, PLACES, ADJECTIVES, NOUNS)]
    return " The {} {} {} the {} {} {} the {} {}.".format(*words)


def key_fact(name: str, value: str) -> str:
    return f" The pass key of {name} is {value}. Remember it, {value} is the pass key of {name}."


def copy_fact(source: str, target: str) -> str:
    return f" Here {source} fills {target}."


def list_fact(words: list[str]) -> str:
    return f" List: {' '.join(words)}."


def ask(question: str, begin: str) -> str:
    return f"\n\nQuestion: {question}\nAnswer: {begin}"


def numbers(pick: random.Random, count: int) -> list[str]:
    """Different numbers of six digits."""
    return [str(n) for n in pick.sample(range(100000, 1000000), count)]


def listing(items: list[str]) -> str:
    return f" {', '.join(items)}."


def near(pick: random.Random, depth: float, count: int) -> list[float]:
    """Places around a depth, ascending; the first of a single fact is the depth itself."""
    if count == 1:
        return [depth]
    low, high = max(0.0, depth - BAND), min(1.0, depth + BAND)
    return sorted(pick.uniform(low, high) for _ in range(count))


def distractors(length: int) -> int:
    """Facts that are not asked for, in a text of so many tokens."""
    return min(32, max(3, length // 256))


def single(pick: random.Random, length: int, depth: float) -> Problem:
    """One pass key and nothing like it."""
    return _keys(pick, depth, others=0)


def multikey(pick: random.Random, length: int, depth: float) -> Problem:
    """One pass key among those of other names."""
    return _keys(pick, depth, others=distractors(length))


def _keys(pick: random.Random, depth: float, others: int) -> Problem:
    names, values = pick.sample(NAMES, others + 1), numbers(pick, others + 1)
    places = [depth] + [pick.random() for _ in range(others)]
    facts = tuple(Fact(p, key_fact(n, v)) for p, n, v in zip(places, names, values))
    question = ask(f"What is the pass key of {names[0]}?", f"The pass key of {names[0]} is")
    return Problem(facts, question, listing(values[:1]), (values[0],), NUMBER)


def multivalue(pick: random.Random, length: int, depth: float) -> Problem:
    """All pass keys of one name that has several."""
    others = distractors(length)
    values, names = numbers(pick, VALUES + others), pick.sample(NAMES, others + 1)
    owners = [names[0]] * VALUES + names[1:]
    places = near(pick, depth, VALUES) + [pick.random() for _ in range(others)]
    facts = tuple(Fact(p, key_fact(n, v)) for p, n, v in zip(places, owners, values))
    question = ask(f"What are the {VALUES} pass keys of {names[0]}?", f"The pass keys of {names[0]} are")
    return Problem(facts, question, listing(values[:VALUES]), tuple(values[:VALUES]), NUMBER)


def multiquery(pick: random.Random, length: int, depth: float) -> Problem:
    """The pass keys of several names at once."""
    others = distractors(length)
    names, values = pick.sample(NAMES, VALUES + others), numbers(pick, VALUES + others)
    places = near(pick, depth, VALUES) + [pick.random() for _ in range(others)]
    facts = tuple(Fact(p, key_fact(n, v)) for p, n, v in zip(places, names, values))
    asked = list(zip(names, values))[:VALUES]
    pick.shuffle(asked)  # the question's order says nothing about the text's
    called = ", ".join(name for name, _ in asked)
    question = ask(f"What are the pass keys of {called}?", "The pass keys are")
    reply = listing([f"{name} is {value}" for name, value in asked])
    return Problem(facts, question, reply, tuple(value for _, value in asked), NUMBER)


def variables(pick: random.Random, length: int, depth: float) -> Problem:
    """Every variable that a number fills, directly or through another variable."""
    chains = 1 + min(4, max(1, length // 1024))
    names, values = pick.sample(NAMES, chains * CHAIN), numbers(pick, chains)
    facts: list[Fact] = []
    for c, value in enumerate(values):
        chain = [value, *names[c * CHAIN : (c + 1) * CHAIN]]
        places = near(pick, depth if c == 0 else pick.random(), CHAIN)
        facts += [Fact(p, copy_fact(a, b)) for p, a, b in zip(places, chain, chain[1:])]
    question = ask(f"Which variables does {values[0]} fill, directly or through another?", f"{values[0]} fills")
    return Problem(tuple(facts), question, listing(names[:CHAIN]), tuple(names[:CHAIN]), NAME)


def frequent(pick: random.Random, length: int, depth: float) -> Problem:
    """The most frequent of words whose counts fall by a constant factor from rank to rank."""
    total = _list_words(length)
    pool = pick.sample(COUNTED, len(COUNTED))
    counts = [max(1, round(total * (1 - FALL) * FALL**rank)) for rank in range(len(pool))]
    return _count(pick, depth, pool, counts, total, FREQUENT, "three")


def common(pick: random.Random, length: int, depth: float) -> Problem:
    """A few words that are equally frequent, among many that are rare."""
    total = _list_words(length)
    pool = pick.sample(COUNTED, len(COUNTED))
    often = total // 9
    rest = total - COMMON * often
    rare = len(pool) - COMMON
    counts = [often] * COMMON + [rest // rare + (i < rest % rare) for i in range(rare)]
    return _count(pick, depth, pool, counts, total, COMMON, "four")


def _list_words(length: int) -> int:
    return WORDS_PER_LIST * min(24, max(4, length // 64))


def _count(pick, depth, pool, counts, total, asked, spelled) -> Problem:
    words = [word for word, count in zip(pool, counts) for _ in range(count)][:total]
    pick.shuffle(words)
    lists = [words[i : i + WORDS_PER_LIST] for i in range(0, total, WORDS_PER_LIST)]
    facts = tuple(Fact(p, list_fact(ws)) for p, ws in zip(near(pick, depth, len(lists)), lists))
    question = ask(f"Which {spelled} words are most often in the lists?", "The words are")
    return Problem(facts, question, listing(pool[:asked]), tuple(pool[:asked]), WORD)


TASKS: dict[str, Callable[[random.Random, int, float], Problem]] = {
    task.__name__: task for task in (single, multikey, multivalue, multiquery, variables, common, frequent)
}
