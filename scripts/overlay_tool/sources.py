# SPDX-License-Identifier: Apache-2.0
"""Where a pristine upstream tree comes from, and the proof that it is the pinned release."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import gitio
from .archives import SUFFIXES, read_archive
from .console import OverlayError, some, step
from .fetch import check_hash, pinned_archive
from .lock import Release
from .tree import NULL_ID, Snapshot, check_links, is_generated, read_tree

PROJECT_FILE = "python/pyproject.toml"
_DIST_INFO = re.compile(r"^python/sglang-[^/]+\.dist-info/METADATA$")
_METADATA = re.compile(rf"{_DIST_INFO.pattern}|^python/PKG-INFO$")
_COMPILED = (".so", ".pyd", ".dylib", ".dll")


@dataclass(frozen=True)
class Upstream:
    """A tree in upstream's repository layout, and one phrase on where it comes from."""

    files: Snapshot
    origin: str


def pinned(release: Release) -> Upstream:
    name, data = pinned_archive(release)
    step(f"extracting {name}")
    upstream = Upstream(place(read_archive(name, data), name), name)
    check_release(upstream, release)
    return upstream


def from_path(path: Path, release: Release) -> Upstream:
    """A source that the user names, verified against the pin. It is only read."""
    upstream = read_source(path)
    _check_version(upstream, release)  # before the hash: another release is not a damaged file
    if path.is_file() and path.name in release.archives:
        check_hash(path.name, path.read_bytes(), release)
    check_release(upstream, release)
    return upstream


def from_git(url: str, release: Release) -> Upstream:
    step(f"cloning {url} at {release.tag}")
    with tempfile.TemporaryDirectory(prefix="sglang-hsa-") as folder:
        into = Path(folder, "clone")
        gitio.clone(url, release.tag, into)
        upstream = Upstream(place(gitio.read_commit(into, "HEAD"), url), f"a clone at {release.tag}")
    check_release(upstream, release)
    return upstream


def read_source(path: Path) -> Upstream:
    """Any folder, git checkout or archive that holds an SGLang tree, of whatever release."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise OverlayError(f"{path} is not an archive ({', '.join(SUFFIXES)})", "give a folder or an archive")
        step(f"reading {path.name}")
        return Upstream(place(read_archive(path.name, path.read_bytes()), str(path)), path.name)
    if not path.is_dir():
        raise OverlayError(f"{path} does not exist", "give a folder, a git checkout or an archive")
    step(f"reading {path}")
    if gitio.is_checkout(path):
        gitio.require_clean(path)
        return Upstream(place(gitio.read_commit(path, "HEAD"), str(path)), "a git checkout")
    files = read_tree(path)
    check_links(files)
    return Upstream(place(files, str(path)), "a folder")


def place(files: Snapshot, name: str) -> Snapshot:
    """Gives a tree upstream's layout: an sdist or a wheel is the content of its python/ folder."""
    if "python/sglang/__init__.py" in files:
        return files
    if "sglang/__init__.py" in files:
        return {f"python/{path}": entry for path, entry in files.items()}
    raise OverlayError(f"{name} holds no SGLang tree", "it needs python/sglang/ or sglang/ at its top")


def version_of(upstream: Upstream) -> str | None:
    """The version in the package metadata, which sdists and wheels carry and git checkouts do not."""
    for path, entry in upstream.files.items():
        if _METADATA.match(path):
            found = re.search(rb"^Version: *(\S+)", entry.data, re.MULTILINE)
            return found.group(1).decode() if found else None
    return None


def check_release(upstream: Upstream, release: Release) -> None:
    """Refuses a tree that is not the pristine pinned release."""
    _check_version(upstream, release)
    expected = {path: before for path, (before, _) in release.files.items()} | release.identity
    if is_wheel(upstream.files):
        _check_wheel(upstream, release)
    wrong = [path for path, blob in expected.items() if _blob(upstream.files, path) != blob]
    if wrong:
        raise OverlayError(
            f"wrong release: {len(wrong)} of {len(expected)} checked files are not those of a pristine {release.name} "
            f"({some(wrong, 3)})",
            _todo(release),
        )


def is_wheel(files: Snapshot) -> bool:
    """Whether a tree was laid out from a wheel, whose metadata pip can install it with."""
    return any(_DIST_INFO.match(path) for path in files)


def sources_digest(files: Snapshot) -> str:
    """SHA-256 over names and blob ids of the package's files but compiled ones: the same in each wheel of a release."""
    digest = hashlib.sha256()
    for path, entry in sorted(files.items()):
        if path.startswith("python/sglang/") and not path.endswith(_COMPILED) and not is_generated(path):
            digest.update(f"{path} {entry.blob}\n".encode())
    return digest.hexdigest()


def _check_wheel(upstream: Upstream, release: Release) -> None:
    """A wheel of another Python has the same sources. A release that has an sdist pins none."""
    if release.sources and sources_digest(upstream.files) != release.sources:
        raise OverlayError(
            f"wrong sources: those of {upstream.origin} are not the ones that upstream.lock pins for {release.name}",
            "do not use this source; leave --source out, or give a wheel of that release",
        )


def _check_version(upstream: Upstream, release: Release) -> None:
    version = version_of(upstream)
    if version not in (None, release.version):
        raise OverlayError(f"wrong release: the source is SGLang {version}, not {release.version}", _todo(release))


def _blob(files: Snapshot, path: str) -> str:
    return files[path].blob if path in files else NULL_ID


def _todo(release: Release) -> str:
    return f"give an unmodified tree of {release.tag}, or leave --source out"
