# SPDX-License-Identifier: Apache-2.0
"""rebase: the series of one release on another, as far as it goes by itself, in a git repository to finish by hand."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections import Counter
from pathlib import Path

from . import gitio, replay, series
from .console import OverlayError, count, note, result
from .lock import Lock, Release
from .replay import ALREADY, CONFLICT, NOT_NEEDED, OLD, VERDICTS, Outcome
from .sources import Upstream, pinned
from .transaction import remove

_ASIDE = (  # what to do with the patches that are left out, in the order in which they are listed
    (CONFLICT, "what is left, in this order; resolve, git add, git cherry-pick --continue"),
    (ALREADY, "upstream seems to do these: read them, and take what it does not do"),
    (NOT_NEEDED, "upstream no longer has their files: find what does their work now, or drop them"),
)


def rebase(root: Path, pins: Lock, new: Release, old_name: str | None, folder: Path, upstream: Upstream, as_json: bool) -> None:
    """Makes the repository with what merges, and prints a line per patch, the counts and the commands for the rest."""
    old = _old_release(pins, new, old_name)
    if folder.exists() and any(folder.iterdir()):
        raise OverlayError(f"{folder} exists and is not empty", "give a new folder")
    patches = series.load(root, old.name)
    if not patches:
        raise OverlayError(f"the series of {old.name} has no patches", "name another release with --from")
    present = series.names(root, new.name)
    if present:
        note(f"{new.name} has a series of {count(len(present), 'patch')}, which refresh would replace")
    if old_name is None:
        note(f"the series is that of {old.name}; --from names another release")
    outcomes = _make(folder, patches, pinned(old), upstream, old, new)
    if as_json:
        rows = [outcome.as_dict() for outcome in outcomes]
        counts = Counter(row["verdict"] for row in rows)
        result(json.dumps({"from": old.name, "to": new.name, "patches": rows, "counts": counts}, indent=2))
        return
    result(table(outcomes))
    result(f"{count(len(outcomes), 'patch')} of {old.name} on {new.name}: {counts_of(outcomes)}")
    result(_next_steps(outcomes, folder, new))


def _old_release(pins: Lock, new: Release, name: str | None) -> Release:
    old = pins.releases[pins.release(name).name] if name else pins.before(new.version)
    if old is None:
        raise OverlayError(f"upstream.lock has no release before {new.name}", "name one with --from")
    if old.name == new.name:
        raise OverlayError(f"{new.name} cannot be rebased onto itself", "name another release with --from")
    return old


def _make(folder: Path, patches: list, old_upstream: Upstream, upstream: Upstream, old: Release, new: Release) -> list[Outcome]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        outcomes = replay.run(staged, patches, old_upstream, upstream, old.name, new.name)
        os.chmod(staged, 0o755)
        staged.rename(folder)
    except BaseException:
        remove(staged)
        raise
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """One line per patch."""
    width = max(len(outcome.patch.name) for outcome in outcomes)
    lines = []
    for outcome in outcomes:
        builds_on = f"builds on {', '.join(outcome.builds_on)}" if outcome.builds_on else ""
        why = "; ".join(filter(None, [outcome.why, builds_on]))
        lines.append(f"{outcome.patch.name:{width}}  {outcome.verdict:<16}  {why}".rstrip())
    return "\n".join(lines)


def counts_of(outcomes: list[Outcome]) -> str:
    """`3 exact, 1 conflict`, in the order of the verdicts."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def _next_steps(outcomes: list[Outcome], folder: Path, new: Release) -> str:
    place = shlex.quote(str(folder))
    lines = [f"{folder}: tag {gitio.BASE_TAG} is the pristine {new.name}, branch {gitio.BRANCH} what merged, branch {OLD} the old series"]
    left = [outcome for outcome in outcomes if not outcome.kept]
    if left:
        lines.append(f"next: cd {place}")
    for verdict, text in _ASIDE:
        rows = [outcome for outcome in left if outcome.verdict == verdict]
        if rows:
            lines.append(f"{text}:")
            lines += [f"  git cherry-pick {outcome.commit}  # {outcome.patch.name}" for outcome in rows]
    lines.append(f"then: scripts/overlay.py refresh {place} --release {new.name}")
    return "\n".join(lines)
