# SPDX-License-Identifier: Apache-2.0
"""The few git commands that checkout, refresh and git sources need. Apply and reverse work without git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .console import OverlayError
from .tree import Entry, Snapshot, check_links, check_path

BASE_TAG = "pin"
BRANCH = "overlay"
# One fixed identity and date, so that the base commit is the same commit everywhere.
_NAME, _EMAIL = "sglang-hsa overlay", "overlay@sglang-hsa.invalid"
BASE_IDENTITY = f"{_NAME} <{_EMAIL}> 946684800 +0000"
_COMMITTER = {"GIT_COMMITTER_NAME": _NAME, "GIT_COMMITTER_EMAIL": _EMAIL}


def git(*args: str, cwd: Path, stdin: bytes | None = None, own: bool = False) -> bytes:
    """Output of a git command; raises OverlayError with git's last line.

    own: the repository is one of ours, so the user's configuration must not change what comes out.
    """
    done = _run(args, cwd, stdin, own)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        telling = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines
        raise OverlayError(f"git {args[0]} failed: {telling[-1]}", "see that message")
    return done.stdout


def attempt(*args: str, cwd: Path) -> bool:
    """Whether a git command in a repository of ours succeeds; for those whose failure is an answer."""
    return _run(args, cwd, None, own=True).returncode == 0


def _run(args: tuple[str, ...], cwd: Path, stdin: bytes | None, own: bool) -> subprocess.CompletedProcess:
    if shutil.which("git") is None:
        raise OverlayError("git was not found", "install git and run again")
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key.startswith("GIT_SSH")}
    env |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    if own:
        env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **_COMMITTER}
    return subprocess.run(("git", *args), cwd=cwd, input=stdin if stdin is not None else b"", capture_output=True, env=env)


def is_checkout(path: Path) -> bool:
    return (path / ".git").exists()


def resolve(path: Path, name: str) -> str | None:
    """The commit that a name stands for, or None."""
    done = _run(("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"), path, None, own=False)
    return done.stdout.decode().strip() or None


def require_clean(path: Path) -> None:
    """Refuses a work tree whose tracked files differ from HEAD."""
    dirty = git("status", "--porcelain", "--untracked-files=no", cwd=path).decode(errors="replace").splitlines()
    if dirty:
        raise OverlayError(f"{path} has uncommitted changes ({dirty[0].strip()}, ...)", "commit or stash them")


def read_commit(path: Path, commit: str) -> Snapshot:
    """The files of a commit, straight from git's objects: no filters, no line-ending conversion."""
    listing = git("ls-tree", "-r", "-z", "--full-tree", commit, cwd=path).decode(errors="surrogateescape")
    wanted = []
    for row in filter(None, listing.split("\0")):
        meta, name = row.split("\t", 1)
        mode, kind, blob = meta.split()
        if kind == "blob":
            wanted.append((check_path(name), mode, blob))
    stdin = "".join(f"{blob}\n" for _, _, blob in wanted).encode()
    stream = git("cat-file", "--batch", cwd=path, stdin=stdin)
    files: Snapshot = {}
    at = 0
    for name, mode, blob in wanted:
        header_end = stream.index(b"\n", at)
        size = int(stream[at:header_end].split()[2])
        files[name] = Entry(stream[header_end + 1 : header_end + 1 + size], mode)
        at = header_end + 1 + size + 1
    check_links(files)
    return files


def clone(url: str, tag: str, into: Path) -> None:
    """A shallow clone at a tag; the user's configuration (proxies, credentials) applies."""
    done = _run(("clone", "--quiet", "--depth", "1", "--branch", tag, "--", url, str(into)), into.parent, None, False)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise OverlayError(f"cannot clone {url} at {tag} ({reason})", "check the address, the tag and the network")


class Importer:
    """Writes commits into a repository with `git fast-import`: exact bytes, modes and identities."""

    def __init__(self, repository: Path):
        self.repository = repository
        self.stream: list[bytes] = []

    def commit(self, files: Snapshot, message: bytes, author: str = BASE_IDENTITY) -> None:
        self.stream += [
            f"commit refs/heads/{BRANCH}\n".encode(),
            f"author {author}\ncommitter {BASE_IDENTITY}\n".encode(),
            b"data %d\n%s\n" % (len(message), message),
            b"deleteall\n",
        ]
        for path, entry in sorted(files.items()):
            name = path.encode(errors="surrogateescape")
            self.stream.append(b"M %s inline %s\ndata %d\n%s\n" % (entry.mode.encode(), name, len(entry.data), entry.data))

    def finish(self) -> None:
        git("fast-import", "--quiet", cwd=self.repository, stdin=b"".join(self.stream), own=True)


def init(path: Path) -> None:
    """A new repository that stores bytes as they are, whatever the user's configuration says."""
    git("init", "--quiet", "--template=", f"--initial-branch={BRANCH}", str(path), cwd=path.parent, own=True)
    for key, value in (("core.autocrlf", "false"), ("core.safecrlf", "false"), ("commit.gpgSign", "false")):
        git("config", key, value, cwd=path, own=True)


def am(path: Path, name: str, patch: bytes) -> None:
    """Applies one patch as a commit; --keep-non-patch keeps upstream's [CPU] style of subject."""
    args = ("am", "--quiet", "--keep-cr", "--keep-non-patch", "--committer-date-is-author-date")
    done = _run(args, path, patch, own=True)
    if done.returncode:
        _run(("am", "--abort"), path, None, own=True)
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[0]
        raise OverlayError(f"git am refuses {name} ({reason})", "export the series again with refresh")
