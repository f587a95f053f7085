# SPDX-License-Identifier: Apache-2.0
"""Obtains archives through the user's own pip, checks them, and keeps the pinned one in a cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .console import OverlayError, note, step
from .lock import Release


def cache_dir() -> Path:
    own = os.environ.get("SGLANG_HSA_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglang-hsa"


def pinned_archive(release: Release) -> bytes:
    """The pinned archive, from the cache or through pip; its SHA-256 is checked on every use."""
    cached = cache_dir() / release.sha256 / release.archive
    data = _read_cached(cached)
    if data is not None and _sha256(data) == release.sha256:
        return data
    if data is not None:
        note(f"the cached {release.archive} is damaged; fetching it again")
    step(f"fetching {release.archive} through pip")
    # pip reads an sdist's metadata with upstream's build backend, so it may only get a file that it has checked.
    requirement = f"sglang=={release.version} --hash=sha256:{release.sha256}"
    kind = "--only-binary" if release.archive.endswith(".whl") else "--no-binary"
    data = _pip_download(requirement, release.version, kind, "sglang", archive=release.archive)[1]
    check_hash(release.archive, data, release)
    _store(cached, data)
    return data


def release_archive(version: str) -> tuple[str, bytes]:
    """Name and content of any published release: its wheel where there is one, or its sdist."""
    step(f"fetching sglang {version} through pip")
    return _pip_download(f"sglang=={version}", version)


def check_hash(name: str, data: bytes, release: Release) -> None:
    found = _sha256(data)
    if found != release.sha256:
        raise OverlayError(
            f"wrong hash: {name} has SHA-256 {found}, upstream.lock pins {release.sha256} for {release.name}",
            "do not use this file; fetch it again from a source you trust",
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_cached(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _store(path: Path, data: bytes) -> None:
    """Keeps the archive; a cache that cannot be written costs a download, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            part.write(data)
        os.replace(part.name, path)
    except OSError as error:
        note(f"the archive is not kept in the cache ({error})")


def _pip_command() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found:
            return [found]
    raise OverlayError(f"{sys.executable} has no pip", "install pip, or give an archive or a checkout with --source")


def _pip_download(requirement: str, version: str, *options: str, archive: str = "") -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="sglang-hsa-") as folder:
        wanted, downloads = Path(folder, "requirements.txt"), Path(folder, "downloads")
        wanted.write_text(requirement + "\n", encoding="utf-8")
        command = [*_pip_command(), "download", "--no-deps", "--no-input", "--progress-bar", "off", *options]
        command += ["--dest", str(downloads), "--requirement", str(wanted)]
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise _pip_failure(done.stdout + done.stderr, version, archive)
        found = sorted(downloads.iterdir())
        if len(found) != 1:
            raise OverlayError(f"pip fetched {len(found)} files for sglang {version}", "give an archive with --source")
        return found[0].name, found[0].read_bytes()


def _pip_failure(output: str, version: str, archive: str) -> OverlayError:
    """pip's own report in one line, by what the user can do about it."""
    if "DO NOT MATCH THE HASHES" in output:
        other = set(re.findall(r"sglang-[\w.+!-]+\.(?:whl|tar\.gz)", output)) - {archive}
        if other:  # a wheel for each Python, or each platform
            return OverlayError(
                f"wrong file: pip chose {min(other)} for this Python, upstream.lock pins {archive}",
                "set PYTHON to one that the pinned file is for, or give that file with --source",
            )
        return OverlayError(
            f"wrong hash: the package index serves another sglang {version} than upstream.lock pins",
            "check the index, or give the archive with --source",
        )
    if "from versions: none" not in output and "(from versions:" in output:
        return OverlayError(f"the package index has no sglang {version}", "check the version and pip's index settings")
    errors = [line for line in output.splitlines() if "ERROR:" in line] or ["no message"]
    return OverlayError(
        f"pip cannot fetch sglang {version} ({errors[0].strip()})",
        "check the network and pip's index and proxy settings, or give an archive or a checkout with --source",
    )
