#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/attention_backend_source_map.md from the source of a tree: from `--attention-backend` to the kernels.

    source_map.py --write                  bring the page up to date with the patched tree in sglang/
    source_map.py --check                  fail if it is not
    source_map.py --backend triton         print one backend in the terminal
    source_map.py --diff 0.5.9 0.5.11      what moved between two releases
    source_map.py --releases 0.5.9 0.5.11  a short page of what became of backends; with --write docs/source_map_releases.md
    source_map.py --tree TREE ...          another tree than sglang/

A tree is a folder, an archive, or a release, which is fetched through pip. Standard library only; nothing is imported
from the tree.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from overlay_tool import lock, manifest
from overlay_tool.console import OverlayError
from source_map_tool import diff, page, releases
from source_map_tool.facts import read_map
from source_map_tool.model import Map
from source_map_tool.tree import Tree, open_tree

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "attention_backend_source_map.md"
RELEASES = PAGE.with_name("source_map_releases.md")
UPSTREAM = "https://github.com/sgl-project/sglang/blob"


def patched_tree(root: Path = ROOT) -> Tree:
    """The tree that apply_overlay.sh builds."""
    if not (root / "sglang" / "python").is_dir():
        raise OverlayError("there is no patched tree in sglang/", "run scripts/apply_overlay.sh")
    return open_tree(str(root / "sglang"), f"SGLang {patched_release(root).tag}, patched")


def patched_release(root: Path = ROOT) -> lock.Release:
    """The release that the tree was made from; the page in docs/ is that of the default one."""
    pins = lock.load(root)
    return pins.release(manifest.release_of(root / "sglang") or pins.default)


def patched_page(facts: Map, root: Path = ROOT) -> str:
    """The page of the patched tree, with links to the release, or to overlay/ for files that are added."""
    release = patched_release(root)

    def target(path: str, line: int) -> str | None:
        for folder in ("overlay", f"overlay/{release.name}"):
            if (root / folder / path).is_file():
                return f"../{folder}/{path}#L{line}"
        return None if path in release.files else f"{UPSTREAM}/{release.tag}/{path}#L{line}"

    return page.page(facts, page.Links(target))


def other_page(facts: Map) -> str:
    """The page of any other tree; links only if it is a release, which has a tag."""
    is_release = facts.label.startswith("v") and facts.label[1:2].isdigit()
    return page.page(
        facts, page.Links(lambda path, line: f"{UPSTREAM}/{facts.label}/{path}#L{line}" if is_release else None)
    )


def check(made: str) -> str:
    """Nothing if the page is current, or what is wrong."""
    written = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if written == made:
        return ""
    lines = list(difflib.unified_diff(written.splitlines(), made.splitlines(), PAGE.name, "the tree", lineterm="", n=0))
    shown = "\n".join(lines[:20])
    return f"{shown}\n{PAGE.name} does not match the tree ({len(lines)} lines of difference); run scripts/source_map.py --write"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", metavar="TREE", help="folder, archive or release to read (default: sglang/)")
    choice = parser.add_mutually_exclusive_group()
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}, or the page of releases")
    choice.add_argument("--check", action="store_true", help="fail if that page does not match the tree")
    choice.add_argument("--backend", metavar="NAME", help="print one backend, by its name, class or file")
    choice.add_argument("--diff", nargs=2, metavar=("RELEASE_A", "RELEASE_B"), help="print what moved")
    choice.add_argument("--releases", nargs="+", metavar="RELEASE", help="print what became of backends, in short")
    args = parser.parse_args()
    if args.write and (args.check or args.backend or args.diff):
        parser.error("--write goes with --releases or alone")
    if args.tree and (args.write or args.check or args.diff or args.releases):
        parser.error("--tree goes with --backend or alone; the page in docs/ is that of sglang/")
    return args


def main() -> int:
    args = _arguments()
    if args.diff:
        old, new = (read_map(open_tree(name, name)) for name in args.diff)
        print(diff.compare(old, new), end="")
        return 0
    if args.releases:
        made = releases.page([read_map(open_tree(name)) for name in args.releases])
        RELEASES.write_text(made, encoding="utf-8") if args.write else print(made, end="")
        return 0
    tree = open_tree(args.tree) if args.tree else patched_tree()
    facts = read_map(tree)
    if args.backend:
        text = page.terminal(facts, args.backend)
        if text is None:
            names = ", ".join(page.names(facts))
            raise OverlayError(f"{tree.label} has no backend {args.backend}", f"choose one of {names}")
        print(text, end="")
        return 0
    if args.write or args.check:
        default = lock.load(ROOT).default
        if patched_release().name != default:
            raise OverlayError(f"the page is that of {default}, sglang/ is {patched_release().name}", "run apply_overlay.sh")
    made = other_page(facts) if args.tree else patched_page(facts)
    if args.check:
        wrong = check(made)
        if wrong:
            print(wrong, file=sys.stderr)
        return int(bool(wrong))
    if args.write:
        PAGE.write_text(made, encoding="utf-8")
    else:
        print(made, end="")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OverlayError as failure:
        sys.exit(f"source_map: error: {failure}")
    except BrokenPipeError:  # `| head`
        sys.exit(1)
