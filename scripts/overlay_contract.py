#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that all that the overlay's files use of SGLang is there in a release, without installing it.

    scripts/overlay_contract.py                     every release of upstream.lock
    scripts/overlay_contract.py --release v0.5.17   one of them
    scripts/overlay_contract.py --newest            the newest one on the index; it only warns

One line for each use that does not resolve, and exit code 1. See docs/overlay_tool.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from overlay_contract_tool.check import Checked, check
from overlay_tool import console, fetch, index, lock, sources
from overlay_tool.archives import read_archive
from overlay_tool.console import OverlayError, count
from overlay_tool.lock import Lock
from overlay_tool.tree import Snapshot

ROOT = Path(__file__).resolve().parents[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--release", metavar="NAME|ALL", default="ALL", help="a release of upstream.lock (default: each of them)")
    parser.add_argument("--source", metavar="PATH", type=Path, help="a folder, git checkout or archive of any release; only read")
    parser.add_argument("--newest", action="store_true", help="the newest release on the package index; exit code 0 whatever it lacks")
    parser.add_argument("--tests", action="store_true", help="the overlay's tests too")
    parser.add_argument("--quiet", action="store_true", help="no step lines")
    return parser


def _newest() -> tuple[str, Snapshot]:
    version = index.newest()
    name, data = fetch.release_archive(version)
    return version, sources.place(read_archive(name, data), name)


def _other(root: Path, pins: Lock, version: str, files: Snapshot, tests: bool) -> Checked:
    """A release that the lock may not know; then it has no series and no files of its own."""
    name = f"v{version}"
    release = pins.releases.get(name) or replace(pins.releases[pins.default], name=name, version=version)
    return check(root, pins, release, files, tests)


def _run(args: argparse.Namespace, root: Path) -> int:
    pins = lock.load(root)
    if args.newest:
        checked = [_other(root, pins, *_newest(), args.tests)]
    elif args.source:
        upstream = sources.read_source(args.source.resolve())
        version = sources.version_of(upstream) or (pins.release(args.release).version if args.release != "ALL" else "0")
        checked = [_other(root, pins, version, upstream.files, args.tests)]
    else:
        names = list(pins.releases) if args.release == "ALL" else [pins.release(args.release).name]
        checked = [check(root, pins, pins.releases[name], sources.pinned(pins.releases[name]).files, args.tests) for name in names]
    for report in checked:
        for finding in report.findings:
            console.result(f"{report.release}: {finding}")
        console.result(f"{report.release}: {count(report.files, 'file')}, {count(len(report.findings), 'use')} of SGLang missing")
    return 1 if any(report.findings for report in checked) and not args.newest else 0


def main(argv: list[str], root: Path = ROOT) -> int:
    args = _parser().parse_args(argv)
    console.quiet = args.quiet
    try:
        return _run(args, root)
    except OverlayError as failure:
        if args.newest:
            console.note(str(failure))
            return 0
        console.fail(str(failure))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
