# SPDX-License-Identifier: Apache-2.0
"""What the user reads: step lines on stderr, results on stdout, and failures of one line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

quiet = False


class OverlayError(Exception):
    """A failure the user can act on: what was wrong, and what to do about it."""

    def __init__(self, what: str, todo: str = ""):
        super().__init__(what if not todo else f"{what}; {todo}")


def step(text: str) -> None:
    """One step line; on stderr, so that stdout stays readable by a program."""
    if not quiet:
        print(f"overlay: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    print(f"overlay: note: {text}", file=sys.stderr, flush=True)


def result(text: str) -> None:
    print(text, flush=True)


def fail(text: str) -> None:
    print(f"overlay: error: {' '.join(text.split())}", file=sys.stderr, flush=True)


def os_error(error: OSError) -> OverlayError:
    """The line for an operating-system failure, by what the user can do about it."""
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OverlayError(f"no space left while writing {where}", "free some space and run again")
    if error.errno in _READ_ONLY:
        return OverlayError(
            f"cannot write {where} ({error.strerror})",
            "make its folder writable or choose another place with --tree",
        )
    return OverlayError(f"{where}: {error.strerror or error}", "repair that and run again")


def some(paths: Iterable[str], limit: int = 8) -> str:
    """A short list for one line: the first names and how many more."""
    names = sorted(paths)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def count(number: int, noun: str) -> str:
    """`1 patch`, `2 patches`."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{number} {noun if number == 1 else plural}"
