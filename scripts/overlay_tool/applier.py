# SPDX-License-Identifier: Apache-2.0
"""Applies file diffs to a snapshot: exactly, or looking for where a hunk has moved to.

Exact means fuzz 0 and offset 0: every line of the old side stands at the line that the hunk names, and the blob ids before
and after are those of the patch. It needs no git, so it cannot skip paths that git would.
"""

from __future__ import annotations

from dataclasses import dataclass

from .console import OverlayError
from .diff import FileDiff, Hunk, split_lines
from .series import Patch
from .tree import NULL_ID, REGULAR, Entry, Snapshot

EXACT, OFFSET, CONFLICT, ALREADY = "exact", "offset", "conflict", "already upstream"


class Mismatch(Exception):
    """A diff does not fit; the text says where."""


@dataclass(frozen=True)
class Placement:
    """Where one hunk stands in a tree. `at` is the index of its first line there."""

    path: str
    hunk: Hunk | None
    verdict: str
    at: int = 0
    detail: str = ""

    @property
    def offset(self) -> int:
        return self.at - self.hunk.old_at if self.hunk else 0

    def __str__(self) -> str:
        line = f":{self.hunk.old_at + 1}" if self.hunk else ""
        tail = f" by {self.offset:+d} lines" if self.verdict == OFFSET else ""
        return f"{self.path}{line} {self.verdict}{tail}" + (f" ({self.detail})" if self.detail else "")


def apply_exact(patch: Patch, files: Snapshot) -> None:
    """Applies a whole patch to the snapshot, or raises OverlayError and leaves it as it was."""
    changed = dict(files)
    try:
        for diff in patch.files:
            _apply_file(diff, changed)
    except Mismatch as mismatch:
        raise OverlayError(
            f"{patch.name} does not apply exactly: {mismatch}",
            "nothing was changed; restore the patch, or write it anew with refresh",
        ) from None
    files.clear()
    files.update(changed)


def reverses(patch: Patch, files: Snapshot) -> bool:
    """Takes the patch out of the snapshot if it is in it exactly."""
    return _fits([diff.reversed() for diff in reversed(patch.files)], files)


def applies(patch: Patch, files: Snapshot) -> bool:
    """Puts the patch into the snapshot if it fits at its lines; other lines of the file may differ."""
    return _fits(list(patch.files), files)


def _fits(diffs: list[FileDiff], files: Snapshot) -> bool:
    changed = dict(files)
    try:
        for diff in diffs:
            _apply_file(diff, changed, check_ids=False)
    except Mismatch:
        return False
    files.clear()
    files.update(changed)
    return True


def _apply_file(diff: FileDiff, files: Snapshot, check_ids: bool = True) -> None:
    old = _old_entry(diff, files)
    if check_ids and diff.old_id and _id(old) != diff.old_id:
        raise Mismatch(f"{diff.label} is not the file that the patch was made for")
    if old is not None and diff.old_mode and old.mode != diff.old_mode:
        raise Mismatch(f"{diff.old_path} has mode {old.mode}, the patch expects {diff.old_mode}")
    if diff.new_path != diff.old_path and diff.new_path in files:
        raise Mismatch(f"{diff.new_path} exists already")
    data = _splice(diff.label, old.data if old else b"", diff.hunks)
    if diff.old_path:
        del files[diff.old_path]
    if diff.new_path is None:
        if data:
            raise Mismatch(f"{diff.old_path} keeps content after its deletion")
    else:
        files[diff.new_path] = Entry(data, diff.new_mode or (old.mode if old else REGULAR))
        if check_ids and diff.new_id and files[diff.new_path].blob != diff.new_id:
            raise Mismatch(f"{diff.new_path} came out different from what the patch promises")


def _old_entry(diff: FileDiff, files: Snapshot) -> Entry | None:
    if diff.old_path is None:
        return None
    if diff.old_path not in files:
        raise Mismatch(f"{diff.old_path} does not exist")
    return files[diff.old_path]


def _id(entry: Entry | None) -> str:
    return entry.blob if entry else NULL_ID


def _splice(label: str, data: bytes, hunks: tuple[Hunk, ...]) -> bytes:
    lines = split_lines(data)
    out: list[bytes] = []
    cursor = 0
    for hunk in hunks:
        if hunk.old_at < cursor or lines[hunk.old_at : hunk.old_at + len(hunk.old)] != hunk.old:
            raise Mismatch(f"{label}: the hunk for line {hunk.old_at + 1} does not match")
        out += lines[cursor : hunk.old_at]
        if len(out) != hunk.new_at:
            raise Mismatch(f"{label}: the hunk for line {hunk.old_at + 1} has a wrong target line")
        out += hunk.new
        cursor = hunk.old_at + len(hunk.old)
    return b"".join(out + lines[cursor:])


