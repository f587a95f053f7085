# SPDX-License-Identifier: Apache-2.0
"""pin: a section of upstream.lock and an empty series for one more release."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from . import index, lock, series, sources
from .archives import read_archive
from .console import OverlayError, count, result, some, step
from .fetch import check_python, pinned_archive
from .lock import Lock, Release
from .sources import Upstream
from .transaction import remove
from .tree import Snapshot


def pin(root: Path, pins: Lock, asked: str) -> None:
    """Adds a release to the lock as the package index has it. Either all of it is written or nothing."""
    version = lock.version_in(asked)
    if not version:
        raise OverlayError(f"{asked} is no version of SGLang", "give one like 0.5.17")
    _refuse_known(root, pins, version)
    published = index.published(version)
    _refuse_known(root, pins, published.version)  # pip may spell it in another way
    tag = f"v{published.version}"
    release = Release(
        name=tag, version=published.version, tag=tag, repository=pins.releases[pins.default].repository, sources="",
        python=published.python, torch=published.torch, archives=published.archives,
    )  # fmt: skip
    check_python(release)
    release = _identified(release, pins)
    _write(root, pins.with_release(release), release)
    result(f"{lock.FILE_NAME} knows {tag}: {count(len(release.archives), 'archive')}, Python {release.python}, torch {release.torch}")
    before = pins.before(release.version)
    origin = f" --from {before.name}" if before else ""
    result(f"next: scripts/overlay.py rebase --release {tag}{origin} FOLDER")


def _refuse_known(root: Path, pins: Lock, version: str) -> None:
    name = f"v{version}"
    if name in pins.releases:
        raise OverlayError(f"{lock.FILE_NAME} has {name} already", f"go on with rebase --release {name}")
    if series.folder(root, name).exists():
        raise OverlayError(f"patches/{name} exists, though {lock.FILE_NAME} has no such release", "move it away")


def _identified(release: Release, pins: Lock) -> Release:
    """The release with the blob ids and the digest that its files are known by."""
    name, data = pinned_archive(release)
    step(f"reading {name}")
    files = sources.place(read_archive(name, data), name)
    paths = sorted(set(pins.releases[pins.default].identity) & files.keys())
    if not paths:
        raise OverlayError(f"{name} has none of the files that tell releases apart", "name others below identity of the default")
    known = replace(
        release,
        identity={path: files[path].blob for path in paths},
        sources=_digest(release, files),
    )
    sources.check_release(Upstream(files, name), known)
    twins = [other.name for other in pins.releases.values() if other.identity == known.identity]
    if twins:
        raise OverlayError(f"{release.name} cannot be told from {some(twins)}", "name more files below identity of the default")
    return known


def _digest(release: Release, files: Snapshot) -> str:
    """An sdist is one file with one SHA-256; wheels differ in what was compiled, and have a digest of the rest."""
    return sources.sources_digest(files) if all(name.endswith(".whl") for name in release.archives) else ""


def _write(root: Path, pins: Lock, release: Release) -> None:
    folder, lock_file = series.folder(root, release.name), root / lock.FILE_NAME
    staged = lock_file.with_name(f".{lock.FILE_NAME}.new")
    try:
        folder.mkdir(parents=True)
        (folder / "series").write_text(series.series_text([]), encoding="utf-8")
        staged.write_text(lock.dump(pins), encoding="utf-8")
        os.replace(staged, lock_file)
    except BaseException:
        staged.unlink(missing_ok=True)
        remove(folder)
        raise
