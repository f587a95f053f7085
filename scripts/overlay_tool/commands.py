# SPDX-License-Identifier: Apache-2.0
"""apply and reverse: the two commands that replace the tree."""

from __future__ import annotations

import os
from pathlib import Path

from . import manifest as manifests
from . import sources
from .build import Built, Inputs, build, load_inputs, stage, write_files
from .console import OverlayError, count, note, result, some, step
from .lock import Lock, Release
from .manifest import Edits, Manifest
from .sources import Upstream
from .status import NOT_APPLIED, patch_states
from .transaction import locked, replacing
from .tree import list_files


def apply(root: Path, tree: Path, release: Release, source: Path | None, git: str | None, force: bool, dry: bool) -> None:
    """Builds the patched tree, or brings an existing one up to date."""
    _check_place(root, tree, source)
    inputs = load_inputs(root, release)
    if dry:
        _apply_locked(tree, inputs, source, git, force, dry)
        return
    with locked(tree):
        _apply_locked(tree, inputs, source, git, force, dry)


def _apply_locked(tree: Path, inputs: Inputs, source: Path | None, git: str | None, force: bool, dry: bool) -> None:
    known = manifests.load(tree)
    edits = manifests.find_edits(tree, known.expected()) if known else None
    if known and known.fingerprint == inputs.fingerprint and not (edits.changed or edits.missing):
        if edits.added:
            note(f"files of yours in the tree, left alone: {some(edits.added)}")
        result(f"{tree.name}/ is up to date with {inputs.release.name}: nothing to do")
        return
    _refuse_edits(tree, edits, force)
    if known and known.release != inputs.release.name:
        note(f"{tree.name}/ changes from {known.release} to {inputs.release.name}")
    upstream = _upstream(tree, known, edits, inputs.release, source, git)
    if not known:
        _refuse_edits(tree, _foreign_edits(tree, upstream), force)
    built = build(upstream, inputs)
    if dry:
        result(f"dry run: {_summary(built)} in {tree}; nothing was written")
        return
    _replace(tree, built)
    result(f"{_summary(built)} in {tree}")
    _next_step(tree, built)


def reverse(root: Path, tree: Path, lock: Lock, source: Path | None, force: bool, dry: bool) -> None:
    """Turns the tree back into pristine upstream, byte for byte."""
    _check_place(root, tree, source)
    with locked(tree):
        if not tree.is_dir():
            raise OverlayError(f"{tree} does not exist", "there is nothing to reverse")
        known = manifests.load(tree)
        if not known:
            _nothing_to_reverse(root, tree, lock.release(None))
            return
        edits = manifests.find_edits(tree, known.expected())
        _refuse_edits(tree, edits, force)
        if not source and known.holds_pristine(edits):
            upstream = Upstream(manifests.read_pristine(tree, known), known.origin)
        else:
            upstream = _upstream(tree, None, None, lock.release(known.release), source, None)
        if dry:
            result(f"dry run: would restore {len(upstream.files)} upstream files in {tree}; nothing was written")
            return
        step("restoring upstream's files")
        with replacing(tree) as change:
            write_files(change.stage, upstream.files)
            left = manifests.find_edits(change.stage, {path: e.identity for path, e in upstream.files.items()})
            if left:
                raise OverlayError(f"restored files differ from upstream: {some(left.labels(), 3)}", "run again")
            change.commit()
    result(f"{tree} is pristine SGLang {known.version} again; build the patched tree with scripts/apply_overlay.sh")


def _nothing_to_reverse(root: Path, tree: Path, release: Release) -> None:
    states = patch_states(load_inputs(root, release).patches, tree)
    present = [name for name, state in states.items() if state != NOT_APPLIED]
    if present:
        raise OverlayError(
            f"{tree} carries changes of {some(present, 3)} that this tool did not write", "take them out with git"
        )
    result(f"{tree} carries no overlay: nothing to do")


def _check_place(root: Path, tree: Path, source: Path | None) -> None:
    """Refuses a place whose replacement would take more than a tree with it."""
    if any(tree == place or tree in place.parents for place in (root, Path.home())):
        raise OverlayError(f"{tree} contains this repository or your home folder", "choose another --tree")
    if any(tree.is_relative_to(root / name) for name in ("scripts", "patches", "overlay", "tests", "docs", ".git")):
        raise OverlayError(f"{tree} lies inside this repository's own folders", "choose another --tree")
    if source and (tree == source or tree in source.parents or source in tree.parents):
        raise OverlayError("--source and --tree overlap", "choose another --tree; the source is only read")


def _upstream(
    tree: Path, known: Manifest | None, edits: Edits | None, release: Release, source: Path | None, git: str | None
) -> Upstream:
    """The pristine tree: from where the user says, else from the tree itself, else the pinned archive."""
    if source:
        return sources.from_path(source, release)
    if git:
        return sources.from_git(git, release)
    if known and known.release == release.name and known.holds_pristine(edits):
        upstream = Upstream(manifests.read_pristine(tree, known), known.origin)
        sources.check_release(upstream, release)
        return upstream
    return sources.pinned(release)


def _foreign_edits(tree: Path, upstream: Upstream) -> Edits | None:
    """What a tree without a manifest holds beyond pristine upstream, e.g. after a reverse."""
    if not tree.exists() or not list_files(tree):
        return None
    return manifests.find_edits(tree, {path: entry.identity for path, entry in upstream.files.items()})


def _refuse_edits(tree: Path, edits: Edits | None, force: bool) -> None:
    if not edits:
        return
    if not force:
        raise OverlayError(
            f"{tree} has edits that would be lost: {some(edits.labels())}", "save them, or discard them with --force"
        )
    note(f"discarding edits: {some(edits.labels())}")


def _replace(tree: Path, built: Built) -> None:
    known = manifests.load(tree)
    # An installation of another release is none of this one.
    same = known and known.release == built.inputs.release.name
    carried = manifests.install_outputs(tree) if same else {}
    step(f"writing {len(built.files)} files")
    with replacing(tree) as change:
        stage(built, change, carried)
        change.commit()


def _summary(built: Built) -> str:
    release, patches, overlay = built.inputs.release, built.inputs.patches, built.inputs.overlay
    return (
        f"SGLang {release.version} with {count(len(patches), 'patch')} on {count(len(release.files), 'file')}"
        f" and {count(len(overlay), 'overlay file')}"
    )


def _next_step(tree: Path, built: Built) -> None:
    near = os.path.relpath(tree)
    shown = tree if near.startswith("..") else near
    if sources.PROJECT_FILE in built.files or sources.is_wheel(built.files):
        result(f"next: pip install -e {shown}")
    else:
        result(f"next: PYTHONPATH={shown}/python (this source has no project file, so pip cannot install it)")
