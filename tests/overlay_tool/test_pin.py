# SPDX-License-Identifier: Apache-2.0
"""pin: a release goes into the lock as the index has it, all of it or nothing. pip is the real one, on a folder."""

from __future__ import annotations

import hashlib
import os
import platform
import sys

import pytest
from overlay_tool import fetch, index, lock
from overlay_tool.tree import Entry
from world import ARCHIVE, RELEASE, SDIST, VERSION, tar_bytes, write, zip_bytes

ORIGINAL_DOWNLOAD = fetch._pip_download
RUNNING = "cp%d%d" % sys.version_info[:2]
OTHER = "3.14" if sys.version_info[:2] != (3, 14) else "3.13"
OTHER_TAG = "cp" + OTHER.replace(".", "")
MACHINE = platform.machine()
NEW = {path: entry for path, entry in SDIST.items() if path.startswith("sglang/")} | {
    "sglang/alpha.py": Entry(b"new = True\n"),
}
METADATA = """\
Metadata-Version: 2.1
Name: sglang
Version: {version}
Requires-Python: {python}
Requires-Dist: torch_memory_saver==7
Requires-Dist: torch==2.99.1
Requires-Dist: torch<1; extra == "old"
"""
BACKEND = b"""\
import os

def prepare_metadata_for_build_wheel(folder, config=None):
    os.makedirs(os.path.join(folder, "sglang-11.0.dist-info"))
    with open("PKG-INFO", "rb") as made, open(os.path.join(folder, "sglang-11.0.dist-info/METADATA"), "wb") as out:
        out.write(made.read())
    return "sglang-11.0.dist-info"

def build_wheel(*_):
    raise SystemExit("nobody may build this")
"""


def metadata(version: str, python: str) -> Entry:
    return Entry(METADATA.format(version=version, python=python).encode())


def wheel_name(version: str, tag: str, machine: str, glibc: str = "2_34") -> str:
    return f"sglang-{version}-{tag}-{tag}-manylinux_{glibc}_{machine}.whl"


