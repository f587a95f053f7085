# SPDX-License-Identifier: Apache-2.0
"""Command line of the suite: ``python -m benchmarks.retrieval {run,show,plot,gates,prompt}``; see docs/retrieval.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import gates, runner, samples
from .heatmap import heatmap
from .server import Server, ServerError
from .tasks import TASKS

LENGTHS = (1024, 2048, 4096, 8192)
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__.split(":")[0])
    commands = main.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="ask a running server; the same command resumes")
    run.add_argument("--url", default="http://127.0.0.1:30000")
    run.add_argument("--api-key")
    run.add_argument("--out", type=Path, required=True, help="folder of the results")
    run.add_argument("--label", help="name in tables and plots (default: the folder's)")
    _plan(run)
    run.add_argument("--samples", type=int, default=20, help="per task, length and depth (default: %(default)s)")
    run.add_argument("--first-seed", type=int, default=0)
    run.add_argument("--concurrency", type=int, default=4, help="requests in flight (default: %(default)s)")
    run.add_argument("--timeout", type=float, default=600, help="seconds per request (default: %(default)s)")

    show = commands.add_parser("show", help="print scores")
    show.add_argument("runs", nargs="+", type=Path)

    plot = commands.add_parser("plot", help="write heatmaps side by side")
    plot.add_argument("runs", nargs="+", type=Path)
    plot.add_argument("--out", type=Path, required=True, help="SVG file")
    plot.add_argument("--per-task", action="store_true")

    gate = commands.add_parser("gates", help="check the gates; status 1 if one does not hold")
    gate.add_argument("--dense", type=Path, required=True)
    gate.add_argument("--hsa", type=Path, required=True)
    gate.add_argument("--window", type=Path)
    gate.add_argument("--lengths", nargs="+", type=int, default=[8192, 16384])
    gate.add_argument("--deepest", type=float, default=0.7, help="depth up to which facts lie outside of the window")

    prompt = commands.add_parser("prompt", help="print one prompt and what should follow")
    _plan(prompt)
    prompt.add_argument("--seed", type=int, default=0)
    return main


def _plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}")
    command.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS), help="tokens with continuation")
    command.add_argument("--depths", nargs="+", type=float, default=list(DEPTHS), help="0 to 1")
    command.add_argument(
        "--tokenizer", default="server", help="folder of a tokenizer, or 'server' to ask it (default: %(default)s)"
    )


def counter(tokenizer: str, server: Server | None):
    """Function that counts the tokens of a prompt."""
    if tokenizer == "server":
        if server is None:
            raise ServerError("no server to count tokens: give --tokenizer FOLDER")
        return server.count_tokens
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ServerError(f"no tokenizer in {tokenizer!r}: {str(error).splitlines()[0]}") from None
    return lambda text: len(loaded(text)["input_ids"])


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    if args.samples < 1 or args.concurrency < 1:
        raise runner.RunError("--samples and --concurrency must be at least 1")
    server = Server(args.url, args.timeout, args.api_key)
    seeds = tuple(range(args.first_seed, args.first_seed + args.samples))
    plan = runner.Plan(tuple(args.tasks), tuple(args.lengths), tuple(args.depths), seeds, args.tokenizer)
    about = server.connect()
    label = args.label or args.out.name
    with tqdm(total=len(plan), desc=label, unit="sample") as bar:

        def progress(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        count = counter(args.tokenizer, server)
        summary = runner.run(server, plan, args.out, label, count, about, args.concurrency, progress)
    print(table([summary]))
    if summary["without_answer"]:
        print(f"{summary['without_answer']} of {summary['results']} replies list nothing that could be graded")
    print(json.dumps({name: summary[name] for name in ("label", "commit", "results", "without_answer", "server")}))
    return 0


def table(summaries: list[dict[str, Any]]) -> str:
    """Points (exact, and share of the items listed) per task and length, a column per run."""
    cells = list(dict.fromkeys((s["length"], s["task"]) for run in summaries for s in run["scores"]))
    lines = [" " * 19 + "".join(f"{run['label'][:17]:>18}" for run in summaries)]
    for length, task in sorted(cells, key=lambda cell: cell[0]):
        line = f"{length:6} {task:12}"
        for run in summaries:
            found = [s for s in run["scores"] if (s["length"], s["task"], s["depth"]) == (length, task, None)]
            line += f"{100 * found[0]['exact']:9.1f} ({100 * found[0]['recall']:5.1f})" + " " if found else " " * 18
        lines.append(line.rstrip())
    return "\n".join(lines)


def prompt(args: argparse.Namespace) -> int:
    sample = samples.make(args.tasks[0], args.lengths[0], args.depths[0], args.seed, counter(args.tokenizer, None))
    print(f"{sample.prompt}[{sample.reply}]")
    print(f"{sample.key}: {sample.tokens} tokens", file=sys.stderr)
    return 0


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        if args.command == "run":
            return run(args)
        if args.command == "prompt":
            return prompt(args)
        if args.command == "gates":
            folders = [folder for folder in (args.dense, args.hsa, args.window) if folder]
            dense, hsa, *window = (runner.summarize(folder) for folder in folders)
            lines, hold = gates.check(dense, hsa, window[0] if window else None, args.lengths, args.deepest)
            print("\n".join([*lines, "all gates hold" if hold else "a gate does not hold"]))
            return 0 if hold else 1
        summaries = [runner.summarize(folder) for folder in args.runs]
        if args.command == "plot":
            args.out.write_text(heatmap(summaries, args.per_task), encoding="utf-8")
        else:
            print(table(summaries))
        return 0
    except (runner.RunError, ServerError, ValueError) as error:
        print(f"retrieval: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("retrieval: interrupted; the same command goes on from what is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
