# SPDX-License-Identifier: Apache-2.0
"""Replays a series on another release by three-way merges of whole trees, and says what became of each patch."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from . import gitio
from .applier import applies
from .console import count, some, step
from .moved import Place, Successors, places
from .series import Patch
from .sources import Upstream
from .tree import Entry, Snapshot

EXACT, MERGED, CONFLICT = "exact", "merged", "conflict"
ALREADY, NOT_NEEDED = "already upstream", "not needed"
VERDICTS = (EXACT, MERGED, CONFLICT, ALREADY, NOT_NEEDED)
OLD = "old"  # branch of the series as it stands on the old release
_SETTINGS = (
    ("merge.renameLimit", "999999"), ("diff.renameLimit", "999999"), ("merge.renames", "true"),
    ("merge.conflictStyle", "diff3"), ("advice.skippedCherryPicks", "false"), ("gc.auto", "0"),
)  # fmt: skip


@dataclass
class Outcome:
    """What became of one patch. `commit` is the one of the branch `old`; `files` are those that conflict."""

    patch: Patch
    commit: str
    verdict: str
    why: str = ""
    files: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    builds_on: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        return self.verdict in (EXACT, MERGED)

    def as_dict(self) -> dict:
        moved = [str(place) for place in self.places if place.new_path and not place.stands]
        return {
            "name": self.patch.name, "verdict": self.verdict, "commit": self.commit, "why": self.why,
            "files": self.files, "moved": moved, "builds_on": self.builds_on,
        }  # fmt: skip


def run(
    folder: Path, patches: list[Patch], old: Upstream, new: Upstream, old_name: str, new_name: str
) -> list[Outcome]:
    """Fills an empty folder with such a repository; returns what became of each patch, in the order of the series."""
    prepare(folder, patches, old, new, old_name, new_name)
    return Replay(folder, patches, old, new).run()


def prepare(folder: Path, patches: list[Patch], old: Upstream, new: Upstream, old_name: str, new_name: str) -> None:
    """Makes a repository with the old series as branch `old`, and the new release as tag `pin` and branch `overlay`."""
    gitio.init(folder)
    for key, value in _SETTINGS:
        gitio.git("config", key, value, cwd=folder, own=True)
    _import(folder, old.files, old_name)
    step(f"applying {count(len(patches), 'patch')} of {old_name}")
    for patch in patches:
        gitio.am(folder, patch.name, patch.data)
    gitio.git("branch", "--move", gitio.BRANCH, OLD, cwd=folder, own=True)
    _import(folder, new.files, new_name)
    gitio.git("tag", gitio.BASE_TAG, gitio.BRANCH, cwd=folder, own=True)


def _import(folder: Path, files: Snapshot, name: str) -> None:
    step(f"importing the pristine {name}")
    importer = gitio.Importer(folder)
    importer.commit(files, f"SGLang {name}\n".encode())
    importer.finish()
    gitio.git("symbolic-ref", "HEAD", f"refs/heads/{gitio.BRANCH}", cwd=folder, own=True)
    gitio.git("reset", "--quiet", "--hard", cwd=folder, own=True)


class Replay:
    """Takes the commits of branch `old` over to branch `overlay`, one after another."""

    def __init__(self, folder: Path, patches: list[Patch], old: Upstream, new: Upstream):
        self.folder = folder
        self.patches = patches
        self.files = dict(new.files)  # what branch `overlay` holds
        self.renames = _renames(folder)
        self.successors = Successors(patches, old.files, new.files)
        self.outcomes: list[Outcome] = []

    def run(self) -> list[Outcome]:
        first = self._git("rev-list", "--max-parents=0", OLD).strip()
        commits = self._git("rev-list", "--reverse", f"{first}..{OLD}").split()
        for patch, commit in zip(self.patches, commits, strict=True):
            step(f"merging {patch.name}")
            self.outcomes.append(self._take(patch, commit))
        return self.outcomes

    def _git(self, *args: str) -> str:
        return gitio.git(*args, cwd=self.folder, own=True).decode(errors="surrogateescape")

    def _take(self, patch: Patch, commit: str) -> Outcome:
        head = self._git("rev-parse", "HEAD").strip()
        found = [place for diff in patch.files for place in places(
            self.folder, diff, f"{commit}^", head, self._successor(patch, diff.old_path))]
        outcome = Outcome(patch, commit, CONFLICT, places=found)
        picked = gitio.attempt("cherry-pick", "--allow-empty", "--keep-redundant-commits", commit, cwd=self.folder)
        if picked:
            self._judge_merged(outcome, head)
        else:
            outcome.files = sorted(set(filter(None, self._git("diff", "--name-only", "--diff-filter=U", "-z").split("\0"))))
            self._judge_conflict(outcome)
        if not outcome.kept:
            gitio.git("reset", "--quiet", "--hard", head, cwd=self.folder, own=True)
            outcome.builds_on = self._left_out_below(outcome)
        return outcome

    def _successor(self, patch: Patch, path: str | None) -> str | None:
        """The file of the new release that a patched file is now: by name, by a rename, or by the lines around the hunks."""
        if path is None:
            return None
        followed = path if path in self.files else self.renames.get(path)
        if followed in self.files:
            return followed
        hunks = [hunk for diff in patch.files if diff.old_path == path for hunk in diff.hunks]
        return self.successors.find(patch, path, hunks)

    def _judge_merged(self, outcome: Outcome, head: str) -> None:
        rows = self._git("diff-tree", "-r", "-z", "--no-renames", "--no-commit-id", head, "HEAD").split("\0")
        changed = dict(zip(rows[1::2], rows[0::2]))
        if not changed:
            outcome.verdict, outcome.why = ALREADY, "the merge changes nothing"
            return
        lacking = _lacking(outcome.patch, self._git("diff-tree", "-p", "--unified=0", "--find-renames", head, "HEAD"))
        taken = _taken(outcome.places)
        if taken or lacking:
            outcome.verdict = ALREADY
            outcome.why = taken or f"upstream has {count(lacking, 'line')} of its change"
            return
        before = dict(self.files)
        for path, row in changed.items():
            self._update(path, row)
        exact = applies(outcome.patch, before) and all(before.get(path) == self.files.get(path) for path in changed)
        outcome.verdict = EXACT if exact else MERGED
        outcome.why = "" if exact else _moved(outcome.places)

    def _update(self, path: str, row: str) -> None:
        _, mode, _, blob, _ = row.split(" ")
        if set(blob) == {"0"}:
            del self.files[path]
        else:
            self.files[path] = Entry(gitio.git("cat-file", "blob", blob, cwd=self.folder, own=True), mode)

    def _judge_conflict(self, outcome: Outcome) -> None:
        old_paths = {diff.old_path for diff in outcome.patch.files if diff.old_path}
        gone = sorted(path for path in old_paths if not self._successor(outcome.patch, path))
        if old_paths and len(gone) == len(old_paths):
            outcome.verdict, outcome.why = NOT_NEEDED, f"upstream has no {some(gone, 3)} any more"
            return
        taken = _taken(outcome.places)
        if any(place.mostly_taken for place in outcome.places):
            outcome.verdict, outcome.why = ALREADY, taken
            return
        where = {f"{place.new_path}:{place.at + 1}" for place in outcome.places if place.changed}
        hints = _renamed(outcome.places) | {f"{path} is gone" for path in gone}
        outcome.why = "; ".join(filter(None, [some(where or outcome.files, 4), some(hints, 3), taken]))

    def _left_out_below(self, outcome: Outcome) -> list[str]:
        """Left out patches that wrote lines which hunks of this one name."""
        left = {other.commit: other.patch.name for other in self.outcomes if not other.kept}
        found = set()
        for place in outcome.places:
            if place.hunk.old and (place.changed or place.new_path != place.path):
                lines = f"{place.hunk.old_at + 1},+{len(place.hunk.old)}"
                rows = self._git("blame", "--porcelain", "-L", lines, f"{outcome.commit}^", "--", place.path)
                found |= {left[commit] for commit in re.findall(r"^([0-9a-f]{40}) ", rows, re.MULTILINE) if commit in left}
        return [name for name in left.values() if name in found]


def _renames(folder: Path) -> dict[str, str]:
    """Old to new path of every file that git recognises under another name in the new release."""
    old = gitio.git("rev-list", "--max-parents=0", OLD, cwd=folder, own=True).decode().strip()
    rows = gitio.git("diff-tree", "-r", "-z", "--find-renames", "--diff-filter=R", "--name-status", old, gitio.BASE_TAG, cwd=folder, own=True)
    fields = rows.decode(errors="surrogateescape").split("\0")
    return dict(zip(fields[1::3], fields[2::3]))


def _lacking(patch: Patch, diff: str) -> int:
    """Lines that the patch adds or removes and its merge does not, as upstream has done so."""
    merged = Counter(line for line in diff.split("\n") if re.match(r"[+-](?!\+\+ |-- )", line))
    wanted: Counter = Counter()
    for part in patch.files:
        for hunk in part.hunks:
            lines = [(tag + content).decode(errors="replace").rstrip("\n") for tag, content in hunk.lines if tag != b" "]
            wanted.update(lines)
    return sum((wanted - merged).values())


def _taken(found: list[Place]) -> str:
    taken = [line for place in found for line in place.taken]
    looked_for = sum(place.telling for place in found)
    return f"upstream has {len(taken)} of {count(looked_for, 'added line')}: {taken[0]}" if taken else ""


def _moved(found: list[Place]) -> str:
    shifted = sum(not place.stands and place.new_path == place.path for place in found)
    return "; ".join(filter(None, [some(_renamed(found), 3), f"{count(shifted, 'hunk')} at other lines" if shifted else ""]))


def _renamed(found: list[Place]) -> set[str]:
    return {f"{place.path} is {place.new_path}" for place in found if place.new_path not in (None, place.path)}