def locate(patch: Patch, files: Snapshot) -> list[Placement]:
    """How every hunk of a patch stands in a tree. Where all fit, the snapshot receives the patch."""
    placed: list[Placement] = []
    changed = dict(files)
    for diff in patch.files:
        placed += _locate_file(diff, changed)
    if not {place.verdict for place in placed} & {CONFLICT, ALREADY}:
        files.clear()
        files.update(changed)
    return placed


def verdict(placed: list[Placement]) -> str:
    """One word for a patch: the worst of its hunks, where a half taken patch is a conflict."""
    kinds = {place.verdict for place in placed}
    if kinds == {ALREADY}:
        return ALREADY
    if kinds & {CONFLICT, ALREADY}:
        return CONFLICT
    return OFFSET if OFFSET in kinds else EXACT


def _locate_file(diff: FileDiff, files: Snapshot) -> list[Placement]:
    whole = _locate_whole(diff, files)
    if whole:
        return [whole]
    entry = files[diff.old_path] if diff.old_path else Entry(b"")
    lines = split_lines(entry.data)
    placed = _place_hunks(diff, lines)
    if {place.verdict for place in placed} <= {EXACT, OFFSET}:
        _write_placed(diff, files, entry, lines, placed)
    return placed or [Placement(diff.label, None, EXACT)]


def _locate_whole(diff: FileDiff, files: Snapshot) -> Placement | None:
    """The cases that concern a file's existence rather than its lines."""
    if diff.old_path is None and diff.new_path in files:
        same = files[diff.new_path].blob == diff.new_id
        return Placement(diff.label, None, ALREADY if same else CONFLICT, detail="" if same else "the file exists")
    if diff.old_path is not None and diff.old_path not in files:
        if diff.new_path is None:
            return Placement(diff.label, None, ALREADY, detail="the file is gone")
        if diff.new_path in files and files[diff.new_path].blob == diff.new_id:
            return Placement(diff.label, None, ALREADY)
        return Placement(diff.label, None, CONFLICT, detail=f"{diff.old_path} is gone{_moved(diff.old_path, files)}")
    if diff.new_path != diff.old_path and diff.new_path in files:
        return Placement(diff.label, None, CONFLICT, detail="the new name is taken")
    return None


def _moved(path: str, files: Snapshot) -> str:
    base = path.rsplit("/", 1)[-1]
    places = [other for other in files if other.rsplit("/", 1)[-1] == base]
    return f", perhaps moved to {places[0]}" if len(places) == 1 else ""


def _place_hunks(diff: FileDiff, lines: list[bytes]) -> list[Placement]:
    placed: list[Placement] = []
    cursor = shift = 0
    for hunk in diff.hunks:
        place = _place_hunk(diff.label, hunk, lines, cursor, shift)
        if place.verdict in (EXACT, OFFSET):
            cursor, shift = place.at + len(hunk.old), place.offset
        placed.append(place)
    return placed


def _place_hunk(label: str, hunk: Hunk, lines: list[bytes], cursor: int, shift: int) -> Placement:
    if hunk.old_at >= cursor and lines[hunk.old_at : hunk.old_at + len(hunk.old)] == hunk.old:
        return Placement(label, hunk, EXACT, hunk.old_at)
    # Before an offset: a hunk that upstream has taken can still look insertable a second time.
    if _nearest(lines, hunk.new, hunk.new_at, 0) is not None:
        return Placement(label, hunk, ALREADY)
    at = _nearest(lines, hunk.old, hunk.old_at + shift, cursor)
    if at is None:
        return Placement(label, hunk, CONFLICT, detail="its lines are not there")
    return Placement(label, hunk, OFFSET, at)


def _nearest(lines: list[bytes], block: list[bytes], expected: int, start: int) -> int | None:
    """Index of the occurrence of block that is nearest to the expected line; None without one."""
    if not block:
        return None
    last = len(lines) - len(block)
    found = [at for at in range(start, last + 1) if lines[at] == block[0] and lines[at : at + len(block)] == block]
    return min(found, key=lambda at: abs(at - expected), default=None)


def occurrences(lines: list[bytes], block: list[bytes]) -> int:
    return sum(lines[at : at + len(block)] == block for at in range(len(lines) - len(block) + 1))


def _write_placed(diff: FileDiff, files: Snapshot, entry: Entry, lines: list[bytes], placed: list[Placement]) -> None:
    out: list[bytes] = []
    cursor = 0
    for place in placed:
        out += lines[cursor : place.at] + place.hunk.new
        cursor = place.at + len(place.hunk.old)
    if diff.old_path:
        del files[diff.old_path]
    if diff.new_path:
        files[diff.new_path] = Entry(b"".join(out + lines[cursor:]), diff.new_mode or entry.mode)
