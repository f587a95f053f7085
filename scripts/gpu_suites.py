#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run every test file that needs CUDA devices, several at once, and print a table of what passed.

    gpu_suites.py                      all files
    gpu_suites.py --only gpt_oss       the files whose names contain it; may be given again
    gpu_suites.py --jobs 4             so many files at once, each on one device; those that use several run alone
    gpu_suites.py --limit 300          seconds for each file
    gpu_suites.py --out DIR            keep what pytest prints, one file each

Run it in the environment of the tests (see CONTRIBUTING.md), with the patched SGLang importable. A test that needs more
devices than there are skips; its reason is a line below the table.

Exit status: 0 all that ran passed, 1 a test failed or a file ran out of time, 2 there is no CUDA device or no file.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
NEEDS_A_DEVICE = re.compile(r"cuda\.is_available|needs_kernels|needs a CUDA device")
NEEDS_SEVERAL = re.compile(r"device_count\(\) < (\d+)")
OUTCOMES = ("passed", "failed", "skipped")
# Below tests/; the others are in the tree.
ELSEWHERE = ("hils/test_gpu.py", "hisparse/test_swap_in_gpu.py", "hsa/test_disaggregation.py", "hsa/test_images_gpu.py")


@dataclass
class Suite:
    """A test file.

    Attributes:
        path: of the file.
        devices: most that one of its tests uses.
        counts: tests by outcome. reasons: of those that skipped.
        seconds: that it took.
        note: why it has no counts.
    """

    path: Path
    devices: int
    counts: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    note: str = ""

    @property
    def bad(self) -> bool:
        return bool(self.counts["failed"] or self.note)


def find_suites(only: list[str]) -> list[Suite]:
    """Test files that need a device, of the patched tree and of this repository."""
    spec = find_spec("sglang")
    if spec is None:
        return []
    in_tree = Path(spec.submodule_search_locations[0]) / "test" / "attention"
    files = [*in_tree.glob("test_h*.py"), *(ROOT / "tests" / name for name in ELSEWHERE)]
    suites = []
    for path in sorted(files):
        text = path.read_text(encoding="utf-8")
        if not NEEDS_A_DEVICE.search(text) or (only and not any(part in path.name for part in only)):
            continue
        suites.append(Suite(path, max([1, *map(int, NEEDS_SEVERAL.findall(text))])))
    return suites


def run(suite: Suite, limit: float, out: Path, device: int | None = None) -> Suite:
    """Run one file in a process of its own, on one device or on all; what it prints is in ``out``."""
    name = f"{suite.path.parent.name}-{suite.path.stem}"
    report = out / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", "-rs", f"--junitxml={report}"]
    env = os.environ if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": str(device)}
    begin = time.monotonic()
    with open(out / f"{name}.txt", "w", encoding="utf-8") as log:
        try:
            subprocess.run(
                [*command, suite.path.name],
                cwd=suite.path.parent,
                env=env,
                stdout=log,
                stderr=log,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            suite.note = f"ran out of {limit:.0f} s"
    suite.seconds = time.monotonic() - begin
    if report.exists():
        read_report(suite, report)
    elif not suite.note:
        suite.note = f"no report; see {name}.txt"
    return suite


def read_report(suite: Suite, report: Path) -> None:
    """Count the outcomes in a report of pytest."""
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            suite.counts["failed"] += 1
        elif skipped is not None:
            suite.counts["skipped"] += 1
            suite.reasons[skipped.get("message", "")] += 1
        else:
            suite.counts["passed"] += 1


def table(suites: list[Suite]) -> str:
    """The suites as a table, and the reasons of what skipped."""
    lines = ["| file | devices | " + " | ".join(OUTCOMES) + " | seconds |", "| --- |" + " --- |" * 5]
    for suite in suites:
        counts = " | ".join(str(suite.counts[outcome]) for outcome in OUTCOMES)
        note = f" ({suite.note})" if suite.note else ""
        lines.append(f"| {suite.path.name}{note} | {suite.devices} | {counts} | {suite.seconds:.0f} |")
    reasons = sum((suite.reasons for suite in suites), Counter())
    lines += [f"{count} skipped: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="STRING", action="append", default=[], help="files whose names contain it")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="files at once (default: 1)")
    parser.add_argument("--limit", metavar="SECONDS", type=float, default=1800, help="for each file (default: 1800)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="keep what pytest prints there")
    args = parser.parse_args(argv)
    if args.jobs < 1 or args.limit <= 0:
        parser.error("--jobs and --limit must be positive")
    import torch

    if not torch.cuda.is_available():
        print("gpu_suites: there is no CUDA device here; scripts/test.sh runs what needs none", file=sys.stderr)
        return 2
    suites = find_suites(args.only)
    if not suites:
        print("gpu_suites: no such test file; is the patched SGLang importable?", file=sys.stderr)
        return 2
    out = args.out or Path(tempfile.mkdtemp(prefix="gpu-suites-"))
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(f"gpu_suites: {len(suites)} files, {torch.cuda.device_count()} devices; output in {out}", file=sys.stderr)
    together = [suite for suite in suites if suite.devices == 1]
    devices = [i % torch.cuda.device_count() for i in range(len(together))]
    with ThreadPoolExecutor(args.jobs) as pool:
        for suite in pool.map(lambda suite, device: run(suite, args.limit, out, device), together, devices):
            print(f"gpu_suites: {suite.path.name} {dict(suite.counts)} {suite.note}", file=sys.stderr)
    for suite in suites:
        if suite.devices > 1:
            run(suite, args.limit, out)
    print(table(suites))
    return int(any(suite.bad for suite in suites))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
