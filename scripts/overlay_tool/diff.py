# SPDX-License-Identifier: Apache-2.0
"""Reads git's unified diffs into hunks. Lines are bytes with their ending, so CRLF survives."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .console import OverlayError

_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_INDEX = re.compile(rb"index ([0-9a-f]{40})\.\.([0-9a-f]{40})(?: (\d{6}))?$")
_NO_NEWLINE = b"\\ No newline at end of file"


@dataclass(frozen=True)
class Hunk:
    """Lines as (tag, content) with tag b' ', b'-' or b'+'; positions count from zero."""

    old_at: int
    new_at: int
    lines: tuple[tuple[bytes, bytes], ...]

    @property
    def old(self) -> list[bytes]:
        return [content for tag, content in self.lines if tag != b"+"]

    @property
    def new(self) -> list[bytes]:
        return [content for tag, content in self.lines if tag != b"-"]

    @property
    def added(self) -> int:
        return sum(tag == b"+" for tag, _ in self.lines)

    @property
    def removed(self) -> int:
        return sum(tag == b"-" for tag, _ in self.lines)

    def reversed(self) -> Hunk:
        swap = {b"+": b"-", b"-": b"+", b" ": b" "}
        return Hunk(self.new_at, self.old_at, tuple((swap[tag], content) for tag, content in self.lines))


@dataclass(frozen=True)
class FileDiff:
    """The change of one file. A path of None means that the file does not exist on that side."""

    old_path: str | None
    new_path: str | None
    old_mode: str | None = None
    new_mode: str | None = None
    old_id: str | None = None
    new_id: str | None = None
    hunks: tuple[Hunk, ...] = ()

    @property
    def paths(self) -> set[str]:
        return {path for path in (self.old_path, self.new_path) if path}

    @property
    def label(self) -> str:
        return self.new_path or self.old_path or ""

    def reversed(self) -> FileDiff:
        return FileDiff(
            self.new_path, self.old_path, self.new_mode, self.old_mode, self.new_id, self.old_id,
            tuple(hunk.reversed() for hunk in self.hunks),
        )


class DiffReader:
    """Walks the lines of one patch file; `name` is for messages."""

    def __init__(self, name: str, data: bytes):
        self.name = name
        self.lines = data.split(b"\n")
        self.at = 0

    def fail(self, what: str) -> OverlayError:
        return OverlayError(f"{self.name}, line {self.at + 1}: {what}", "export the patch again with refresh")

    def files(self) -> list[FileDiff]:
        """Every file diff from the current line on."""
        found = []
        while self.at < len(self.lines):
            if self.lines[self.at].startswith(b"diff --git "):
                found.append(self._file())
            elif self.lines[self.at]:
                raise self.fail("not part of a diff")
            else:
                self.at += 1
        return found

    def _file(self) -> FileDiff:
        diff = self._names(self.lines[self.at][len(b"diff --git ") :])
        self.at += 1
        while self.at < len(self.lines) and not self.lines[self.at].startswith((b"diff --git ", b"@@ ")):
            if not self.lines[self.at]:
                break
            diff = self._extended(diff, self.lines[self.at])
            self.at += 1
        hunks = []
        while self.at < len(self.lines) and self.lines[self.at].startswith(b"@@ "):
            hunks.append(self._hunk())
        return replace(diff, hunks=tuple(hunks))

    def _names(self, text: bytes) -> FileDiff:
        """The names on the `diff --git` line; a rename's own lines correct them later."""
        if text.startswith(b'"'):
            raise self.fail("quoted file names are not supported")
        half = len(text) // 2
        old, new = text[:half], text[half + 1 :]
        if not (old.startswith(b"a/") and new.startswith(b"b/")):
            old, _, new = text.partition(b" b/")
            new = b"b/" + new
        return FileDiff(old[2:].decode(), new[2:].decode())

    def _extended(self, diff: FileDiff, line: bytes) -> FileDiff:
        for prefix, change in _EXTENDED.items():
            if line.startswith(prefix):
                return replace(diff, **change(line[len(prefix) :].decode()))
        index = _INDEX.match(line)
        if index:
            old, new, mode = (group.decode() if group else None for group in index.groups())
            modes = {"old_mode": mode, "new_mode": mode} if mode else {}
            return replace(diff, old_id=old, new_id=new, **modes)
        if line.startswith(b"index "):
            raise self.fail("blob ids are abbreviated")
        if line.startswith((b"GIT binary patch", b"Binary files")):
            raise self.fail("binary changes are not supported; put the file into overlay/")
        if line.startswith((b"--- ", b"+++ ", b"similarity index ", b"dissimilarity index ")):
            return diff
        raise self.fail("unknown line in a diff header")

    def _hunk(self) -> Hunk:
        header = _HUNK.match(self.lines[self.at])
        if not header:
            raise self.fail("malformed hunk header")
        old_start, old_left, new_start, new_left = (1 if n is None else int(n) for n in header.groups())
        # An empty side names the line before it, a non-empty side its first line.
        old_at = old_start - 1 if old_left else old_start
        new_at = new_start - 1 if new_left else new_start
        self.at += 1
        lines: list[tuple[bytes, bytes]] = []
        while old_left > 0 or new_left > 0:
            if self.at >= len(self.lines):
                raise self.fail("the hunk ends too early")
            line = self.lines[self.at]
            tag = line[:1]
            if tag not in (b" ", b"-", b"+"):
                raise self.fail("the hunk is shorter than its header says")
            old_left -= tag != b"+"
            new_left -= tag != b"-"
            self.at += 1
            lines.append((tag, line[1:] + self._ending()))
        if old_left or new_left:
            raise self.fail("the hunk is longer than its header says")
        return Hunk(old_at, new_at, tuple(lines))

    def _ending(self) -> bytes:
        if self.at < len(self.lines) and self.lines[self.at] == _NO_NEWLINE:
            self.at += 1
            return b""
        return b"\n"


_EXTENDED = {
    b"old mode ": lambda mode: {"old_mode": mode},
    b"new mode ": lambda mode: {"new_mode": mode},
    b"new file mode ": lambda mode: {"old_path": None, "new_mode": mode},
    b"deleted file mode ": lambda mode: {"new_path": None, "old_mode": mode},
    b"rename from ": lambda path: {"old_path": path},
    b"rename to ": lambda path: {"new_path": path},
}


def split_lines(data: bytes) -> list[bytes]:
    """Lines with their endings; only LF ends a line, as in git."""
    lines = data.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])

