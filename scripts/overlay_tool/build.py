# SPDX-License-Identifier: Apache-2.0
"""Computes the patched tree in memory and stages it; both ends are checked against the lock."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from . import manifest as manifests
from . import series, transaction
from .applier import apply_exact
from .console import OverlayError, some, step
from .lock import Release
from .manifest import Manifest
from .series import Patch
from .sources import Upstream
from .transaction import Transaction
from .tree import LINK, NULL_ID, Entry, Snapshot, is_bytecode, list_files, read_entry, write_entry

_EDITOR_LITTER = (".swp", "~", ".DS_Store")
_RELEASE_FOLDER = re.compile(r"v\d[^/]*/")


@dataclass(frozen=True)
class Inputs:
    """What this repository adds to a release: the patches and the overlay files."""

    release: Release
    patches: list[Patch]
    overlay: Snapshot

    @property
    def fingerprint(self) -> str:
        """Changes whenever a tree built from these inputs would."""
        archives = sorted(self.release.archives.items())
        digest = hashlib.sha256(f"{manifests.FORMAT} {self.release.name} {archives}\n".encode())
        for patch in self.patches:
            digest.update(f"{patch.name} {patch.digest}\n".encode())
        for path, entry in sorted(self.overlay.items()):
            digest.update(f"{path} {entry.identity}\n".encode())
        return digest.hexdigest()


def load_inputs(root: Path, release: Release) -> Inputs:
    inputs = Inputs(release, series.load(root, release.name), read_overlay(root, release))
    touched = set().union(*(patch.paths for patch in inputs.patches))
    if touched != set(release.files):
        odd = touched ^ set(release.files)
        raise OverlayError(f"upstream.lock and the series disagree about {some(odd, 3)}", "run refresh")
    return inputs


def read_overlay(root: Path, release: Release) -> Snapshot:
    """The files that a release's tree gets: those for all releases, and those in the folder of its name."""
    folder = root / "overlay"
    if not folder.is_dir():
        raise OverlayError(f"{folder} is missing", "run from a complete checkout of this repository")
    paths = list_files(folder, skip=lambda path: is_bytecode(path) or path.endswith(_EDITOR_LITTER))
    found = {path: read_entry(folder / path) for path in paths}
    links = [path for path, entry in found.items() if entry.mode == LINK]
    if links:
        raise OverlayError(f"overlay/ holds links ({some(links, 3)})", "replace them by files")
    own = f"{release.name}/"
    files = {path: entry for path, entry in found.items() if not _RELEASE_FOLDER.match(path)}
    for path, entry in found.items():
        if path.startswith(own) and files.setdefault(path.removeprefix(own), entry) is not entry:
            raise OverlayError(f"overlay/{path} exists for all releases too", "keep one of them")
    return files


@dataclass(frozen=True)
class Built:
    """A patched tree in memory, next to the pristine tree it came from."""

    upstream: Upstream
    inputs: Inputs
    files: Snapshot

    @property
    def written(self) -> dict[str, Entry | None]:
        """Everything of ours: touched files (None where the series removes one) and overlay files."""
        paths = [*self.inputs.release.files, *self.inputs.overlay]
        return {path: self.files.get(path) for path in sorted(paths)}

    def manifest(self) -> Manifest:
        return Manifest(
            release=self.inputs.release.name,
            version=self.inputs.release.version,
            origin=self.upstream.origin,
            fingerprint=self.inputs.fingerprint,
            patches={patch.name: patch.digest for patch in self.inputs.patches},
            upstream={path: entry.identity for path, entry in self.upstream.files.items()},
            written={path: entry and entry.identity for path, entry in self.written.items()},
            overlay=sorted(self.inputs.overlay),
        )


def build(upstream: Upstream, inputs: Inputs) -> Built:
    """Applies the series and adds the overlay, in memory; nothing inexact passes."""
    files = dict(upstream.files)
    for patch in inputs.patches:
        step(f"applying {patch.name}")
        apply_exact(patch, files)
    _check_touched(inputs.release, upstream.files, files)
    clashes = inputs.overlay.keys() & files.keys()
    if clashes:
        raise OverlayError(f"overlay files exist upstream: {some(clashes, 3)}", "make their change a patch")
    files.update(inputs.overlay)
    return Built(upstream, inputs, files)


def _check_touched(release: Release, before: Snapshot, after: Snapshot) -> None:
    """The files that changed, and what they became, are exactly those of the lock."""
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    if changed != set(release.files):
        raise OverlayError(
            f"the series changed {len(changed)} files, upstream.lock lists {len(release.files)}"
            f" ({some(changed ^ set(release.files), 3)})",
            "run refresh",
        )
    for path, (_, blob) in release.files.items():
        if (after[path].blob if path in after else NULL_ID) != blob:
            raise OverlayError(f"{path} came out different from what upstream.lock pins", "run refresh")


def stage(built: Built, change: Transaction, carried: Snapshot) -> None:
    """Writes the tree and its manifest into the stage and reads back everything of ours."""
    files = {**built.files, **carried}
    write_files(change.stage, files)
    manifests.save(change.stage, built.manifest(), built.upstream.files)
    transaction.reached("written")
    for path, entry in built.written.items():
        target = change.stage / path
        found = read_entry(target) if os.path.lexists(target) else None
        if found != entry:
            raise OverlayError(f"{path} did not reach the disk as written", "check the file system and run again")
    transaction.reached("verified")


def write_files(folder: Path, files: Snapshot) -> None:
    for count, (path, entry) in enumerate(sorted(files.items())):
        if count == len(files) // 2:
            transaction.reached("half written")
        write_entry(folder, path, entry)
