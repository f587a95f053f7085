# SPDX-License-Identifier: Apache-2.0
"""What is asked of one server: pass keys, perplexity and, if wanted, the retrieval suite."""

from __future__ import annotations

import functools
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from benchmarks.retrieval import gates as suite_gates
from benchmarks.retrieval import runner
from benchmarks.retrieval.server import Server as SuiteServer
from benchmarks.retrieval.tasks import TASKS

from . import keys
from .gates import UNABLE
from .serving import Server

PPL_START = 2000  # perplexity is that of the tokens after this position, where pages are left out
SUITE_LENGTHS = (4096, 7168)
SUITE_DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
SENTENCE = re.compile(r"(?<=\.)(?= )")  # between a full stop and a space


@dataclass(frozen=True)
class Context:
    """What is asked at one length.

    Attributes:
        length: tokens.
        texts: what perplexity is taken of. They go first, so that questions find what they share with them.
        questions: pass keys.
    """

    length: int
    texts: list[list[int]]
    questions: list[keys.Question]


def contexts(documents: list[list[int]], encode, bos: int, lengths: list[int], count: int, shared: bool) -> list[Context]:
    """Everything that is asked, the same for every arm.

    Args:
        shared: one prompt with a key per name for each length, instead of a prompt per key.
    """
    if shared:
        made = [keys.shared(documents[0], encode, bos, length, count) for length in lengths]
        return [Context(length, [prefix], asked) for length, (prefix, asked) in zip(lengths, made)]
    return [
        Context(
            length,
            [[bos, *document[: length - 1]] for document in documents],
            keys.single(documents, encode, bos, length, count),
        )
        for length in lengths
    ]


def context(server: Server, asked: Context, decode: Callable[[list[int]], str], concurrency: int) -> dict[str, Any]:
    """Keys found, perplexity and answers of one server at one length."""
    with ThreadPoolExecutor(concurrency) as pool:
        losses = list(pool.map(lambda ids: server.losses(ids, PPL_START), asked.texts))
        replies = list(pool.map(lambda question: server.greedy(question.ids, keys.NEW_TOKENS), asked.questions))
    flat = [loss for text in losses for loss in text]
    answers = [decode(reply["output_ids"]) for reply in replies]
    return dict(
        context=asked.length,
        keys=sum(keys.grade(question.key, answer) for question, answer in zip(asked.questions, answers)),
        keys_total=len(answers),
        ppl=math.exp(sum(flat) / len(flat)),
        ppl_tokens=len(flat),
        answers=[[question.key, answer] for question, answer in zip(asked.questions, answers)],
    )


def counted(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


def sentence_counter(encode: Callable[[str], list[int]]) -> Callable[[str], int]:
    """Function that counts the tokens of the suite's texts, each sentence once.

    No token of a byte-level BPE reaches over the end of a sentence, and samples share their filler: counting whole prompts
    would take longer than answering them.
    """
    one = functools.lru_cache(maxsize=None)(lambda sentence: len(encode(sentence)))
    return lambda text: sum(map(one, SENTENCE.split(text)))


def suite(
    server: Server, out: Path, label: str, count: Callable[[str], int], samples: int, concurrency: int
) -> dict[str, Any]:
    """Summary of the retrieval suite on a server."""
    plan = runner.Plan(tuple(TASKS), SUITE_LENGTHS, SUITE_DEPTHS, tuple(range(samples)), "model")
    client = SuiteServer(server.url)
    return runner.run(client, plan, out / f"retrieval-{label}", label, count, client.connect(), concurrency)


def suite_rows(dense: dict[str, Any], sparse: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per task and length: exact answers in percent."""
    points, points_dense = suite_gates.by_task(sparse), suite_gates.by_task(dense)
    samples = {(s["task"], s["length"]): s["samples"] for s in dense["scores"] if s["depth"] is None}
    return [
        dict(
            task=task,
            context=length,
            points=round(points[task, length], 2),
            points_dense=round(points_dense[task, length], 2),
            samples=samples[task, length],
            unable=points_dense[task, length] < UNABLE,
        )
        for task, length in sorted(points_dense, key=lambda cell: (cell[1], cell[0]))
    ]
