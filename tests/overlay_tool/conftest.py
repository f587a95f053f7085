# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import world as worlds
from overlay_tool import fetch


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """The synthetic repository, made once through checkout and refresh."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_HSA_CACHE", str(folder / "repo/cache"))
        patch.delenv("SGLANG_HSA_RELEASE", raising=False)
        worlds.develop(worlds.create(folder / "repo"), folder / "dev")
    return folder


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    """The release that the suite runs for is none of the synthetic repository."""
    monkeypatch.delenv("SGLANG_HSA_RELEASE", raising=False)


@pytest.fixture(autouse=True)
def keep_signals():
    """main() installs handlers; a test run must keep its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def world(template, tmp_path, monkeypatch) -> worlds.World:
    """A repository of its own per test, offline: the archive is in the cache and pip must not be asked."""
    shutil.copytree(template / "repo", tmp_path / "repo")
    monkeypatch.setenv("SGLANG_HSA_CACHE", str(tmp_path / "repo/cache"))
    monkeypatch.setattr(fetch, "_pip_download", _no_network)
    return worlds.World(tmp_path / "repo")


def _no_network(*_, **__):
    raise AssertionError("this test asked pip for a download")


@pytest.fixture
def dev(template, tmp_path) -> Path:
    """A developer's clone with one commit per patch."""
    return Path(shutil.copytree(template / "dev", tmp_path / "dev"))


@pytest.fixture
def error_line(capfd):
    """The one error line of a failed run; fails the test if there is a traceback or more than one."""

    def read() -> str:
        text = capfd.readouterr().err
        assert "Traceback" not in text
        lines = [line for line in text.splitlines() if line.startswith("overlay: error: ")]
        assert len(lines) == 1, text
        return lines[0]

    return read
