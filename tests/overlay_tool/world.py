# SPDX-License-Identifier: Apache-2.0
"""A small SGLang to test on: a synthetic upstream, a repository that patches it, and helpers to look at both."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"
sys.path.insert(0, str(SCRIPTS))

import overlay
from overlay_tool import lock
from overlay_tool.tree import Entry, read_tree

VERSION = "9.8.7rc0"
RELEASE = f"v{VERSION}"
ARCHIVE = f"sglang-{VERSION}.tar.gz"
NAMES = ["core/change-alpha.patch", "core/change-line-endings-and-scripts.patch", "core/rename-add-and-remove.patch"]
IDENTITY = ("python/sglang/alpha.py",)

DEP3 = """
It is needed because upstream does not do it.

Description: what it does
Origin: vendor
Forwarded: no
Applied-Upstream: no
Last-Update: 2026-01-02
Retire-When: upstream does it
Signed-off-by: A Developer <dev@example.org>
"""


def numbered(count: int = 60) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(1, count + 1))


PYPROJECT = b"""\
[build-system]
requires = ["setuptools>=61.0", "setuptools-scm>=8.0", "wheel"]
build-backend = "setuptools.build_meta"

[project]
name = "sglang"
dynamic = ["version"]
dependencies = ["first-need>=1", "second-need"]

[project.scripts]
sglang = "sglang:main"

[tool.setuptools.packages.find]
exclude = ["tests*"]

[tool.setuptools_scm]
root = ".."
version_file = "sglang/_version.py"
fallback_version = "0.0.0.dev0"
"""

# The content of an sdist, that is of upstream's python/ folder.
SDIST = {
    "PKG-INFO": Entry(f"Metadata-Version: 2.4\nName: sglang\nVersion: {VERSION}\n".encode()),
    "pyproject.toml": Entry(PYPROJECT),
    "sglang.egg-info/PKG-INFO": Entry(b"Name: sglang\n"),
    "sglang/__init__.py": Entry(b"def main():\n    return 'upstream'\n"),
    "sglang/_version.py": Entry(b"version = 'as shipped'\n"),
    "sglang/alpha.py": Entry(numbered()),
    "sglang/bare.txt": Entry(b"first\nlast without newline"),
    "sglang/crlf.py": Entry(numbered(30).replace(b"\n", b"\r\n")),
    "sglang/gone.py": Entry(b"to be removed\n"),
    "sglang/name with space.txt": Entry(b"spaced\n"),
    "sglang/old_name.py": Entry(numbered(40)),
    "sglang/run.sh": Entry(b"#!/bin/sh\necho one\n", "100755"),
}
PRISTINE = {f"python/{path}": entry for path, entry in SDIST.items()}

OVERLAY = {
    "pyproject.toml": b"[build-system]\n",
    "python/sglang/added/__init__.py": b"ADDED = 1\n",
}


def tar_bytes(files: dict[str, Entry], top: str = f"sglang-{VERSION}", extra=()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, entry in files.items():
            member = tarfile.TarInfo(f"{top}/{path}")
            member.size, member.mode = len(entry.data), 0o755 if entry.mode == "100755" else 0o644
            archive.addfile(member, io.BytesIO(entry.data))
        for member in extra:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return gzip.compress(out.getvalue(), mtime=0)  # without a time, so that the same files are the same archive


def zip_bytes(files: dict[str, Entry], top: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, entry in files.items():
            member = zipfile.ZipInfo(top + path)
            member.external_attr = int(entry.mode, 8) << 16
            archive.writestr(member, entry.data)
    return out.getvalue()


def write(root: Path, files: dict[str, Entry | bytes]) -> Path:
    for path, entry in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(entry if isinstance(entry, bytes) else entry.data)
        if isinstance(entry, Entry) and entry.mode == "100755":
            target.chmod(0o755)
    return root


def run_git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=A Developer", "-c", "user.email=dev@example.org", "-c", "core.autocrlf=false"]
    done = subprocess.run(["git", *identity, *args], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(folder: Path, subject: str, message: str = DEP3) -> None:
    run_git(folder, "add", "--all")
    run_git(folder, "commit", "--quiet", "-m", f"{subject}\n{message}")


def replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1, (path, old)
    path.write_bytes(data.replace(old, new))


class World:
    """One repository with its tree, and a cache that holds the synthetic archive."""

    def __init__(self, root: Path):
        self.root = root
        self.tree = root / "sglang"
        self.patches = root / "patches" / RELEASE

    def run(self, *argv: str) -> int:
        return overlay.main(["apply", *argv] if argv[:1] and argv[0].startswith("-") else list(argv), self.root)

    def release(self) -> lock.Release:
        return lock.load(self.root).release(None)

    def files(self) -> dict[str, Entry]:
        """The tree as it stands, without the tool's own state."""
        return read_tree(self.tree)

    def everything(self) -> dict[str, tuple[int, bytes]]:
        """The whole tree with the tool's state, for comparisons byte for byte."""
        found = {}
        for folder, _, names in os.walk(self.tree):
            for name in names:
                path = Path(folder, name)
                found[str(path.relative_to(self.tree))] = (path.lstat().st_mode, path.read_bytes())
        return found

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if "overlay-" in path.name)

    def expected(self) -> dict[str, Entry]:
        """What the series and the overlay make of upstream, written down by hand."""
        files = dict(PRISTINE)
        alpha = numbered().replace(b"line 10\n", b"line 10\ninserted\n").replace(b"line 50\n", b"line fifty\n")
        files["python/sglang/alpha.py"] = Entry(alpha)
        files["python/sglang/bare.txt"] = Entry(b"first\nchanged without newline")
        files["python/sglang/crlf.py"] = Entry(PRISTINE["python/sglang/crlf.py"].data.replace(b"line 7\r", b"seven\r"))
        files["python/sglang/run.sh"] = Entry(b"#!/bin/sh\necho two\n", "100755")
        files["python/sglang/new_name.py"] = Entry(numbered(40).replace(b"line 20\n", b"line twenty\n"))
        files["python/sglang/fresh.py"] = Entry(b"fresh = True\n")
        del files["python/sglang/old_name.py"], files["python/sglang/gone.py"]
        return files | {path: Entry(data) for path, data in OVERLAY.items()}


