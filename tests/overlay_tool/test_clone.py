# SPDX-License-Identifier: Apache-2.0
"""The repository works from any clone: git that turns line ends, odd paths, no identity, a strict umask."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import world as worlds

ROOT = Path(__file__).resolve().parents[2]


def test_a_clone_that_git_would_give_other_line_ends(tmp_path):
    home, clone = tmp_path / "home", tmp_path / "clone (äöü)"
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env.update(HOME=str(home), XDG_CONFIG_HOME=str(home), GIT_CONFIG_NOSYSTEM="1", XDG_CACHE_HOME=str(home / "cache"))

    def run(*command, **options):
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, umask=0o077, **options)

    options = "-c", "core.autocrlf=true", "-c", "safe.directory=*"
    done = run("git", *options, "clone", "-q", "--no-local", str(ROOT), str(clone))
    assert done.returncode == 0, done.stderr
    run("git", "config", "core.autocrlf", "true", cwd=clone)
    ends = run("git", "ls-files", "--eol", cwd=clone).stdout
    assert ends.count("w/lf") > 300 and "w/crlf" not in ends and "w/mixed" not in ends
    assert run("git", "status", "--short", cwd=clone).stdout == ""
    done = run(str(clone / "scripts" / "apply_overlay.sh"), "status")  # reads lock, series and patches
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no patched tree built yet" in done.stdout and "not applied" in done.stdout


@pytest.fixture
def odd_user(tmp_path, monkeypatch):
    """Nobody's name is in git's configuration, line ends are turned, and new files are for their owner alone."""
    home = tmp_path / "home (äöü)"
    home.mkdir()
    (home / ".gitconfig").write_text("[core]\n\tautocrlf = true\n[user]\n\tuseConfigOnly = true\n")
    for name in [name for name in os.environ if name.startswith("GIT_") or name == "EMAIL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_every_command_works_for_an_odd_user_on_an_odd_path(template, tmp_path, monkeypatch, odd_user):
    root = Path(shutil.copytree(template / "repo", tmp_path / "a repository (äöü)"))
    monkeypatch.setenv("SGLANG_HSA_CACHE", str(root / "cache"))
    world, dev = worlds.World(root), tmp_path / "a checkout (äöü)"
    done = subprocess.run(["git", "var", "GIT_AUTHOR_IDENT"], cwd=tmp_path, capture_output=True)
    assert done.returncode != 0, "git knows an identity"
    assert world.run("apply") == 0 and world.files() == world.expected()
    assert world.run("verify") == 0 and world.run("apply") == 0
    assert stat.S_IMODE((world.tree / "python/sglang/run.sh").stat().st_mode) == 0o700
    assert stat.S_IMODE((world.tree / "python/sglang/alpha.py").stat().st_mode) == 0o600
    series = {path: path.read_bytes() for path in world.patches.rglob("*") if path.is_file()}
    assert world.run("checkout", str(dev)) == 0 and world.run("refresh", str(dev)) == 0
    assert {path: path.read_bytes() for path in world.patches.rglob("*") if path.is_file()} == series
    assert world.run("reverse") == 0 and world.files() == worlds.PRISTINE
