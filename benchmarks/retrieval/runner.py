# SPDX-License-Identifier: Apache-2.0
"""Run the suite against a server: bounded concurrency, results in the order of the plan, resumable.

A run is a folder. ``results.jsonl`` has a header (plan and provenance) and one line per sample, always in the order
of the plan and without times, so that an interrupted and resumed run writes the same bytes as one that was not.
``sessions.jsonl`` says when and how fast, with the server's HSA counters; ``summary.json`` has the scores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator

from . import samples
from .server import Server, ServerError
from .tasks import TASKS, grade

RESULTS, SESSIONS, SUMMARY = "results.jsonl", "sessions.jsonl", "summary.json"


class RunError(Exception):
    """The run cannot begin or go on; one line."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which samples, in which order."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    seeds: tuple[int, ...]
    tokenizer: str

    def __post_init__(self):
        for task in self.tasks:
            if task not in TASKS:
                raise RunError(f"unknown task {task!r}: one of {', '.join(TASKS)}")
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise RunError(f"depth {depth:g} is not between 0 and 1")
        for name in ("tasks", "lengths", "depths", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise RunError(f"--{name} needs values that differ from each other, got {values}")

    def cells(self) -> Iterator[tuple[str, int, float, int]]:
        for length in self.lengths:
            for task in self.tasks:
                for depth in self.depths:
                    for seed in self.seeds:
                        yield task, length, depth, seed

    def __len__(self) -> int:
        return len(self.tasks) * len(self.lengths) * len(self.depths) * len(self.seeds)


def run(
    server: Server,
    plan: Plan,
    folder: Path,
    label: str,
    count: Callable[[str], int],
    about: dict[str, Any],
    concurrency: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Answer what the folder lacks of the plan and write the summary.

    Args:
        label: name of the run in tables and plots.
        count: tokens of a prompt.
        about: what ``Server.connect`` returned.
        concurrency: requests in flight.
        progress: called with samples done and samples of the plan.

    Raises:
        RunError: the folder holds another run, or the server failed; what was answered is kept.
    """
    longest = about.get("max_model_len")
    too_long = [length for length in plan.lengths if longest and length > longest]
    if too_long:
        raise RunError(
            f"length {too_long[0]} is longer than the server's context of {longest} tokens: "
            "leave it out, or start the server with a longer --context-length"
        )
    header = dict(suite=1, label=label, plan=dataclasses.asdict(plan), server=about, commit=commit())
    folder.mkdir(parents=True, exist_ok=True)
    done = resume(folder / RESULTS, header)
    session = dict(started=time.strftime("%Y-%m-%dT%H:%M:%S%z"), first=done, counters_before=server.hsa_counters())
    begin = time.monotonic()
    progress(done, len(plan))
    try:
        with (folder / RESULTS).open("a", encoding="utf-8") as out:
            for result in _answers(server, list(plan.cells())[done:], count, concurrency):
                out.write(json.dumps(result, sort_keys=True) + "\n")
                out.flush()
                done += 1
                progress(done, len(plan))
    except (ServerError, ValueError) as error:
        kept = f"{done} of {len(plan)} results are kept in {folder}; the same command goes on from there"
        raise RunError(f"{error}; {kept}") from None
    finally:
        # Also of an interrupted session: its samples are in the results.
        session.update(samples=done - session["first"], seconds=round(time.monotonic() - begin, 1))
        if done == len(plan):
            session["counters_after"] = server.hsa_counters()
        with (folder / SESSIONS).open("a", encoding="utf-8") as out:
            out.write(json.dumps(session, sort_keys=True) + "\n")
    summary = summarize(folder)
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return summary


def _answers(server: Server, cells: list, count: Callable[[str], int], concurrency: int) -> Iterator[dict]:
    """Results of the cells in their order; at most ``concurrency`` requests and prompts are held at once."""

    def answer(cell) -> dict:
        sample = samples.make(*cell, count)
        text, tokens = server.complete(sample.prompt, samples.NEW_TOKENS)
        graded = grade(sample.answers, sample.pattern, text)
        return dict(
            task=sample.task,
            length=sample.length,
            depth=sample.depth,
            seed=sample.seed,
            tokens=sample.tokens,
            server_tokens=tokens,
            text=text,
            answers=sample.answers,
            **dataclasses.asdict(graded),
        )

    pool = ThreadPoolExecutor(concurrency)
    waiting: list = []
    try:
        for cell in cells:
            waiting.append(pool.submit(answer, cell))
            if len(waiting) >= concurrency:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def resume(path: Path, header: dict[str, Any]) -> int:
    """Prepare the results file; returns how many results it has.

    A line that was cut off in the middle is removed.

    Raises:
        RunError: the file belongs to another plan, server or commit.
    """
    # As it comes back from JSON, where tuples are lists.
    header = json.loads(json.dumps(header))
    if not path.exists() or b"\n" not in path.read_bytes():
        path.write_text(json.dumps(header, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:  # no newline at its end
        os.truncate(path, path.stat().st_size - len(lines[-1]))
    held = json.loads(lines[0])
    for name in header:
        if held.get(name) != header[name]:
            name, there, now = _first_difference(name, held.get(name), header[name])
            raise RunError(
                f"{path} holds another run, its {name} differs ({_short(there)} there, {_short(now)} now): give another --out"
            )
    return len(lines) - 2


def load(folder: Path) -> tuple[dict, list[dict]]:
    """Header and results of a run."""
    path = folder / RESULTS
    if not path.exists():
        raise RunError(f"{folder} holds no results; it has no {RESULTS}")
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return json.loads(lines[0]), [json.loads(line) for line in lines[1:]]


def summarize(folder: Path) -> dict[str, Any]:
    """Scores of a run: per task, length and depth, and per task and length; shares from 0 to 1."""
    header, results = load(folder)
    cells: dict[tuple, list] = {}
    for r in results:
        for key in ((r["task"], r["length"], r["depth"]), (r["task"], r["length"], None)):
            cells.setdefault(key, []).append(r)
    scores = [
        dict(
            task=task,
            length=length,
            depth=depth,
            samples=len(group),
            exact=sum(r["exact"] for r in group) / len(group),
            recall=sum(r["recall"] for r in group) / len(group),
        )
        for (task, length, depth), group in cells.items()
    ]
    return dict(
        **header,
        complete=len(results) == len(Plan(**header["plan"])),
        results=len(results),
        without_answer=sum(r["listed"] == 0 for r in results),
        scores=scores,
    )


def commit() -> str:
    """Commit of the working tree, with ``+`` if it is not clean; ``unknown`` outside of git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", Path(__file__).parent, *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short", "HEAD")
    return (head + ("+" if git("status", "--porcelain", "-uno") else "")) or "unknown"


def _first_difference(name: str, there: Any, now: Any) -> tuple[str, Any, Any]:
    """Of two values that differ, the first field that does: its dotted name and both values of it."""
    while isinstance(there, dict) and isinstance(now, dict):
        field = next(key for key in {**now, **there} if there.get(key, ...) != now.get(key, ...))
        name, there, now = f"{name}.{field}", there.get(field), now.get(field)
    return name, there, now


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
