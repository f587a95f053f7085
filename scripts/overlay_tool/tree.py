# SPDX-License-Identifier: Apache-2.0
"""Trees as data: a snapshot maps a path to its content and git mode, whatever it was read from."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from .console import OverlayError

REGULAR, EXECUTABLE, LINK = "100644", "100755", "120000"
NULL_ID = "0" * 40  # git's id for "no such file"
STATE_DIR = ".overlay"

_CACHE_DIRS = {"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"}
_VERSION_FILE = "python/sglang/_version.py"


class Entry(NamedTuple):
    data: bytes  # content, or the target of a link
    mode: str = REGULAR

    @property
    def identity(self) -> str:
        """Mode and SHA-256: what the manifest records for a file."""
        return f"{self.mode} {hashlib.sha256(self.data).hexdigest()}"

    @property
    def blob(self) -> str:
        return blob_id(self.data)


Snapshot = dict[str, Entry]


def blob_id(data: bytes) -> str:
    """The id git gives this content, so that a checkout and an archive verify alike."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_bytecode(path: str) -> bool:
    """Caches that Python and its tools leave behind; nobody's work."""
    return path.endswith((".pyc", ".pyo")) or not _CACHE_DIRS.isdisjoint(path.split("/"))


def is_install_output(path: str) -> bool:
    """What `pip install -e` writes into the tree."""
    parts = path.split("/")
    return (
        path == _VERSION_FILE
        or any(part.endswith(".egg-info") for part in parts[:-1])
        or parts[0] == "build"
        or parts[:2] == ["python", "build"]
    )


def is_generated(path: str) -> bool:
    """Files that tools rewrite: never taken for a user's edit."""
    return is_bytecode(path) or is_install_output(path)


def check_path(path: str) -> str:
    """Refuses a name that could land outside the tree; returns the name."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or "\0" in path or {"", ".", ".."} & set(parts):
        raise OverlayError(f"unsafe path {path!r} in the source", "do not use this source")
    if ".git" in parts:
        raise OverlayError(f"the source carries git's own files ({path})", "do not use this source")
    return path


def check_links(files: Snapshot) -> None:
    """Refuses links that leave the tree and files that would be written through a link."""
    links = {path for path, entry in files.items() if entry.mode == LINK}
    for path in links:
        target = os.fsdecode(files[path].data)
        landing = os.path.normpath(os.path.join(os.path.dirname(path), target))
        if os.path.isabs(target) or landing == ".." or landing.startswith("../"):
            raise OverlayError(f"the link {path} -> {target} leaves the tree", "do not use this source")
    for path in files:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent in files:
                raise OverlayError(f"{path} lies below {parent}, which is not a folder", "do not use this source")


def read_entry(path: Path) -> Entry:
    """Content and mode of one file or link."""
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        return Entry(os.fsencode(os.readlink(path)), LINK)
    if not stat.S_ISREG(info.st_mode):
        raise OverlayError(f"{path} is neither a file nor a link", "remove it and run again")
    return Entry(path.read_bytes(), EXECUTABLE if info.st_mode & stat.S_IXUSR else REGULAR)


def list_files(root: Path, skip=is_bytecode) -> list[str]:
    """Paths below root, links to folders included, without the tool's own state."""
    found = []
    for folder, dirs, files in os.walk(root, onerror=_raise):
        below = os.path.relpath(folder, root)
        prefix = "" if below == "." else f"{below}/"
        linked = [name for name in dirs if os.path.islink(os.path.join(folder, name))]
        found += [prefix + name for name in files + linked]
        dirs[:] = sorted(name for name in dirs if prefix + name != STATE_DIR)
    return sorted(path for path in found if not skip(path))


def _raise(error: OSError) -> None:
    raise error


def read_tree(root: Path) -> Snapshot:
    return {path: read_entry(root / path) for path in list_files(root)}


def write_entry(root: Path, path: str, entry: Entry) -> None:
    """Writes one new file or link below root; the permissions follow the user's umask."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.mode == LINK:
        target.symlink_to(os.fsdecode(entry.data))
        return
    mode = 0o777 if entry.mode == EXECUTABLE else 0o666
    try:
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            out.write(entry.data)
    except OSError as error:
        error.filename = error.filename or str(target)  # a full disk is reported without a name
        raise
