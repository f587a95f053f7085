# SPDX-License-Identifier: Apache-2.0
"""The suite's samples, answered by the training model itself: dense attention, greedy, no server."""

from __future__ import annotations

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
import vocabulary

from benchmarks.retrieval import samples, tasks

# Seeds of the training streams are strings of another form; these samples are seen by no training step.
FIRST_SEED = 1000
TOKENS_AT_ONCE = 262144


@torch.no_grad()
def complete(model, prompts: list[list[int]], stop: int, pad: int, device, most: int = 40) -> list[list[int]]:
    """Greedy continuations up to the token ``stop``. Prompts are padded on the right, which a causal model ignores."""
    room = max(map(len, prompts)) + most
    ids = torch.full((len(prompts), room), pad, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids = ids.to(device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    rows = torch.arange(len(prompts), device=device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    out = []
    for _ in range(most):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            hidden = model(ids[:, : int(lengths.max())])
            token = model.logits(hidden[rows, lengths - 1]).argmax(-1)
        ids[rows, lengths] = token
        lengths += 1
        out.append(token.masked_fill(done, stop))
        done |= token == stop
        if done.all():
            break
    return [[t for t in row if t != stop] for row in torch.stack(out, dim=1).tolist()]


def make(cell: tuple[str, int, float, int]) -> samples.Sample:
    tokenizer = vocabulary.build_once()
    return samples.make(*cell, lambda text: len(tokenizer.encode(text)))


def check(lengths: list[int]) -> None:
    """Raise ValueError if a task does not fit into one of the lengths; before a run, not after it."""
    for task in tasks.TASKS:
        make((task, min(lengths), 0.5, FIRST_SEED))


def grid(model, tokenizer, lengths, depths, count: int, device, workers: int = 0) -> list[dict]:
    """Exact share and recall per task, length and depth. Processes other than this one make the samples."""
    cells = list(itertools.product(tasks.TASKS, lengths, depths, range(FIRST_SEED, FIRST_SEED + count)))
    if workers:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            every = list(pool.map(make, cells, chunksize=4))
    else:
        every = [make(cell) for cell in cells]
    stop = tokenizer.encode("\n")[0]
    scores = []
    for length in lengths:
        made = [sample for sample in every if sample.length == length]
        at_once = max(1, TOKENS_AT_ONCE // length)
        graded = []
        for i in range(0, len(made), at_once):
            part = made[i : i + at_once]
            replies = complete(model, [tokenizer.encode(s.prompt) for s in part], stop, tokenizer.pad_token_id, device)
            graded += [tasks.grade(s.answers, s.pattern, tokenizer.decode(ids)) for s, ids in zip(part, replies)]
        for task in tasks.TASKS:
            for depth in depths:
                own = [g for s, g in zip(made, graded) if (s.task, s.depth) == (task, depth)]
                exact, recall = (sum(getattr(g, name) for g in own) / len(own) for name in ("exact", "recall"))
                scores.append(dict(task=task, length=length, depth=depth, samples=len(own), exact=exact, recall=recall))
    return scores


def table(scores: list[dict]) -> str:
    """Exact points per task (rows) and length (columns), a number per depth."""
    lengths = sorted({s["length"] for s in scores})
    width = 4 * len({s["depth"] for s in scores})
    lines = [f"{'exact, by depth':14}" + "".join(f"{length:>{width + 2}}" for length in lengths)]
    for task in tasks.TASKS:
        cells = [
            "".join(f"{100 * s['exact']:4.0f}" for s in scores if (s["task"], s["length"]) == (task, n))
            for n in lengths
        ]
        lines.append(f"{task:14}" + "".join(f"{cell:>{width + 2}}" for cell in cells))
    return "\n".join(lines)
