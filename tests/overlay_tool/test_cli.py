# SPDX-License-Identifier: Apache-2.0
"""The front door: default command, exit codes, one line per failure."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
import world as worlds


@pytest.mark.parametrize(
    "argv", [["nonsense"], ["apply", "--nonsense"], ["drift"], ["checkout"], ["refresh"], ["apply", "--tree"], ["pin"], ["rebase"]]
)
def test_wrong_usage_exits_2_with_one_line(world, error_line, argv):
    with pytest.raises(SystemExit) as exit_:
        world.run(*argv)
    assert exit_.value.code == 2
    assert "--help" in error_line()


@pytest.mark.parametrize("command", [["apply"], ["status"], ["verify"], ["drift", "."], ["checkout", "x"], ["rebase", "x"]])
def test_an_unknown_release_is_an_error(world, error_line, command):
    assert world.run(command[0], "--release", "v1.1.1", *command[1:]) == 1
    assert "upstream.lock has no release v1.1.1" in error_line()
    assert not world.tree.exists()


def test_a_release_may_be_named_with_or_without_v(world):
    assert world.run("apply", "--release", worlds.VERSION) == 0
    assert world.run("verify", "--release", worlds.RELEASE) == 0


def test_broken_lock_is_one_line(world, error_line):
    (world.root / "upstream.lock").write_text("default = ")
    assert world.run("apply") == 1
    assert "is not valid TOML" in error_line()


def test_missing_lock_is_one_line(world, error_line):
    (world.root / "upstream.lock").unlink()
    assert world.run("apply") == 1
    assert "upstream.lock is missing" in error_line()


@pytest.fixture
def front_door(world):
    shutil.copytree(worlds.SCRIPTS, world.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*argv, cwd="/", **env):
        command = [str(world.root / "scripts/apply_overlay.sh"), *argv]
        return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)

    return run


def test_front_door_applies_from_any_folder(world, front_door):
    done = front_door(cwd="/")
    assert done.returncode == 0, done.stderr
    assert world.files() == world.expected()
    assert "applying core/change-alpha.patch" in done.stderr and "pip install -e" in done.stdout


def test_front_door_works_inside_a_git_repository_and_from_its_subfolder(world, front_door):
    """The failure that made a CI vacuous: patching below a folder of another repository."""
    worlds.run_git(world.root, "init", "--quiet")
    done = front_door(cwd=world.root / "patches")
    assert done.returncode == 0, done.stderr
    assert world.files() == world.expected()


def test_front_door_passes_options_and_commands(world, front_door):
    assert front_door("--dry-run", "--quiet").stderr == ""
    assert not world.tree.exists()
    assert "patched upstream lines" in front_door("status").stdout
    assert front_door("nonsense").returncode == 2


def test_a_reader_that_has_seen_enough_is_no_error(world, front_door):
    """`overlay.py status | head -1`"""
    read, write = os.pipe()
    os.close(read)
    try:
        command = [str(world.root / "scripts/apply_overlay.sh"), "status"]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_front_door_without_python(world, front_door):
    done = front_door(PYTHON="no-such-python")
    assert done.returncode == 1 and done.stderr.startswith("overlay: error: no-such-python was not found")


def test_an_environment_with_git_variables_does_not_matter(world, front_door, tmp_path):
    done = front_door("checkout", str(tmp_path / "made"), GIT_DIR="/nonexistent", GIT_WORK_TREE="/nonexistent")
    assert done.returncode == 0, done.stderr
    assert worlds.run_git(tmp_path / "made", "rev-list", "--count", "HEAD").strip() == "4"
