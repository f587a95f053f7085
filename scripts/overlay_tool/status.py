# SPDX-License-Identifier: Apache-2.0
"""status and verify: what stands in a tree, without changing it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from . import manifest as manifests
from .applier import applies, reverses
from .build import Inputs, load_inputs
from .console import OverlayError, count, result, some
from .lock import Release
from .manifest import Edits
from .series import Patch
from .tree import NULL_ID, read_entry

APPLIED, NOT_APPLIED, DRIFTED = "applied", "not applied", "drifted"


def patch_states(patches: list[Patch], tree: Path) -> dict[str, str]:
    """The state of every patch by content alone, so that a tree without a manifest can be asked too."""
    if not tree.exists():
        return {patch.name: NOT_APPLIED for patch in patches}
    paths = sorted(set().union(*(patch.paths for patch in patches)))
    files = {path: read_entry(tree / path) for path in paths if os.path.lexists(tree / path)}
    taken_out = {patch.name for patch in reversed(patches) if reverses(patch, files)}
    states = {}
    for patch in patches:  # from the bottom again, so that each is tried on top of those before it
        fits = applies(patch, files)
        if patch.name in taken_out:
            states[patch.name] = APPLIED
        else:
            states[patch.name] = NOT_APPLIED if fits else DRIFTED
            if fits:
                reverses(patch, files)
    return states


def status(root: Path, tree: Path, release: Release, as_json: bool) -> None:
    """Prints the state and the size of every patch, and a user's edits."""
    inputs = load_inputs(root, release)
    report = _report(inputs, tree)
    result(json.dumps(report, indent=2) if as_json else _table(report))


def _report(inputs: Inputs, tree: Path) -> dict:
    states = patch_states(inputs.patches, tree)
    known = manifests.load(tree)
    edits = manifests.find_edits(tree, known.expected()) if known else Edits([], [], [])
    rows = [
        {"name": p.name, "state": states[p.name], "files": len(p.paths), "added": p.added, "removed": p.removed}
        for p in inputs.patches
    ]
    return {
        "release": inputs.release.name,
        "tree": str(tree),
        "built": bool(known),
        "current": bool(known and known.fingerprint == inputs.fingerprint),
        "patches": rows,
        "patched_files": len(inputs.release.files),
        "patched_lines": sum(row["added"] + row["removed"] for row in rows),
        "overlay_files": len(inputs.overlay),
        "edits": edits.labels(),
    }


def _table(report: dict) -> str:
    width = max((len(row["name"]) for row in report["patches"]), default=0)
    lines = [f"{report['tree']}: SGLang {report['release']}, {_tree_state(report)}"]
    for row in report["patches"]:
        lines.append(f"  {row['name']:{width}}  {row['state']:<11}  +{row['added']} -{row['removed']}")
    lines.append(
        f"patched upstream lines: {report['patched_lines']} in {count(report['patched_files'], 'file')},"
        f" {count(len(report['patches']), 'patch')}; overlay files: {report['overlay_files']}"
    )
    lines += [f"edited: {label}" for label in report["edits"]]
    return "\n".join(lines)


def _tree_state(report: dict) -> str:
    if not report["built"]:
        return "no patched tree built yet"
    return "up to date" if report["current"] else "built from an older series or overlay; run apply"


def verify(root: Path, tree: Path, release: Release) -> None:
    """Fails unless the tree is exactly the pin, the series and the overlay."""
    inputs = load_inputs(root, release)
    known = manifests.load(tree)
    if not known:
        wrong = "was not built by this tool" if tree.exists() else "does not exist"
        raise OverlayError(f"{tree} {wrong}", "run scripts/apply_overlay.sh")
    if known.release != release.name:
        raise OverlayError(f"{tree} is built from {known.release}, not {release.name}", "run apply")
    wrong = _wrong_files(inputs, tree)
    if wrong:
        raise OverlayError(f"{len(wrong)} files are not those of the lock and overlay/: {some(wrong)}", "run apply")
    edits = manifests.find_edits(tree, known.expected())
    if edits:
        raise OverlayError(f"{tree} has edits: {some(edits.labels())}", "keep them elsewhere, or run apply --force")
    if known.fingerprint != inputs.fingerprint:
        raise OverlayError(f"{tree} is built from an older series", "run apply")
    result(
        f"verified: {len(release.files)} patched files, {len(inputs.overlay)} overlay files"
        f" and {len(known.upstream)} upstream files of {release.name}"
    )


def _wrong_files(inputs: Inputs, tree: Path) -> list[str]:
    """Files of ours in the tree whose content is not the lock's or the overlay's."""
    wanted = {path: after for path, (_, after) in inputs.release.files.items()}
    wanted |= {path: entry.blob for path, entry in inputs.overlay.items()}
    return [path for path, blob in wanted.items() if _blob(tree / path) != blob]


def _blob(path: Path) -> str:
    return read_entry(path).blob if os.path.lexists(path) else NULL_ID
