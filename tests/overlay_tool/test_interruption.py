# SPDX-License-Identifier: Apache-2.0
"""Whatever stops a run, the tree is the old one or the new one, byte for byte."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import world as worlds
from overlay_tool import build, transaction
from world import PRISTINE, replace

POINTS = ["staged", "half written", "written", "verified", "before swap", "between renames", "after swap"]

# Runs the tool in a process of its own that acts at one moment of the transaction.
DRIVER = """
import os, signal, sys, time
scripts, root, point, action, *argv = sys.argv[1:]
sys.path.insert(0, scripts)
import overlay
from pathlib import Path
from overlay_tool import transaction

def reached(at):
    if at == point:
        if action == "wait":
            print("waiting", flush=True)
            time.sleep(60)
        os.kill(os.getpid(), getattr(signal, action))

transaction.reached = reached
if point == "between renames":
    transaction._exchange = lambda one, other: False
sys.exit(overlay.main(argv, Path(root)))
"""


def driver(world, point: str, action: str, *argv: str) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(worlds.SCRIPTS), str(world.root), point, action, *argv]


def outdate(world) -> None:
    replace(world.root / "overlay/python/sglang/added/__init__.py", b"1", b"2")


@pytest.mark.parametrize(
    "command,point",
    [("apply", point) for point in POINTS]
    + [("reverse", point) for point in POINTS if point not in ("written", "verified")],
)
def test_killed_run_leaves_the_old_or_the_new_tree(world, command, point):
    assert world.run("apply") == 0
    if command == "apply":
        outdate(world)
    old = world.everything()
    done = subprocess.run(driver(world, point, "SIGKILL", command), capture_output=True)
    assert done.returncode == -signal.SIGKILL
    if point == "between renames":
        assert not world.tree.exists()
    elif point == "after swap":
        assert world.everything() != old
    else:
        assert world.everything() == old
    assert world.run("apply") == 0
    assert world.run("verify") == 0
    assert world.leftovers() == []


def test_killed_first_run_leaves_no_tree(world):
    done = subprocess.run(driver(world, "half written", "SIGKILL", "apply"), capture_output=True)
    assert done.returncode == -signal.SIGKILL and not world.tree.exists()
    assert world.run("apply") == 0
    assert world.files() == world.expected() and world.leftovers() == []


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("point", POINTS)
def test_interrupted_run_says_which_tree_stands(world, point, number):
    assert world.run("apply") == 0
    outdate(world)
    old = world.everything()
    done = subprocess.run(driver(world, point, number, "apply"), capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    if point == "after swap":
        assert "the new tree is in place" in done.stderr
        assert world.run("verify") == 0
    else:
        assert "interrupted; the tree is what it was" in done.stderr
        assert world.everything() == old
    assert world.leftovers() == []


@pytest.mark.parametrize("code,text", [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left")])
@pytest.mark.parametrize("exists", [False, True])
def test_disk_full_in_the_middle(world, monkeypatch, error_line, code, text, exists):
    if exists:
        assert world.run("apply") == 0
        outdate(world)
    old = world.everything()
    fail_after(monkeypatch, 5, code)
    assert world.run("apply") == 1
    assert text in error_line()
    assert world.everything() == old and world.tree.exists() == exists and world.leftovers() == []


def test_disk_full_while_reversing(world, monkeypatch, error_line):
    assert world.run("apply") == 0
    old = world.everything()
    fail_after(monkeypatch, 5, errno.ENOSPC)
    assert world.run("reverse") == 1
    assert "no space left" in error_line()
    assert world.everything() == old


def fail_after(monkeypatch, count: int, code: int) -> None:
    original, calls = build.write_entry, []

    def write_entry(root, path, entry):
        calls.append(path)
        if len(calls) > count:
            raise OSError(code, os.strerror(code), str(root / path))
        original(root, path, entry)

    monkeypatch.setattr(build, "write_entry", write_entry)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_read_only_folder(world, monkeypatch, error_line, code):
    """Simulated, because a read-only mode does not stop the superuser."""

    def refuse(path, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(path))

    assert world.run("apply") == 0
    outdate(world)
    old = world.everything()
    monkeypatch.setattr(transaction.Path, "mkdir", refuse)
    assert world.run("apply") == 1
    line = error_line()
    assert "cannot write" in line and "--tree" in line
    assert world.everything() == old


@pytest.mark.skipif(os.geteuid() == 0, reason="modes do not bind the superuser; the simulated case covers this path")
def test_read_only_folder_for_real(world, error_line):
    world.root.chmod(0o555)
    try:
        assert world.run("apply") == 1
    finally:
        world.root.chmod(0o755)
    assert "cannot write" in error_line()


def test_read_only_files_and_folders_in_the_tree_are_replaced(world):
    """A tree is exchanged as a whole, so read-only parts neither stop it nor survive half."""
    assert world.run("apply") == 0
    outdate(world)
    (world.tree / "python/sglang/alpha.py").chmod(0o444)
    (world.tree / "python/sglang").chmod(0o555)
    assert world.run("apply") == 0
    assert world.run("verify") == 0 and world.leftovers() == []


def test_a_write_that_does_not_reach_the_disk_is_noticed(world, monkeypatch, error_line):
    original = build.write_entry

    def corrupt(root, path, entry):
        original(root, path, entry._replace(data=b"") if path.endswith("alpha.py") else entry)

    monkeypatch.setattr(build, "write_entry", corrupt)
    assert world.run("apply") == 1
    assert "alpha.py did not reach the disk as written" in error_line()
    assert not world.tree.exists() and world.leftovers() == []


def test_a_failing_second_rename_puts_the_tree_back(world, monkeypatch, error_line):
    assert world.run("apply") == 0
    outdate(world)
    old, original = world.everything(), transaction.Path.rename

    def rename(path, target):
        if path.name.endswith("overlay-stage"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))
        return original(path, target)

    monkeypatch.setattr(transaction, "_exchange", lambda one, other: False)
    monkeypatch.setattr(transaction.Path, "rename", rename)
    assert world.run("apply") == 1
    assert "cross-device" in error_line()
    assert world.everything() == old and world.leftovers() == []


def test_two_runs_at_a_time(world, error_line):
    assert world.run("apply") == 0
    outdate(world)
    first = subprocess.Popen(driver(world, "verified", "wait", "apply"), stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "waiting\n"
        old = world.everything()
        for command in ("apply", "reverse"):
            assert world.run(command) == 1
            assert "another run is working on this tree" in error_line()
        assert world.everything() == old
    finally:
        first.kill()
        first.wait()
    deadline = time.monotonic() + 5
    while world.run("apply") != 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert world.run("verify") == 0 and world.leftovers() == []


def test_a_tree_set_aside_between_two_renames_comes_back(world):
    assert world.run("apply") == 0
    os.rename(world.tree, world.tree.with_name(".sglang.overlay-old"))
    assert world.run("reverse") == 0
    assert world.files() == PRISTINE and world.leftovers() == []
