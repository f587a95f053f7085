#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Upstream's attention test kit on backend hsa with all pages selected, beside one of upstream's own backends.

    attention_kit.py                   every case, one row each
    attention_kit.py --only STRING     the cases whose names contain it
    attention_kit.py --list            names of all cases
    attention_kit.py --log FILE        with the tracebacks of what fails

The kit builds a runner, pools and batches, runs forward passes, and compares them with its own dense attention. A HSA that
selects all pages must equal it. Beside HSA runs `triton`, or without a CUDA device `torch_native`; without one, only
eager extend and decode run. See CONTRIBUTING.md.

Exit status: 0 no case is worse on HSA, 1 a case fails on HSA that passes on the other backend, or HSA had no page to
select in any case, or the kit has a function that no case names, 2 nothing was compared.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

from attention_kit_tool import entries

ALL_PAGES = 64  # more than the longest context of a case has


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    folder = entries.kit_folder()
    if folder is None:
        return _refuse("there is no attention test kit here; SGLang has it since 0.5.13, and it must be importable")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    from attention_kit_tool.cases import all_cases

    cases = all_cases()
    lost = [entry for entry in entries.entries(folder) if not entries.is_accounted_for(entry, {c.entry for c in cases})]
    chosen = [case for case in cases if args.only in case.name]
    if not chosen:
        return _refuse(f"no case has {args.only!r} in its name; --list names them all")
    if args.list:
        print(*(case.name for case in chosen), sep="\n")
        return 0
    return _report(_judge_all(chosen, device, args), folder, lost)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="STRING", default="", help="the cases whose names contain it")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and run none")
    parser.add_argument("--log", metavar="FILE", type=Path, help="write the traceback of each failure")
    parser.add_argument(
        "--topk", metavar="PAGES", type=int, default=ALL_PAGES,
        help="pages that HSA selects (default: all); with 1 the long cases must fail, which shows that a fault is seen",
    )  # fmt: skip
    return parser


def _refuse(message: str) -> int:
    print(f"attention_kit: error: {message}", file=sys.stderr)
    return 2


def _judge_all(cases: list, device: str, args: argparse.Namespace) -> list:
    """Verdicts, each printed as it comes."""
    from attention_kit_tool.judge import judge

    peer = "triton" if device == "cuda" else "torch_native"
    width = max(len(case.name) for case in cases)
    row = f"{{:<{width}}}  {{:<20}}  {{:<20}}  {{:>10}}  {{:>11}}  {{:>14}}  {{}}"
    print(row.format("case", "hsa", peer, "difference", "sparse rows", "pages selected", "note"))
    verdicts = []
    with args.log.open("w") if args.log else nullcontext() as log:
        for case in cases:
            verdict = judge(case, peer, device, args.topk, log)
            verdicts.append(verdict)
            print(row.format(*_cells(verdict, peer)).rstrip(), flush=True)
    return verdicts


def _cells(verdict, peer: str) -> tuple:
    hsa, other, counts = verdict.hsa, verdict.peer, verdict.hsa.counts
    distance = "" if verdict.distance is None else f"{verdict.distance:.1e}"
    pages = f"{counts['pages_selected']}/{counts['pages_candidate']}" if counts else ""
    notes = [hsa.note, other.note and f"{peer}: {other.note}"]
    note = " | ".join(filter(None, notes))
    return verdict.case.name, hsa.status, other.status, distance, counts.get("rows_sparse", ""), pages, note


def _report(verdicts: list, folder: Path, lost: list[str]) -> int:
    for method, reason in entries.METHODS.items():
        count = sum(entries.method_of(entry) == method for entry in entries.entries(folder))
        if count:
            print(f"{method}: not applicable, {count} functions of the kit: {reason}")
    for entry in lost:
        print(f"{entry}: no case names this function of the kit")
    counts = Counter(verdict.hsa.status for verdict in verdicts)
    worse = [verdict.case.name for verdict in verdicts if verdict.worse]
    rows = sum(verdict.hsa.counts.get("rows_sparse", 0) for verdict in verdicts)
    print("hsa: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    both = sum(verdict.hsa.status == verdict.peer.status == "failed" for verdict in verdicts)
    print(f"{len(worse)} worse than the other backend, {both} failed on both, {rows} rows with pages to select")
    if all(verdict.peer.status != "passed" for verdict in verdicts):
        return _refuse("no case passed on the other backend, so the comparison says nothing")
    return 1 if worse or lost or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
