# SPDX-License-Identifier: Apache-2.0
"""Asks the package index, through the user's own pip, which files a release has. Nothing is installed or kept."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .console import OverlayError, step
from .fetch import pip_command, pip_failure

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
_GLIBC = range(41, 16, -1)  # minor versions of glibc that wheels for Linux are built against, pip's choice first
_AT_ONCE = 4  # pip is asked for as many wheels at a time


@dataclass(frozen=True)
class Published:
    """What the index says of one release: archives by name with their SHA-256, and two lines of the metadata."""

    version: str
    archives: dict[str, str]
    python: str
    torch: str


def published(version: str) -> Published:
    """The sdist of a release, or else a wheel for each Python and machine; raises OverlayError for an unknown release."""
    step(f"asking pip for the archives of sglang {version}")
    sdist, said = _ask(version, "--no-binary", "sglang")
    if sdist:
        return _published(version, [sdist])
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = [(python, machine) for python in PYTHONS for machine in MACHINES]
        answers = list(pool.map(lambda pair: _ask(version, *_wheel_options(*pair)), asked))
    wheels = [found for found, _ in answers if found]
    if not wheels:
        said = [said, *(output for _, output in answers)]
        lists_others = [output for output in said if "from versions: none" not in output]  # says more than one without any
        raise pip_failure((lists_others or said)[0], version, None)
    return _published(version, wheels)


def newest() -> str:
    """Version of the newest release on the index that is not a release candidate."""
    found, said = _pip("sglang", *_wheel_options(PYTHONS[-3], MACHINES[0]))
    if not found:
        raise pip_failure(said, "at all", None)
    return found["metadata"]["version"]


def _wheel_options(python: str, machine: str) -> list[str]:
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC] + [f"manylinux2014_{machine}"]
    return ["--only-binary", ":all:", "--python-version", python, *(f"--platform={name}" for name in platforms)]


def _ask(version: str, *options: str) -> tuple[dict | None, str]:
    return _pip(f"sglang=={version}", *options)


def _pip(requirement: str, *options: str) -> tuple[dict | None, str]:
    """pip's report on the one archive that it would install, or None and what it said where it finds none."""
    with tempfile.TemporaryDirectory(prefix="sglang-hsa-") as folder:
        command = [*pip_command(), "install", "--dry-run", "--no-deps", "--ignore-installed", "--no-input", "--quiet"]
        command.append("--ignore-requires-python")  # what it says goes into the lock; pip would compare it with this Python
        # Without --target pip refuses to look for another platform; a dry run writes nothing there.
        command += ["--target", f"{folder}/nothing", "--report", f"{folder}/report.json", *options, requirement]
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        output = done.stdout + done.stderr
        if done.returncode == 0:
            with open(f"{folder}/report.json", encoding="utf-8") as report:
                return json.load(report)["install"][0], output
    if "no such option" in output:
        raise OverlayError("this pip cannot report what it would install", "use pip 22.2 or later")
    if "(from versions:" not in output:
        raise pip_failure(output, requirement.partition("==")[2] or "at all", None)
    return None, output


def _published(asked: str, found: Iterable[dict]) -> Published:
    archives: dict[str, str] = {}
    for item in found:
        name = item["download_info"]["url"].split("#")[0].split("?")[0].rsplit("/", 1)[-1]
        info = item["download_info"].get("archive_info", {})
        digest = info.get("hashes", {}).get("sha256") or info.get("hash", "").removeprefix("sha256=")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise OverlayError(f"the package index gives no SHA-256 for {name}", "use an index that does")
        archives[name] = digest
        metadata = item["metadata"]
    torch = _requirement("torch", metadata.get("requires_dist", []))
    return Published(metadata.get("version", asked), archives, metadata.get("requires_python", ""), torch)


def _requirement(package: str, lines: list[str]) -> str:
    """The version range that a package's metadata asks for; one without a condition goes first."""
    rows = [re.fullmatch(rf"{package}(?![\w.-])\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(;.*)?", line) for line in lines]
    fitting = [row for row in rows if row and "extra ==" not in (row.group(2) or "")]
    chosen = min(fitting, key=lambda row: bool(row.group(2)), default=None)
    return chosen.group(1).replace(" ", "") if chosen else ""