def create(root: Path) -> World:
    """A repository with the pin and an empty series."""
    world = World(root)
    archive = tar_bytes(SDIST)
    digest = hashlib.sha256(archive).hexdigest()
    release = lock.Release(
        name=RELEASE, version=VERSION, tag=RELEASE, repository="https://example.invalid/sglang.git", sources="",
        python=">=3.10", torch="==2", archives={ARCHIVE: digest},
        identity={path: PRISTINE[path].blob for path in IDENTITY},
    )
    write(root, {
        "upstream.lock": lock.dump(lock.Lock(RELEASE, {RELEASE: release})).encode(),
        f"patches/{RELEASE}/series": b"",
        **{f"overlay/{path}": data for path, data in OVERLAY.items()},
        f"cache/{digest}/{ARCHIVE}": archive,
    })
    return world


def develop(world: World, folder: Path) -> None:
    """Makes the three patches of `World.expected` the way a developer does."""
    assert world.run("checkout", str(folder)) == 0
    package = folder / "python/sglang"
    replace(package / "alpha.py", b"line 10\n", b"line 10\ninserted\n")
    replace(package / "alpha.py", b"line 50\n", b"line fifty\n")
    replace(package / "bare.txt", b"last", b"changed")
    commit(folder, "[Core] Change alpha")
    replace(package / "crlf.py", b"line 7\r", b"seven\r")
    replace(package / "run.sh", b"one", b"two")
    commit(folder, "[Core] Change line endings and scripts")
    run_git(folder, "mv", "python/sglang/old_name.py", "python/sglang/new_name.py")
    replace(package / "new_name.py", b"line 20\n", b"line twenty\n")
    (package / "fresh.py").write_bytes(b"fresh = True\n")
    (package / "gone.py").unlink()
    commit(folder, "[Core] Rename, add and remove")
    assert world.run("refresh", str(folder)) == 0
