# SPDX-License-Identifier: Apache-2.0
"""The suite's samples, answered by the training model itself: greedy, no server, each token from the whole text anew.

    python examples/needle/evaluate.py CHECKPOINT --lengths 8192
    python examples/needle/evaluate.py CHECKPOINT --lengths 8192 --no-bias    # landmarks without their entropy

Prints a table and, last, a JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import hils  # noqa: E402, the line above makes the suite importable
import torch  # noqa: E402
import vocabulary  # noqa: E402
from model import Qwen3, load  # noqa: E402

from benchmarks.retrieval import samples, tasks  # noqa: E402

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


def grid(model, tokenizer, lengths, depths, count: int, device, workers: int = 0, kinds=tuple(tasks.TASKS)) -> list[dict]:
    """Exact share and recall per task, length and depth. Processes other than this one make the samples."""
    cells = list(itertools.product(kinds, lengths, depths, range(FIRST_SEED, FIRST_SEED + count)))
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
        for task in kinds:
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
    for task in dict.fromkeys(s["task"] for s in scores):
        cells = [
            "".join(f"{100 * s['exact']:4.0f}" for s in scores if (s["task"], s["length"]) == (task, n))
            for n in lengths
        ]
        lines.append(f"{task:14}" + "".join(f"{cell:>{width + 2}}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder that train.py wrote")
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048])
    parser.add_argument("--depths", nargs="+", type=float, default=[0.1, 0.5, 0.9])
    parser.add_argument("--tasks", nargs="+", choices=tasks.TASKS, default=list(tasks.TASKS), metavar="TASK")
    parser.add_argument("--samples", type=int, default=8, help="per task, length and depth (default: %(default)s)")
    parser.add_argument("--topk", type=int, help="pages that a row of HiLS attends (default: the checkpoint's)")
    parser.add_argument("--no-bias", action="store_true", help="representations of HiLS without the entropy b'")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=min(14, os.cpu_count() or 1))
    args = parser.parse_args()
    try:
        check(args.lengths)
    except ValueError as error:
        raise SystemExit(f"evaluate: --lengths: {error}") from None
    torch.set_float32_matmul_precision("high")
    model = load(args.checkpoint, {"qwen3": Qwen3, "qwen_hils": hils.HiLS}).eval().to(args.device)
    if args.topk is not None and args.topk < 1:
        raise SystemExit(f"evaluate: --topk is at least 1, not {args.topk}")
    if isinstance(model, hils.HiLS):
        model.set_selection(args.topk or model.shape.hils_topk, not args.no_bias)
    elif args.topk or args.no_bias:
        raise SystemExit(f"evaluate: {args.checkpoint} has no landmarks: leave out --topk and --no-bias")
    tokenizer, device = vocabulary.build(), torch.device(args.device)
    scores = grid(model, tokenizer, args.lengths, args.depths, args.samples, device, args.workers, tuple(args.tasks))
    print(table(scores), flush=True)
    print(json.dumps(dict(checkpoint=args.checkpoint.name, topk=args.topk, bias=not args.no_bias, scores=scores)))


if __name__ == "__main__":
    main()
