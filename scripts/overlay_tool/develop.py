# SPDX-License-Identifier: Apache-2.0
"""checkout and refresh: the series as a git branch, and the branch as a series again."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from . import gitio, lock, series
from .applier import EXACT, OFFSET, Placement, apply_exact, locate, occurrences, verdict
from .console import OverlayError, count, note, result, some, step
from .diff import split_lines
from .lock import Lock, Release
from .series import Patch, parse_patch
from .sources import Upstream, is_wheel, sources_digest
from .transaction import remove, swap
from .tree import NULL_ID, Entry, Snapshot

# The user's configuration is shut out where this runs; what remains is pinned here, so that every export is the same bytes.
_FORMAT_PATCH = (
    "format-patch", "--stdout", "--zero-commit", "--full-index", "--no-signature", "--no-stat", "--no-numbered",
    "--find-renames=50%", "--diff-algorithm=histogram", "--indent-heuristic", "--encode-email-headers",
)
_CONTEXTS = (1, 2, 3)


def checkout(root: Path, release: Release, folder: Path, upstream: Upstream, with_patches: bool) -> None:
    """Makes a git repository of the pristine release, tagged `pin`, and one commit per patch."""
    if folder.exists() and any(folder.iterdir()):
        raise OverlayError(f"{folder} exists and is not empty", "give a new folder")
    patches = series.load(root, release.name) if with_patches else []
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        step("importing the pristine release")
        _base_repository(staged, upstream, release)
        for patch in patches:
            step(f"applying {patch.name}")
            gitio.am(staged, patch.name, patch.data)
        os.chmod(staged, 0o755)
        staged.rename(folder)
    except BaseException:
        remove(staged)
        raise
    result(f"{folder} holds {release.name} as tag {gitio.BASE_TAG} and {count(len(patches), 'patch')} as commits")
    result(f"next: edit and commit there, then scripts/overlay.py refresh {folder}")


def _base_repository(folder: Path, upstream: Upstream, release: Release) -> None:
    gitio.init(folder)
    importer = gitio.Importer(folder)
    importer.commit(upstream.files, f"SGLang {release.name}\n".encode())
    importer.finish()
    gitio.git("tag", gitio.BASE_TAG, gitio.BRANCH, cwd=folder, own=True)
    gitio.git("reset", "--quiet", "--hard", cwd=folder, own=True)


def refresh(
    root: Path, pins: Lock, release: Release, folder: Path, upstream: Upstream, base: str | None, force: bool
) -> None:
    """Writes the series, the patches and the lock from a branch with one commit per patch."""
    if not gitio.is_checkout(folder):
        raise OverlayError(f"{folder} is not a git repository", "make one with the checkout command")
    gitio.require_clean(folder)
    with tempfile.TemporaryDirectory(prefix="sglang-hsa-") as scratch:
        export = Export(Path(scratch), upstream, release)
        step(f"reading the commits of {folder}")
        patches = export.patches(folder, base, force)
        step("checking the series with git am")
        export.check_with_git(patches)
    final = dict(upstream.files)
    for patch in patches:
        apply_exact(patch, final)
    updated = replace(
        release,
        sources=sources_digest(upstream.files) if is_wheel(upstream.files) else release.sources,
        identity=_identity(release, upstream.files),
        files=_touched(patches, upstream.files, final),
    )
    changed = _write(root, pins.with_release(updated), updated, patches)
    lines = sum(patch.added + patch.removed for patch in patches)
    state = "updated" if changed else "unchanged"
    size = f"{count(len(patches), 'patch')}, {count(lines, 'patched upstream line')}"
    result(f"{state}: {size} in {count(len(updated.files), 'file')}")


@dataclass(frozen=True)
class Export:
    """Turns commits into patches that apply exactly to the pinned release."""

    scratch: Path
    upstream: Upstream
    release: Release

    def patches(self, folder: Path, base: str | None, force: bool) -> list[Patch]:
        start = _find_base(folder, [base] if base else [gitio.BASE_TAG, self.release.tag])
        copy = self.scratch / "copy"
        gitio.git("clone", "--quiet", "--no-checkout", str(folder), str(copy), cwd=self.scratch)
        patches = self._export(copy, start)
        self._check_headers(patches)
        inexact = self._inexact(patches)
        if not inexact:
            return patches
        for name, place in inexact:
            note(f"{name}: {place}")
        if not force:
            raise OverlayError(
                f"{count(len(inexact), 'change')} not made for {self.release.name} as it is",
                "rebase onto it, or let --force move them",
            )
        return self._moved(copy, start, patches)

    def _export(self, copy: Path, start: str) -> list[Patch]:
        rows = gitio.git("log", "--reverse", "--format=%H %P%x00%s", f"{start}..HEAD", cwd=copy, own=True)
        patches: list[Patch] = []
        for row in rows.decode().splitlines():
            hashes, subject = row.split("\0")
            commit, *parents = hashes.split()
            if len(parents) != 1:
                raise OverlayError(f"commit {commit[:12]} is a merge", "rebase to a straight line of commits")
            if re.match(r"(fixup|squash|amend)! ", subject):
                raise OverlayError(f"{subject!r} is not folded in", "run git rebase --interactive --autosquash")
            name = series.file_name(subject)
            if any(patch.name == name for patch in patches):
                raise OverlayError(f"two commits would both be {name}", "give each a subject of its own")
            patches.append(self._export_commit(copy, commit, name))
        return patches

    def _export_commit(self, copy: Path, commit: str, name: str) -> Patch:
        """The patch with the least context that still names each place once."""
        parent: Snapshot = {}
        for context in _CONTEXTS:
            data = gitio.git(*_FORMAT_PATCH, f"--unified={context}", "-1", commit, cwd=copy, own=True)
            if not data:
                raise OverlayError(f"commit {commit[:12]} changes nothing", "drop it with git rebase")
            patch = parse_patch(name, data)
            parent = parent or _read_parent(copy, commit, patch)
            if _is_unique(patch, parent):
                break
        return patch

    def _check_headers(self, patches: list[Patch]) -> None:
        for patch in patches:
            missing = series.header_problems(patch.message)
            if missing:
                raise OverlayError(f"{patch.name} lacks {', '.join(missing)}", "complete the commit's message")

    def _inexact(self, patches: list[Patch]) -> list[tuple[str, Placement]]:
        """Hunks that do not stand where they should in the pinned release."""
        files = dict(self.upstream.files)
        inexact = []
        for patch in patches:
            other = [diff for diff in patch.files if diff.old_id and _blob(files, diff.old_path) != diff.old_id]
            found = [place for place in locate(patch, files) if place.verdict != EXACT]
            found = found or [Placement(diff.label, None, "differs from the pin beside the hunks") for diff in other]
            inexact += [(patch.name, place) for place in found]
        return inexact

    def _moved(self, copy: Path, start: str, patches: list[Patch]) -> list[Patch]:
        """Replays the commits on the pinned release with their hunks where they fit there."""
        authors = gitio.git("log", "--reverse", "--date=raw", "--format=%an <%ae> %ad", f"{start}..HEAD", cwd=copy, own=True)
        bodies = gitio.git("log", "--reverse", "-z", "--format=%B", f"{start}..HEAD", cwd=copy, own=True)
        replay = self.scratch / "replay"
        gitio.init(replay)
        files = dict(self.upstream.files)
        importer = gitio.Importer(replay)
        importer.commit(files, b"base\n")
        for patch, author, body in zip(patches, authors.decode().splitlines(), bodies.split(b"\0")):
            placed = locate(patch, files)
            if verdict(placed) not in (EXACT, OFFSET):
                raise OverlayError(f"{patch.name} conflicts with {self.release.name}", "rebase it onto that release")
            importer.commit(files, body, author)
        importer.finish()
        base = gitio.git("rev-list", "--max-parents=0", gitio.BRANCH, cwd=replay, own=True).decode().strip()
        return self._export(replay, base)

    def check_with_git(self, patches: list[Patch]) -> None:
        """git am must accept every patch and arrive at the files that this tool computes."""
        repository = self.scratch / "am"
        touched = set().union(*(patch.paths for patch in patches))
        base = {path: entry for path, entry in self.upstream.files.items() if path in touched}
        _base_repository(repository, Upstream(base, ""), self.release)
        expected = dict(base)
        for patch in patches:
            gitio.am(repository, patch.name, patch.data)
            apply_exact(patch, expected)
        if gitio.read_commit(repository, gitio.BRANCH) != expected:
            raise OverlayError("git am arrives at other files than this tool", "report this with the series")


def _find_base(folder: Path, names: list[str]) -> str:
    for name in names:
        found = gitio.resolve(folder, name)
        if found:
            return found
    raise OverlayError(f"{folder} has no base commit named {' or '.join(names)}", "name one with --base")


def _read_parent(copy: Path, commit: str, patch: Patch) -> Snapshot:
    paths = sorted(diff.old_path for diff in patch.files if diff.old_path)
    files: Snapshot = {}
    for path in paths:
        files[path] = Entry(gitio.git("cat-file", "blob", f"{commit}^:{path}", cwd=copy, own=True))
    return files


def _is_unique(patch: Patch, parent: Snapshot) -> bool:
    for diff in patch.files:
        lines = split_lines(parent[diff.old_path].data) if diff.old_path else []
        if any(occurrences(lines, hunk.old) > 1 for hunk in diff.hunks if hunk.old):
            return False
    return True


def _identity(release: Release, files: Snapshot) -> dict[str, str]:
    absent = [path for path in release.identity if path not in files]
    if absent:
        raise OverlayError(f"upstream.lock names identity files that are not upstream: {some(absent)}", "correct it")
    return {path: files[path].blob for path in release.identity}


def _touched(patches: list[Patch], before: Snapshot, after: Snapshot) -> dict[str, tuple[str, str]]:
    paths = sorted(set().union(*(patch.paths for patch in patches)))
    ids = {path: (_blob(before, path), _blob(after, path)) for path in paths}
    unchanged = [path for path in paths if before.get(path) == after.get(path)]
    if unchanged:
        raise OverlayError(f"the series changes and restores {some(unchanged)}", "fold those commits together")
    return ids


def _blob(files: Snapshot, path: str | None) -> str:
    return files[path].blob if path in files else NULL_ID


def _write(root: Path, pins: Lock, release: Release, patches: list[Patch]) -> bool:
    """Replaces the series folder as a whole, then the lock; False if both were so already."""
    where = series.folder(root, release.name)
    present = {path.relative_to(where).as_posix(): path.read_bytes() for path in where.rglob("*") if path.is_file()}
    wanted = {name: data for name, data in present.items() if name != "series" and not name.endswith(".patch")}
    wanted |= {patch.name: patch.data for patch in patches} | {"series": series.series_text(patches).encode()}
    text = lock.dump(pins)
    lock_file = root / lock.FILE_NAME
    if present == wanted and lock_file.read_text(encoding="utf-8") == text:
        return False
    staged, staged_lock = where.with_name(f".{where.name}.new"), lock_file.with_name(f".{lock.FILE_NAME}.new")
    remove(staged)
    for name, data in wanted.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_bytes(data)
    staged_lock.write_text(text, encoding="utf-8")
    swap(staged, where)
    os.replace(staged_lock, lock_file)
    remove(staged)
    return True