def wheel(version: str, tag: str, python: str) -> bytes:
    info = f"sglang-{version}.dist-info"
    text = f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    files = {f"{info}/METADATA": metadata(version, python), f"{info}/WHEEL": Entry(text), f"{info}/RECORD": Entry(b"")}
    return zip_bytes(NEW | {f"sglang/_core.{tag}.so": Entry(tag.encode())} | files)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def links(world, tmp_path, monkeypatch):
    """A folder that is all of pip's index, with releases of one wheel per Python and machine, or of one sdist."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(folder)), ("PIP_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setattr(fetch, "_pip_download", ORIGINAL_DOWNLOAD)
    monkeypatch.setattr(index, "PYTHONS", ("%d.%d" % sys.version_info[:2], OTHER))  # asking pip takes a second each time
    return folder


def publish(folder, version: str, pythons=(RUNNING,), python: str = ">=3.10") -> dict[str, bytes]:
    made = {wheel_name(version, tag, machine): wheel(version, tag, python) for tag in pythons for machine in index.MACHINES}
    write(folder, made)
    return made


def test_a_release_of_wheels(world, links, capfd):
    made = publish(links, "10.0")
    odd = wheel_name("10.0", OTHER_TAG, "aarch64", "2_28")
    made[odd] = wheel("10.0", OTHER_TAG, ">=3.10")
    write(links, {odd: made[odd], "sglang-10.1-py3-none-any.whl": wheel("10.1", "py3", ">=3.10")})
    before = lock.load(world.root)
    assert world.run("pin", "v10.0") == 0
    out = capfd.readouterr().out
    assert "upstream.lock knows v10.0: 3 archives, Python >=3.10, torch ==2.99.1" in out
    assert f"next: scripts/overlay.py rebase --release v10.0 --from {RELEASE} FOLDER" in out
    pins = lock.load(world.root)
    release = pins.release("v10.0")
    assert release.archives == {name: sha256(data) for name, data in made.items()}
    assert (release.version, release.tag, release.python, release.torch) == ("10.0", "v10.0", ">=3.10", "==2.99.1")
    assert release.identity == {"python/sglang/alpha.py": NEW["sglang/alpha.py"].blob} and len(release.sources) == 64
    assert release.repository == before.release(None).repository and release.files == {}
    assert pins.default == before.default and pins.releases[RELEASE] == before.releases[RELEASE]
    assert world.run("apply", "--release", "v10.0") == 0  # with an empty series
    assert world.files()["python/sglang/alpha.py"] == NEW["sglang/alpha.py"]


def test_a_release_that_has_an_sdist_is_that_alone(world, links):
    project = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {"PKG-INFO": metadata("11.0", ">=3.10"), "pyproject.toml": Entry(project), "backend.py": Entry(BACKEND), **NEW}
    archive = tar_bytes(files, top="sglang-11.0")
    write(links, {"sglang-11.0.tar.gz": archive, "sglang-11.0-py3-none-any.whl": wheel("11.0", "py3", ">=3.10")})
    assert world.run("pin", "11.0") == 0
    release = lock.load(world.root).release("v11.0")
    assert release.archives == {"sglang-11.0.tar.gz": sha256(archive)} and release.sources == ""
    assert (release.python, release.torch) == (">=3.10", "==2.99.1")


def unchanged(world, version: str) -> bool:
    """Nothing half done: no folder of the series, and the lock as it was."""
    names = {path.name for path in (world.root / "patches").iterdir()} | {path.name for path in world.root.glob(".upstream*")}
    return names == {RELEASE} and f"v{version}" not in (world.root / "upstream.lock").read_text()


def test_a_release_that_does_not_exist(world, links, error_line):
    publish(links, "10.0")
    assert world.run("pin", "10.2") == 1
    assert "the package index has no sglang 10.2; check the version" in error_line()
    assert unchanged(world, "10.2")


def test_an_index_without_any_release(world, links, error_line):
    assert world.run("pin", "10.2") == 1
    assert "pip cannot fetch sglang 10.2 (" in error_line()


@pytest.mark.parametrize("name", [VERSION, RELEASE])
def test_a_release_that_is_there_already(world, error_line, name):
    assert world.run("pin", name) == 1
    assert f"upstream.lock has {RELEASE} already; go on with rebase --release {RELEASE}" in error_line()


def test_a_series_without_a_section_is_not_overwritten(world, error_line):
    write(world.patches.parent, {"v10.0/series": b"mine\n"})
    assert world.run("pin", "10.0") == 1
    assert "patches/v10.0 exists, though upstream.lock has no such release" in error_line()
    assert (world.patches.parent / "v10.0/series").read_bytes() == b"mine\n"


def test_no_version_at_all(world, error_line):
    assert world.run("pin", "latest") == 1
    assert "latest is no version of SGLang; give one like 0.5.17" in error_line()


def published(python: str, **archives: str):
    return lambda version: index.Published(version, archives, python, "==2")


def test_a_release_for_another_python(world, links, error_line):
    publish(links, "10.0", python=">=3.99")
    assert world.run("pin", "10.0") == 1
    assert "SGLang 10.0 needs Python >=3.99, this is 3." in error_line()
    assert unchanged(world, "10.0")


def test_a_release_without_a_wheel_for_this_python(world, links, monkeypatch, error_line):
    publish(links, "10.0", [OTHER_TAG])
    write(links, {"sglang-9.9-py3-none-any.whl": wheel("9.9", "py3", ">=3.10")})
    assert world.run("pin", "10.0") == 1
    assert f"the package index has no sglang 10.0 for {RUNNING} on " in error_line()
    assert unchanged(world, "10.0")


def test_the_name_is_that_of_the_index(world, monkeypatch, error_line):
    """pip may spell a version in another way than it was asked for."""
    monkeypatch.setattr(index, "published", lambda version: index.Published(VERSION, {"a": "0" * 64}, ">=3.10", "==2"))
    assert world.run("pin", "9.8.7") == 1
    assert f"upstream.lock has {RELEASE} already" in error_line()


def test_a_failure_while_writing_leaves_nothing(world, monkeypatch, error_line):
    name, data = wheel_name("10.0", RUNNING, MACHINE), wheel("10.0", RUNNING, ">=3.10")
    write(world.root / "cache" / sha256(data), {name: data})
    monkeypatch.setattr(index, "published", published(">=3.10", **{name: sha256(data)}))
    monkeypatch.setattr("overlay_tool.pin.os.replace", raise_full)
    assert world.run("pin", "10.0") == 1
    assert "no space left" in error_line() and unchanged(world, "10.0")


def raise_full(*_):
    raise OSError(28, "No space left on device", "upstream.lock")


def test_an_environment_that_names_the_release_is_no_obstacle(world, monkeypatch, error_line):
    monkeypatch.setenv(lock.CHOICE, "v10.0")
    assert world.run("pin", "latest") == 1
    assert "latest is no version" in error_line()


def test_an_index_without_hashes(world, monkeypatch, error_line):
    report = {"download_info": {"url": "https://example.invalid/sglang-10.0-py3-none-any.whl"}, "metadata": {}}
    monkeypatch.setattr(index, "_pip", lambda *_: (report, ""))
    assert world.run("pin", "10.0") == 1
    assert "the package index gives no SHA-256 for sglang-10.0-py3-none-any.whl" in error_line()


def test_a_pip_that_is_too_old(world, monkeypatch, error_line):
    old = fetch.subprocess.CompletedProcess([], 2, "", "no such option: --report")
    monkeypatch.setattr(index.subprocess, "run", lambda *_, **__: old)
    assert world.run("pin", "10.0") == 1
    assert "use pip 22.2 or later" in error_line()


def test_versions_in_order():
    names = ["0.5.9", "0.5.10.dev1", "0.5.10rc0", "0.5.10rc1", "0.5.10", "0.5.10.post1", "0.5.11", "0.5.11.1", "0.6"]
    assert sorted(reversed(names), key=lock.version_key) == names


def test_the_lock_is_ordered_by_version(world):
    pins = lock.load(world.root)
    made = pins.release(None)
    for version in ("10.2", "9.1", "10.1"):
        pins = pins.with_release(lock.replace(made, name=f"v{version}", version=version))
    assert list(pins.releases) == ["v9.1", RELEASE, "v10.1", "v10.2"]
    assert pins.before("10.1").name == RELEASE and pins.before("9.1") is None
    assert ARCHIVE in pins.releases[RELEASE].archives
