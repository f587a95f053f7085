# SPDX-License-Identifier: Apache-2.0
"""Replaces a tree as a whole: stage it next to its place, then swap by rename.

Until the swap nothing in the tree is touched, so a failure at any moment leaves it byte for byte. A run that was killed
leaves a stage folder, which the next run removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from .console import OverlayError, note

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
_AT_FDCWD = -100


class Interrupted(BaseException):
    """SIGINT or SIGTERM; not an Exception, so that no error handling swallows it."""


def reached(point: str) -> None:
    """Marks a moment of the transaction, so that tests can stop a run there."""


class Transaction:
    """Use within `locked`. Fill `stage`, then `commit`."""

    def __init__(self, tree: Path):
        self.tree = tree
        self.stage = _stage(tree)
        self._identity: tuple[int, int] | None = None

    def begin(self) -> None:
        self.stage.mkdir()
        self._identity = _identity(self.stage)
        reached("staged")

    @property
    def committed(self) -> bool:
        """Whether the staged folder stands in the tree's place, true from the very moment of the swap."""
        return self._identity is not None and _identity(self.tree) == self._identity

    def commit(self) -> None:
        reached("before swap")
        swap(self.stage, self.tree)
        reached("after swap")
        remove(self.stage)


@contextlib.contextmanager
def replacing(tree: Path) -> Iterator[Transaction]:
    """A transaction whose stage never survives a failure."""
    change = Transaction(tree)
    try:
        change.begin()
        yield change
    except BaseException as failure:
        _clear(tree)
        if isinstance(failure, Interrupted) and change.committed:
            raise Interrupted("interrupted after the swap; the new tree is in place") from failure
        raise


@contextlib.contextmanager
def locked(tree: Path) -> Iterator[None]:
    """Holds the right to change a tree and clears what a killed run left."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    path = tree.with_name(f".{tree.name}.overlay-lock")
    handle = _lock_file(path)
    try:
        recover(tree)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.close(handle)


def _lock_file(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise OverlayError("another run is working on this tree", "wait for it to end") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                os.close(handle)
                raise
            note("this file system has no locks; do not run the tool twice at a time")
        if _same_file(handle, path):
            return handle
        os.close(handle)  # the run that held the lock has removed the file since


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def recover(tree: Path) -> None:
    """Brings a tree back after a run that was killed."""
    if _stage(tree).exists() or _aside(tree).exists():
        note("cleaning up after an interrupted run")
        _clear(tree)


def _clear(tree: Path) -> None:
    if _aside(tree).exists() and not tree.exists():
        _aside(tree).rename(tree)
    remove(_aside(tree))
    remove(_stage(tree))


def swap(stage: Path, tree: Path) -> None:
    """Puts stage in the place of tree; afterwards the old tree, if any, stands at stage."""
    if not tree.exists():
        stage.rename(tree)
    elif not _exchange(stage, tree):
        # Without an atomic exchange there is a moment with no tree; `recover` closes it.
        aside = _aside(tree)
        tree.rename(aside)
        reached("between renames")
        try:
            stage.rename(tree)
        except OSError:
            aside.rename(tree)
            raise
        aside.rename(stage)


def _stage(tree: Path) -> Path:
    return tree.with_name(f".{tree.name}.overlay-stage")


def _aside(tree: Path) -> Path:
    return tree.with_name(f".{tree.name}.overlay-old")


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        info = folder.stat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return libc.renamex_np(*names, _EXCHANGE) == 0
    if hasattr(libc, "renameat2"):
        return libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0
    return False


def remove(path: Path) -> None:
    """Removes a folder of ours, read-only parts included; a missing one is fine."""
    if not path.exists():
        return
    for folder, _, _ in os.walk(path):
        mode = os.stat(folder).st_mode
        if not mode & stat.S_IWUSR:
            os.chmod(folder, mode | stat.S_IRWXU)
    shutil.rmtree(path)
