# SPDX-License-Identifier: Apache-2.0
"""What the tool wrote into a tree: enough to see a user's edits and to restore every upstream byte."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .console import OverlayError
from .tree import (
    STATE_DIR, Entry, Snapshot, is_bytecode, is_generated, is_install_output, list_files, read_entry, write_entry,
)

FORMAT = 1
_FILE = "manifest.json"
_PRISTINE = "pristine"


@dataclass(frozen=True)
class Manifest:
    """Identities are mode and SHA-256; None in `written` is an upstream file that the series removes."""

    release: str
    version: str
    origin: str
    fingerprint: str
    patches: dict[str, str]
    upstream: dict[str, str]
    written: dict[str, str | None]
    overlay: list[str]

    def expected(self) -> dict[str, str]:
        """Identity of every file that should stand in the tree."""
        merged = {**self.upstream, **self.written}
        return {path: identity for path, identity in merged.items() if identity is not None}

    def kept(self) -> list[str]:
        """Upstream files whose pristine content is kept aside: patched, or rewritten by an installation."""
        return [path for path in self.upstream if path in self.written or is_install_output(path)]

    def holds_pristine(self, edits: Edits) -> bool:
        """Whether the tree still holds every upstream byte, in place or aside."""
        in_place = self.upstream.keys() - set(self.kept())
        return in_place.isdisjoint(edits.changed + edits.missing)


@dataclass(frozen=True)
class Edits:
    """A user's work in a tree."""

    changed: list[str]
    missing: list[str]
    added: list[str]

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing or self.added)

    def labels(self) -> list[str]:
        return (
            self.changed
            + [f"{path} (removed)" for path in self.missing]
            + [f"{path} (added)" for path in self.added]
        )


def load(tree: Path) -> Manifest | None:
    """The manifest of a tree, or None for a tree that the tool has not built."""
    path = tree / STATE_DIR / _FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise OverlayError(f"{path} is damaged", "move the tree away and apply again") from None
    if data.pop("format", None) != FORMAT:
        raise OverlayError(f"{path} was written by another version of this tool", "move the tree away and apply again")
    try:
        return Manifest(**data)
    except TypeError:
        raise OverlayError(f"{path} is damaged", "move the tree away and apply again") from None


def release_of(tree: Path) -> str | None:
    """Name of the release that a tree was built from; None for a tree that the tool has not built."""
    known = load(tree)
    return known.release if known else None


def save(tree: Path, manifest: Manifest, pristine: Snapshot) -> None:
    """Writes the manifest and the pristine content that the tree itself no longer holds."""
    kept = {pristine[path].data for path in manifest.kept()}
    for data in kept:
        write_entry(tree, _pristine_path(Entry(data).identity), Entry(data))
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1, sort_keys=True) + "\n"
    write_entry(tree, f"{STATE_DIR}/{_FILE}", Entry(text.encode()))


def read_pristine(tree: Path, manifest: Manifest) -> Snapshot:
    """The upstream files of a tree that the tool built, each checked against the manifest."""
    aside = set(manifest.kept())
    files: Snapshot = {}
    for path, identity in manifest.upstream.items():
        try:
            if path in aside:
                entry = read_entry(tree / _pristine_path(identity))._replace(mode=identity.split()[0])
            else:
                entry = read_entry(tree / path)
        except (FileNotFoundError, NotADirectoryError):
            raise OverlayError(f"the pristine content of {path} is missing", "give the source with --source") from None
        if entry.identity != identity:
            raise OverlayError(f"the pristine content of {path} is damaged", "give the source with --source")
        files[path] = entry
    return files


def find_edits(tree: Path, expected: dict[str, str]) -> Edits:
    """How a tree differs from what should stand in it. Generated files count for nothing."""
    wanted = {path: identity for path, identity in expected.items() if not is_generated(path)}
    present = set(list_files(tree, skip=is_generated))
    changed = [path for path in sorted(present & wanted.keys()) if read_entry(tree / path).identity != wanted[path]]
    return Edits(changed, sorted(wanted.keys() - present), sorted(present - wanted.keys()))


def install_outputs(tree: Path) -> Snapshot:
    """What an installation wrote; it moves to the next tree, so that the installation stays valid."""
    paths = list_files(tree, skip=lambda path: is_bytecode(path) or not is_install_output(path))
    return {path: read_entry(tree / path) for path in paths}


def _pristine_path(identity: str) -> str:
    return f"{STATE_DIR}/{_PRISTINE}/{identity.split()[1]}"
