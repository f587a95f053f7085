# SPDX-License-Identifier: Apache-2.0
"""Several releases in one lock: wheels alone, the choice among them, one tree that changes from one to another."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import shutil
import subprocess
import sys

import pytest
from overlay_tool import fetch, lock, sources
from overlay_tool.tree import Entry
from world import OVERLAY, RELEASE, SDIST, write, zip_bytes

ORIGINAL_DOWNLOAD = fetch._pip_download
LATER = "v10.0"
RUNNING = "cp%d%d" % sys.version_info[:2]
INFO = "sglang-10.0.dist-info"
SOURCES = {path: entry for path, entry in SDIST.items() if path.startswith("sglang/")} | {
    "sglang/later.py": Entry(b"later = True\n"),
    f"{INFO}/METADATA": Entry(b"Metadata-Version: 2.4\nName: sglang\nVersion: 10.0\n"),
}


def wheel_name(python: str, machine: str = platform.machine()) -> str:
    return f"sglang-10.0-{python}-{python}-manylinux_2_34_{machine}.whl"


def wheel(python: str, **changes: bytes) -> bytes:
    """Two wheels of a release differ in what was compiled for them, and in their tags."""
    files = SOURCES | {f"sglang/_core.{python}.so": Entry(python.encode()), f"{INFO}/WHEEL": Entry(python.encode())}
    return zip_bytes(files | {f"sglang/{name}.py": Entry(data) for name, data in changes.items()})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def two(world, monkeypatch):
    """A world whose lock has a release of wheels beside the one with an sdist, which stays the default."""
    monkeypatch.delenv(lock.CHOICE, raising=False)
    names = {wheel_name(python): wheel(python) for python in (RUNNING, "cp39")}
    placed = sources.place(SOURCES, "the wheel")
    later = dataclasses.replace(
        world.release(), name=LATER, version="10.0", tag=LATER, files={},
        sources=sources.sources_digest(placed), archives={name: sha256(data) for name, data in names.items()},
    )  # fmt: skip
    pins = lock.load(world.root).with_release(later)
    write(world.root, {
        "upstream.lock": lock.dump(pins).encode(),
        f"patches/{LATER}/series": b"",
        **{f"cache/{sha256(data)}/{name}": data for name, data in names.items()},
    })
    return world


def test_the_lock_survives_being_written(two):
    text = (two.root / "upstream.lock").read_text()
    assert lock.dump(lock.parse(text)) == text


@pytest.mark.parametrize("name", [LATER, "10.0"])
def test_a_release_of_wheels_takes_that_of_this_python(two, name):
    assert two.run("apply", "--release", name) == 0
    files = two.files()
    assert files[f"python/sglang/_core.{RUNNING}.so"].data == RUNNING.encode()
    assert {f"python/{path}" for path in SOURCES} <= files.keys() and OVERLAY.keys() <= files.keys()


def test_the_environment_chooses_and_an_argument_goes_first(two, monkeypatch):
    monkeypatch.setenv(lock.CHOICE, LATER)
    assert two.run("apply") == 0 and "python/sglang/later.py" in two.files()
    assert two.run("apply", "--release", RELEASE) == 0 and two.files() == two.expected()


def test_an_unknown_release_is_one_line(two, monkeypatch, error_line):
    monkeypatch.setenv(lock.CHOICE, "v11.0")
    assert two.run("apply") == 1
    assert f"upstream.lock has no release v11.0; it knows {RELEASE}, {LATER}" in error_line()
    assert not two.tree.exists()


def test_one_tree_changes_from_one_release_to_another(two, capfd):
    assert two.run("apply") == 0
    write(two.tree, {"python/sglang.egg-info/PKG-INFO": b"of the first release"})
    assert two.run("apply", "--release", LATER) == 0
    assert f"sglang/ changes from {RELEASE} to {LATER}" in capfd.readouterr().err
    # Nothing of the first is left; an installation of it is none of the second.
    left = ["python/sglang/fresh.py", "python/sglang.egg-info/PKG-INFO"]
    assert not [path for path in left if (two.tree / path).exists()]
    assert two.run("verify") == 0  # of what the tree is
    assert two.run("apply") == 0 and two.files() == two.expected()


def test_edits_stop_the_change(two, error_line):
    assert two.run("apply") == 0
    write(two.tree, {"python/sglang/alpha.py": b"mine\n"})
    before = two.everything()
    assert two.run("apply", "--release", LATER) == 1
    assert "has edits that would be lost: python/sglang/alpha.py" in error_line()
    assert two.everything() == before


def test_reverse_gives_the_release_that_the_tree_is_of(two):
    assert two.run("apply", "--release", LATER) == 0
    assert two.run("reverse") == 0
    assert "python/sglang/later.py" in two.files() and not OVERLAY.keys() & two.files().keys()


def test_a_file_for_one_release_is_in_its_tree_alone(two):
    write(two.root / "overlay" / LATER, {"python/sglang/one.py": b"one\n"})
    assert two.run("apply") == 0 and two.files() == two.expected()
    assert two.run("apply", "--release", LATER) == 0
    assert (two.tree / "python/sglang/one.py").read_bytes() == b"one\n"
    assert not (two.tree / LATER).exists()


def test_a_file_for_one_and_for_all_is_refused(two, error_line):
    write(two.root / "overlay" / LATER, {"python/sglang/added/__init__.py": b"\n"})
    assert two.run("apply") == 0
    assert two.run("apply", "--release", LATER) == 1
    assert f"overlay/{LATER}/python/sglang/added/__init__.py exists for all releases too" in error_line()


def test_a_wheel_of_a_python_that_the_lock_lacks_is_known_by_its_sources(two, tmp_path, error_line):
    (tmp_path / wheel_name("cp399")).write_bytes(wheel("cp399"))
    assert two.run("apply", "--release", LATER, "--source", str(tmp_path / wheel_name("cp399"))) == 0
    assert (two.tree / "python/sglang/_core.cp399.so").exists()
    shutil.rmtree(two.tree)
    (tmp_path / wheel_name("cp398")).write_bytes(wheel("cp398", bare=b"more\n"))
    assert two.run("apply", "--release", LATER, "--source", str(tmp_path / wheel_name("cp398"))) == 1
    line = error_line()
    assert f"wrong sources: those of {wheel_name('cp398')}" in line and "hash" not in line


def test_a_pinned_wheel_with_other_content_is_a_wrong_hash(two, tmp_path, error_line):
    (tmp_path / wheel_name("cp39")).write_bytes(wheel("cp39", bare=b"more\n"))
    assert two.run("apply", "--release", LATER, "--source", str(tmp_path / wheel_name("cp39"))) == 1
    assert f"wrong hash: {wheel_name('cp39')} has SHA-256" in error_line()


@pytest.fixture
def pip(two, monkeypatch):
    """pip replaced by a function that says or brings what it is told to; the cache is empty. Returns what pip was asked."""
    shutil.rmtree(two.root / "cache")
    monkeypatch.setattr(fetch, "_pip_download", ORIGINAL_DOWNLOAD)
    asked = []

    def install(output="", archive=None):
        def run(command, cwd, **_):
            asked.append((command, (fetch.Path(cwd) / "requirements.txt").read_text()))
            if archive:
                write(fetch.Path(command[command.index("--dest") + 1]), {archive[0]: archive[1]})
            return subprocess.CompletedProcess(command, 0 if archive else 1, stdout="", stderr=output)

        monkeypatch.setattr(fetch.subprocess, "run", run)
        return asked

    return install


def test_pip_may_choose_among_the_pinned_wheels(two, pip):
    asked = pip(archive=(wheel_name(RUNNING), wheel(RUNNING)))
    assert two.run("apply", "--release", LATER) == 0
    command, requirement = asked[0]
    assert "--only-binary" in command
    assert all(f"--hash=sha256:{digest}" in requirement for digest in lock.load(two.root).release(LATER).archives.values())
    shutil.rmtree(two.tree)
    assert two.run("apply", "--release", LATER) == 0 and len(asked) == 1  # it is in the cache


def test_a_python_that_the_lock_has_no_wheel_for(two, pip, error_line):
    other = wheel_name("cp399")
    pip(output=(
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
        f"    sglang==10.0 from https://example.invalid/{other}:\n        Expected sha256 00\n"
    ))
    assert two.run("apply", "--release", LATER) == 1
    line = error_line()
    assert f"wrong file: pip chose {other} for this Python, upstream.lock pins its wheels for" in line
    assert "wrong hash" not in line and not two.tree.exists()


def test_a_python_that_the_index_has_no_wheel_for(two, pip, monkeypatch, error_line):
    pip(output="ERROR: Could not find a version that satisfies the requirement sglang==10.0 (from versions: 0.4.0)\n")
    monkeypatch.setattr(fetch, "python_tag", lambda: "cp399")
    assert two.run("apply", "--release", LATER) == 1
    line = error_line()
    assert "the package index has no sglang 10.0 for cp399 on " in line and "set PYTHON" in line


def test_a_python_that_is_too_old_for_a_release(two, error_line):
    pins = lock.load(two.root)
    later = dataclasses.replace(pins.release(LATER), python=">=3.99")
    write(two.root, {"upstream.lock": lock.dump(pins.with_release(later)).encode()})
    assert two.run("apply", "--release", LATER) == 1
    assert "SGLang 10.0 needs Python >=3.99, this is 3." in error_line()
