# SPDX-License-Identifier: Apache-2.0
"""Where the lines around a patch's hunks stand in another release, and which of its added lines stand there already."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import gitio
from .applier import apply_exact
from .diff import FileDiff, Hunk, split_lines
from .series import Patch
from .tree import Snapshot

NEAR = 40  # lines around a hunk's place that are searched for what it adds
_AROUND = 12  # lines on both sides of a hunk that tell which file it has moved to
_CHANGE = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", re.MULTILINE)
_TRIVIAL = re.compile(rb"(?:#|//|/\*|import |from \S+ import|using namespace|@)|(?:return|raise|else|try|pass|break)\b[\s\w.()]*:?$")
_COMMON = re.compile(rb"(?:if|elif|else|for|while|with|and|not|None|True|False|assert|return|const|int|bool|str|Optional)")
_DEFINITION = re.compile(rb"(?:async )?(?:def|class|struct|enum class) +(?!__)\w{5,}")


def bare(line: bytes) -> bytes:
    """A line without its indentation, and without `self.`, which comes and goes when code moves into a function."""
    return line.strip().replace(b"self.", b"")


def telling(line: bytes) -> bytes:
    """The bare line if it says something of its own, else nothing."""
    text = bare(line)
    words = {word for word in re.findall(rb"[A-Za-z_]{3,}", text) if not _COMMON.fullmatch(word)}
    return text if len(text) >= 16 and len(words) >= 2 and not _TRIVIAL.match(text) else b""


def definition(line: bytes) -> bytes:
    """The name that a line defines, with its keyword; two authors write the rest of such a line differently."""
    found = _DEFINITION.match(bare(line))
    return found.group() if found else b""


@dataclass(frozen=True)
class Place:
    """Where one hunk belongs in another tree. `new_path` is None where no file there has its surroundings."""

    path: str
    hunk: Hunk
    new_path: str | None
    at: int = 0
    changed: bool = False  # whether lines that the hunk names were changed there
    taken: tuple[str, ...] = ()  # added lines and definitions that upstream has by now, as `path:line "text"`
    telling: int = 0  # added lines and definitions that could be found so
    defined: bool = False  # whether a definition is among them

    @property
    def mostly_taken(self) -> bool:
        return self.defined or bool(self.taken) and 2 * len(self.taken) >= self.telling

    @property
    def stands(self) -> bool:
        return (self.new_path, self.at) == (self.path, self.hunk.old_at)

    def __str__(self) -> str:
        where = f"{self.path}:{self.hunk.old_at + 1}"
        return where if self.stands else f"{where} is {self.new_path}:{self.at + 1}"


class Successors:
    """Finds the file of a new tree that has the surroundings of a hunk, though neither name nor similarity tells."""

    def __init__(self, patches: list[Patch], old: Snapshot, new: Snapshot):
        files = dict(old)
        self._around: dict[tuple[str, str, int], set[bytes]] = {}
        for patch in patches:
            for diff in patch.files:
                lines = split_lines(files[diff.old_path].data) if diff.old_path else []
                for hunk in diff.hunks if diff.old_path else ():
                    near = lines[max(0, hunk.old_at - _AROUND) : hunk.old_at + len(hunk.old) + _AROUND]
                    self._around[patch.name, diff.old_path, hunk.old_at] = set(filter(None, map(telling, near)))
            apply_exact(patch, files)
        wanted = set().union(*self._around.values())
        self._paths: dict[bytes, set[str]] = {line: set() for line in wanted}
        for path, entry in new.items():
            for line in wanted.intersection(map(bare, entry.data.split(b"\n"))):
                self._paths[line].add(path)

    def find(self, patch: Patch, path: str, hunks: Iterable[Hunk]) -> str | None:
        """The file with the most of those lines, if it has half of them."""
        lines = set().union(*(self._around.get((patch.name, path, hunk.old_at), set()) for hunk in hunks))
        score = Counter(found for line in lines for found in self._paths[line])
        best, number = min(score.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
        return best if number * 2 >= len(lines) and number >= 3 else None


class Compared:
    """Two versions of a file in one repository: maps lines of the old one to the new one."""

    def __init__(self, repository: Path, old: str, new: str):
        self.old = split_lines(gitio.git("cat-file", "blob", old, cwd=repository, own=True))
        self.new = split_lines(gitio.git("cat-file", "blob", new, cwd=repository, own=True))
        diff = gitio.git("diff", "--no-color", "--no-ext-diff", "--histogram", "--unified=0", old, new, cwd=repository, own=True)
        self._changes = [self._range(found) for found in _CHANGE.finditer(diff)]
        names = {definition(line) for line in self.old} | {b""}
        numbered = ((definition(line), number) for number, line in enumerate(self.new))
        self._gained_names = {name: number for name, number in numbered if name not in names}
        self._gained = Counter(map(bare, self.new)) - Counter(map(bare, self.old))

    @staticmethod
    def _range(found: re.Match) -> tuple[int, int, int, int]:
        at, size, new_at, new_size = (1 if number is None else int(number) for number in found.groups())
        return (at - 1 if size else at), size, (new_at - 1 if new_size else new_at), new_size

    def line(self, at: int) -> int:
        """Where line `at` of the old file stands in the new one, or would stand."""
        shift = 0
        for start, size, _, new_size in self._changes:
            if at < start + size:
                return at + shift if at < start else min(start + shift, len(self.new))
            shift += new_size - size
        return at + shift

    def is_changed(self, hunk: Hunk) -> bool:
        """Whether the new file changes lines that the hunk changes, or lines right beside them."""
        first = next((at for at, (tag, _) in enumerate(hunk.lines) if tag != b" "), 0) + hunk.old_at
        end = first + hunk.removed
        inner = sum(tag == b" " for tag, _ in hunk.lines) - _outer(hunk)
        return any(start <= end + inner and start + size >= first for start, size, _, _ in self._changes)

    def place(self, path: str, hunk: Hunk, new_path: str) -> Place:
        """Where a hunk belongs in the new file, and what of it stands there already.

        What counts has come since the old file: a line near the place, a definition anywhere.
        """
        at = self.line(hunk.old_at)
        start = max(0, at - NEAR)
        near = {bare(line): number for number, line in enumerate(self.new[start : at + len(hunk.old) + NEAR], start)}
        removed = {key for tag, content in hunk.lines if tag == b"-" for key in (bare(content), definition(content)) if key}
        found: list[tuple[int, bytes]] = []
        telling_lines, defined = 0, False
        for tag, content in hunk.lines:
            name, line = definition(content), telling(content)
            if tag != b"+" or not (name or line) or {name, line} & removed:
                continue
            telling_lines += 1
            if name and name in self._gained_names:
                found.append((self._gained_names[name], content))
                defined = True
            elif not name and line in near and self._gained[line] > 0:
                found.append((near[line], content))
        taken = tuple(f'{new_path}:{number + 1} "{content.decode(errors="replace").strip()}"' for number, content in found)
        return Place(path, hunk, new_path, at, self.is_changed(hunk), taken, telling_lines, defined)


def _outer(hunk: Hunk) -> int:
    """Context lines before the first and after the last change of a hunk."""
    tags = [tag for tag, _ in hunk.lines]
    changes = [at for at, tag in enumerate(tags) if tag != b" "]
    return len(tags) - (changes[-1] - changes[0] + 1) if changes else len(tags)


def places(repository: Path, diff: FileDiff, parent: str, head: str, new_path: str | None) -> list[Place]:
    """Where each hunk of a file belongs. `parent` and `head` are the commits that the hunk was made on and meets."""
    if diff.old_path is None or new_path is None:
        return [Place(diff.label, hunk, None) for hunk in diff.hunks]
    compared = Compared(repository, f"{parent}:{diff.old_path}", f"{head}:{new_path}")
    return [compared.place(diff.old_path, hunk, new_path) for hunk in diff.hunks]
