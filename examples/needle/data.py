# SPDX-License-Identifier: Apache-2.0
"""Training sequences: one text with many facts of the suite's kinds, then many questions about it.

The suite asks one question per text. Asking many gives a small model enough to learn from: at short lengths almost
every token is part of a fact or an answer. Seeds are disjoint from the suite's by construction of the streams.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmarks.retrieval import tasks
from benchmarks.retrieval.lexicon import NAMES
from benchmarks.retrieval.samples import INTRO, weave
from benchmarks.retrieval.tasks import Fact


@dataclass(frozen=True)
class Batch:
    ids: np.ndarray  # [B, T + 1] int64
    weight: np.ndarray  # [B, T + 1] float32, of predicting this token; 0 at padding
    kind: np.ndarray  # [B, T + 1] int8, index into KINDS at the tokens of an answer, else -1


KINDS = tuple(tasks.TASKS)
# Loss weights of answers, where not 1: a text has one question about counts but many of the others, and a list of
# several keys is the last that is learned.
WEIGHTS = dict(common=5.0, frequent=5.0, multivalue=3.0)
MIXES = ("recital", "keys", "keys", "copies", "copies", "counts", "counts", "all")


class Encoder:
    """Tokens of texts, remembered: fillers repeat by parts only, but facts share their sentence."""

    def __init__(self, tokenizer):
        self.backend = tokenizer.backend_tokenizer
        self.end = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id
        self.word = lru_cache(maxsize=None)(self.__call__)
        self.remember, self.list = self(" Remember")[0], self(" List")[0]

    def weights(self, tokens: list[int], least: float) -> list[float]:
        """Loss weights of a sentence of the text, where something can be learned from it.

        The second half of a key fact follows from the first: copying over a few tokens is learned there first. What
        a list goes on with follows from how often its words were seen: counting is learned there first.
        """
        weights = [least] * len(tokens)
        if self.remember in tokens:
            begin = tokens.index(self.remember) + 1
            weights[begin:] = [max(least, 0.5)] * (len(tokens) - begin)
        elif tokens[0] == self.list:
            weights[2:-1] = [max(least, 0.2)] * (len(tokens) - 3)
        return weights

    def __call__(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids


@dataclass
class Quiz:
    """Facts of one kind and the questions about them."""

    facts: list[Fact]
    questions: list[tuple[str, str, str]]  # kind, question, reply


def numbers(pick: random.Random, count: int, pool: int) -> list[str]:
    """Different numbers of six digits made of ``pool`` groups of three: 000 up, and 100 up for the first."""
    firsts = min(pool, 900)
    return [f"{100 + n // pool}{n % pool:03d}" for n in pick.sample(range(firsts * pool), count)]


def spread(pick: random.Random, count: int) -> list[float]:
    """Places of facts that belong together, ascending: close together as in the suite, or anywhere."""
    if pick.random() < 0.5:
        return tasks.near(pick, pick.random(), count)
    return sorted(pick.random() for _ in range(count))


def key_quiz(pick: random.Random, names: list[str], count: int, several: int, pool: int) -> Quiz:
    """``count`` names with one pass key each, ``several`` names with some each."""
    sizes = [1] * count + [tasks.VALUES] * several
    values = numbers(pick, sum(sizes), pool)
    facts, questions, held = [], [], {}
    for name, size in zip(names, sizes):
        own = [values.pop() for _ in range(size)]
        facts += [Fact(p, tasks.key_fact(name, v)) for p, v in zip(spread(pick, size), own)]
        if size == 1:
            held[name] = own[0]
            kind = "single" if count + several == 1 else "multikey"
            questions.append(
                (kind, tasks.ask(f"What is the pass key of {name}?", f"The pass key of {name} is"), tasks.listing(own))
            )
        else:
            begin = f"The pass keys of {name} are"
            questions.append(
                ("multivalue", tasks.ask(f"What are the {size} pass keys of {name}?", begin), tasks.listing(own))
            )
    for _ in range(len(held) // 4):
        asked = pick.sample(sorted(held), tasks.VALUES)
        reply = tasks.listing([f"{name} is {held[name]}" for name in asked])
        questions.append(
            ("multiquery", tasks.ask(f"What are the pass keys of {', '.join(asked)}?", "The pass keys are"), reply)
        )
    return Quiz(facts, questions)


def copy_quiz(pick: random.Random, names: list[str], chains: int, pool: int) -> Quiz:
    """Chains of copies."""
    facts, questions = [], []
    for c, value in enumerate(numbers(pick, chains, pool)):
        own = names[c * tasks.CHAIN : (c + 1) * tasks.CHAIN]
        facts += [Fact(p, tasks.copy_fact(a, b)) for p, a, b in zip(spread(pick, tasks.CHAIN), [value, *own], own)]
        ask = tasks.ask(f"Which variables does {value} fill, directly or through another?", f"{value} fills")
        questions.append(("variables", ask, tasks.listing(own)))
    return Quiz(facts, questions)


def count_quiz(pick: random.Random, room: int) -> Quiz:
    kind = pick.choice(("common", "frequent"))
    problem = tasks.TASKS[kind](pick, min(room, 64 * pick.randint(4, 24)), pick.random())
    return Quiz(list(problem.facts), [(kind, problem.question, problem.reply)])


def recital(pick: random.Random, encode: Encoder, length: int, pool: int):
    """A few statements, over and over in other orders: all but the first time their ends are answers.

    Two of the forms are those that facts and answers have, without fillers and questions, so most of the text teaches.
    With one or two statements it teaches to copy, with more of them to tell which. The third form, a pair of words, is
    the shortest there is: what follows was seen after the very same word. It is learned first and the others after it.
    """
    forms = pick.choice((("pair",), ("key", "copy"), ("pair", "key", "copy")))
    names = pick.sample(NAMES[:pool], min(pool, len(NAMES)))
    most = min(len(names) // 2, length // (8 if forms == ("pair",) else 20))
    statements = []
    # Half of them as many as can be said twice and more: to copy any one of a few is no way to answer those.
    count = most if pick.random() < 0.5 else int(most ** pick.random() + 0.5)
    for _ in range(count):
        form = pick.choice(forms)
        if form == "pair":
            kind, ways = "multikey", [f" {names.pop()}"]
            end = f" {numbers(pick, 1, pool)[0]}." if pick.random() < 0.5 else f" {names.pop()}."
        elif form == "key":
            kind, ways, end = "multikey", [f" The pass key of {names.pop()} is"], f" {numbers(pick, 1, pool)[0]}."
        else:
            source = names.pop() if pick.random() < 0.5 else numbers(pick, 1, pool)[0]
            # The second way is how a chain is listed; it is not the first time's.
            kind, ways, end = "variables", [f" Here {source} fills", f" {source},"], f" {names.pop()}."
        statements.append(([encode(begin) for begin in ways], encode(end), KINDS.index(kind)))
    ids = list(encode(INTRO))
    weight, kind_of = [0.0] * len(ids), [-1] * len(ids)
    again = False
    while len(ids) <= length:
        pick.shuffle(statements)
        for ways, end, kind in statements:
            begin = pick.choice(ways) if again else ways[0]
            ids += begin + end
            weight += [0.0] * len(begin) + [float(again)] * len(end)
            kind_of += [-1] * len(begin) + [kind if again else -1] * len(end)
        again = True
    return ids, weight, kind_of


def draw(pick: random.Random, length: int, dense: bool, pool: int, mix: str) -> Quiz:
    """Facts and questions that fit a sequence of ``length`` tokens; ``dense`` fills most of it with them."""
    names = pick.sample(NAMES[:pool], min(pool, len(NAMES)))
    half = len(names) // 2  # for owners of keys; the others are variables
    room = length - 40
    quizzes: list[Quiz] = []
    # A key fact takes 24 tokens and its question 26; a chain 56 and 40.
    share = room if dense else min(room, 4000) * pick.choice((0.0, 0.1, 0.3, 0.6))
    if mix in ("keys", "all"):
        total = max(1, min(48, half, int(share * (1.0 if mix == "keys" else 0.4) / 50)))
        several = pick.randint(0, total // 4)
        quizzes.append(key_quiz(pick, names, max(1, total - 4 * several), several, pool))
    if mix in ("copies", "all"):
        chains = max(1, min(12, half // tasks.CHAIN, int(share * (1.0 if mix == "copies" else 0.3) / 110)))
        quizzes.append(copy_quiz(pick, names[half:], chains, pool))
    if mix == "counts" or (mix == "all" and room > 800):
        quizzes.append(count_quiz(pick, room if mix == "counts" else room // 2))
    return Quiz([f for q in quizzes for f in q.facts], [q for z in quizzes for q in z.questions])


def sequence(pick: random.Random, encode: Encoder, length: int, dense: bool, text_weight: float, pool: int, mixes):
    """Tokens, weights and kinds of one sequence of at most ``length + 1`` tokens."""
    mix = pick.choice(mixes)
    if mix == "recital":
        return recital(pick, encode, length, pool)
    quiz = draw(pick, length, dense, pool, mix)
    pick.shuffle(quiz.questions)
    facts = [(fact, encode(fact.sentence)) for fact in quiz.facts]
    ids_of = {fact.sentence: ids for fact, ids in facts}
    asked, used = [], sum(len(ids) for _, ids in facts) + 16
    for kind, question, reply in quiz.questions:
        pieces = (encode(question), encode(reply + "\n"))
        if used + len(pieces[0]) + len(pieces[1]) > length and asked:
            break
        used += len(pieces[0]) + len(pieces[1])
        asked.append((KINDS.index(kind), *pieces))
    fillers = []
    while used < length - 16:
        fillers.append(tasks.filler(pick))
        ids_of[fillers[-1]] = [
            i for word in fillers[-1][1:-1].split(" ") for i in encode.word(" " + word)
        ] + encode.word(".")
        used += len(ids_of[fillers[-1]])
    ids = list(encode(INTRO))
    weight = [text_weight] * len(ids)
    for sentence in weave([fact for fact, _ in facts], fillers):
        tokens = ids_of[sentence]
        ids += tokens
        weight += encode.weights(tokens, text_weight)
    kind_of = [-1] * len(ids)
    for kind, question, reply in asked:
        ids += question + reply
        weight += [0.0] * len(question) + [WEIGHTS.get(KINDS[kind], 1.0)] * len(reply)
        kind_of += [-1] * len(question) + [kind] * len(reply)
    return ids, weight, kind_of


def batch(
    encode: Encoder,
    seed: int,
    step: int,
    rows: int,
    length: int,
    text_weight: float = 0.0,
    dense: float = 0.5,
    pool: int = 1000,
    mixes: tuple[str, ...] = MIXES,
) -> Batch:
    """The batch of a step: a function of its arguments.

    Args:
        dense: share of its rows that are full of facts.
        pool: names, and groups of digits, that it draws from.
        mixes: what a row may be made of; one is drawn for each.
    """
    out = Batch(
        np.full((rows, length + 1), encode.pad, np.int64),
        np.zeros((rows, length + 1), np.float32),
        np.full((rows, length + 1), -1, np.int8),
    )
    for row in range(rows):
        pick = random.Random(f"train {seed} {step} {row}")
        ids, weight, kind = sequence(pick, encode, length, pick.random() < dense, text_weight, pool, mixes)
        count = min(len(ids), length + 1)
        out.ids[row, :count] = ids[:count]
        out.weight[row, :count] = weight[:count]
        out.kind[row, :count] = kind[:count]
    return out
