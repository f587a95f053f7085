#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Command line of the overlay tool; without a command it applies. See docs/overlay_tool.md."""

import sys

if sys.version_info < (3, 10):
    sys.exit("overlay: error: this Python is too old; run with Python 3.10 or later (PYTHON=python3.11)")

import argparse
import os
import signal
from pathlib import Path

from overlay_tool import commands, console, develop, drift, lock, manifest, pin, rebase, sources, status
from overlay_tool.console import OverlayError
from overlay_tool.transaction import Interrupted

ROOT = Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
    """Usage errors are one line too, with exit code 2."""

    def error(self, message):
        console.fail(f"{message}; see {self.prog} --help")
        raise SystemExit(2)


def _parser() -> Parser:
    parser = Parser(prog="overlay.py", description="Builds a patched SGLang tree from a pin, a series and added files.")
    commands_of = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, of_a_release: bool = True) -> Parser:
        made = commands_of.add_parser(name, help=text, description=text)
        if of_a_release:
            made.add_argument("--release", metavar="NAME", help="a release of upstream.lock (default: SGLANG_HSA_RELEASE, or the lock's)")
        made.add_argument("--quiet", action="store_true", help="no step lines")
        return made

    apply = command("apply", "build the patched tree, or bring it up to date (the default command)")
    _place(apply)
    _source(apply)
    apply.add_argument("--git", metavar="URL", nargs="?", const="", help="clone upstream at the pinned tag")
    _change(apply)
    reverse = command("reverse", "turn the tree back into pristine upstream")
    _place(reverse)
    _source(reverse)
    _change(reverse)
    report = command("status", "state and size of every patch, and edits in the tree")
    _place(report)
    report.add_argument("--json", action="store_true")
    _place(command("verify", "fail unless the tree is exactly pin, series and overlay"))
    pinning = command("pin", "add a release to upstream.lock, with an empty series", of_a_release=False)
    pinning.add_argument("version", metavar="VERSION")
    checkout = command("checkout", "make a git repository with one commit per patch")
    checkout.add_argument("folder", type=Path)
    checkout.add_argument("--no-patches", action="store_true", help="only the pristine release, to rebase onto")
    _source(checkout)
    refresh = command("refresh", "write series, patches and lock from such a repository")
    refresh.add_argument("folder", type=Path)
    refresh.add_argument("--base", metavar="REF", help="the pristine commit (default: tag pin, or the release's tag)")
    refresh.add_argument("--force", action="store_true", help="move hunks that do not stand at their lines in the pin")
    _source(refresh)
    rebasing = command("rebase", "merge the series of another release onto this one, in a git repository")
    rebasing.add_argument("folder", type=Path)
    rebasing.add_argument("--from", dest="old", metavar="NAME", help="the release with the series (default: the lock's one before)")
    rebasing.add_argument("--json", action="store_true")
    _source(rebasing)
    drift_report = command("drift", "how each patch stands against other releases")
    drift_report.add_argument("targets", metavar="RELEASE|DIR", nargs="+")
    drift_report.add_argument("--json", action="store_true")
    return parser


def _place(parser: Parser) -> None:
    parser.add_argument("--tree", metavar="DIR", type=Path, help="where the tree stands (default: sglang/)")


def _source(parser: Parser) -> None:
    parser.add_argument("--source", metavar="PATH", type=Path, help="upstream folder, git checkout or archive; only read")


def _change(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="do everything but write")
    parser.add_argument("--force", action="store_true", help="discard edits in the tree")


def _run(args: argparse.Namespace, root: Path) -> None:
    pins = lock.load(root)
    if args.command == "pin":
        pin.pin(root, pins, args.version)
        return
    tree = (args.tree or root / "sglang").resolve() if hasattr(args, "tree") else None
    release = pins.release(args.release or (manifest.release_of(tree) if args.command in ("status", "verify") else None))
    source = args.source.resolve() if getattr(args, "source", None) else None
    if args.command == "apply":
        if source and args.git is not None:
            raise OverlayError("--source and --git exclude each other", "give one of them")
        url = args.git or (release.repository if args.git is not None else None)
        commands.apply(root, tree, release, source, url, args.force, args.dry_run)
    elif args.command == "reverse":
        commands.reverse(root, tree, pins, source, args.force, args.dry_run)
    elif args.command == "status":
        status.status(root, tree, release, args.json)
    elif args.command == "verify":
        status.verify(root, tree, release)
    elif args.command == "drift":
        drift.drift(root, release, args.targets, args.json)
    else:
        upstream = sources.from_path(source, release) if source else sources.pinned(release)
        if args.command == "checkout":
            develop.checkout(root, release, args.folder.resolve(), upstream, not args.no_patches)
        elif args.command == "rebase":
            rebase.rebase(root, pins, release, args.old, args.folder.resolve(), upstream, args.json)
        else:
            develop.refresh(root, pins, release, args.folder.resolve(), upstream, args.base, args.force)


def _interrupt(signum, frame):
    raise Interrupted("interrupted; the tree is what it was")


def main(argv: list[str], root: Path = ROOT) -> int:
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["apply", *argv]
    args = _parser().parse_args(argv)
    console.quiet = args.quiet
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    try:
        _run(args, root)
    except (OverlayError, Interrupted) as failure:
        console.fail(str(failure))
        return 1
    except BrokenPipeError:  # `| head`; what Python still holds for stdout goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        console.fail(str(console.os_error(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
