# SPDX-License-Identifier: Apache-2.0
"""Obtains archives through the user's own pip, checks them, and keeps the pinned one in a cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
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


def pinned_archive(release: Release) -> tuple[str, bytes]:
    """Name and content of the pinned archive that pip chooses, or of the one it chose before; checked on every use.

    A release with an sdist has one archive for all. A release of wheels has one for each Python and machine.
    """
    check_python(release)
    for name in _candidates(release):
        digest = release.archives[name]
        data = _read_cached(cache_dir() / digest / name)
        if data is not None and _sha256(data) == digest:
            return name, data
        if data is not None:
            note(f"the cached {name} is damaged; fetching it again")
    step(f"fetching sglang {release.version} through pip")
    # pip reads an sdist's metadata with upstream's build backend, so it may only get a file that it has checked.
    hashes = "".join(f" --hash=sha256:{digest}" for digest in release.archives.values())
    wheels = all(name.endswith(".whl") for name in release.archives)
    kind = "--only-binary" if wheels else "--no-binary"
    name, data = _pip_download(f"sglang=={release.version}{hashes}", release.version, kind, "sglang", release=release)
    if name not in release.archives:
        raise _wrong_file(name, release)
    check_hash(name, data, release)
    _store(cache_dir() / release.archives[name] / name, data)
    return name, data


def _candidates(release: Release) -> list[str]:
    """The pinned archives that this Python and machine can use."""
    tag, machine = python_tag(), platform.machine()
    return [
        name
        for name in release.archives
        if not name.endswith(".whl") or (f"-{tag}-" in name and name.endswith(f"_{machine}.whl"))
    ]


def python_tag() -> str:
    return "cp%d%d" % sys.version_info[:2]


def check_python(release: Release) -> None:
    """Refuses a Python that the release is not for; the lock's range is a lower bound."""
    least = tuple(int(part) for part in re.findall(r"\d+", release.python)[:2])
    if sys.version_info[:2] < least:
        raise OverlayError(
            f"SGLang {release.version} needs Python {release.python}, this is {sys.version.split()[0]}",
            "set PYTHON to such a Python, or choose another --release",
        )


def release_archive(version: str) -> tuple[str, bytes]:
    """Name and content of any published release: its wheel where there is one, or its sdist."""
    step(f"fetching sglang {version} through pip")
    return _pip_download(f"sglang=={version}", version)


def check_hash(name: str, data: bytes, release: Release) -> None:
    found = _sha256(data)
    if found != release.archives[name]:
        raise OverlayError(
            f"wrong hash: {name} has SHA-256 {found}, upstream.lock pins {release.archives[name]} for {release.name}",
            "do not use this file; fetch it again from a source you trust",
        )


def _wrong_file(name: str, release: Release) -> OverlayError:
    """pip chose a file for a Python or a machine that the lock has no archive for."""
    pythons = sorted({name.split("-")[2] for name in release.archives if name.endswith(".whl")})
    pinned = f"its wheels for {', '.join(pythons)}" if pythons else ", ".join(release.archives)
    return OverlayError(
        f"wrong file: pip chose {name} for this Python, upstream.lock pins {pinned}",
        "set PYTHON to one that a pinned file is for, or give such a file with --source",
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


def pip_command() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found:
            return [found]
    raise OverlayError(f"{sys.executable} has no pip", "install pip, or give an archive or a checkout with --source")


def _pip_download(
    requirement: str, version: str, *options: str, release: Release | None = None
) -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="sglang-hsa-") as folder:
        wanted, downloads = Path(folder, "requirements.txt"), Path(folder, "downloads")
        wanted.write_text(requirement + "\n", encoding="utf-8")
        command = [*pip_command(), "download", "--no-deps", "--no-input", "--progress-bar", "off", *options]
        command += ["--dest", str(downloads), "--requirement", str(wanted)]
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise pip_failure(done.stdout + done.stderr, version, release)
        found = sorted(downloads.iterdir())
        if len(found) != 1:
            raise OverlayError(f"pip fetched {len(found)} files for sglang {version}", "give an archive with --source")
        return found[0].name, found[0].read_bytes()


def pip_failure(output: str, version: str, release: Release | None) -> OverlayError:
    """pip's own report in one line, by what the user can do about it."""
    if "DO NOT MATCH THE HASHES" in output:
        other = set(re.findall(r"sglang-[\w.+!-]+\.(?:whl|tar\.gz)", output)) - release.archives.keys()
        if other:  # a wheel for each Python, or each platform
            return _wrong_file(min(other), release)
        return OverlayError(
            f"wrong hash: the package index serves another sglang {version} than upstream.lock pins",
            "check the index, or give the archive with --source",
        )
    if "from versions: none" not in output and "(from versions:" in output:
        if release and not _candidates(release):
            return OverlayError(
                f"the package index has no sglang {version} for {python_tag()} on {platform.system()} {platform.machine()}",
                "set PYTHON to another Python, or work on a machine that SGLang has wheels for",
            )
        return OverlayError(f"the package index has no sglang {version}", "check the version and pip's index settings")
    errors = [line for line in output.splitlines() if "ERROR:" in line] or ["no message"]
    return OverlayError(
        f"pip cannot fetch sglang {version} ({errors[0].strip()})",
        "check the network and pip's index and proxy settings, or give an archive or a checkout with --source",
    )
