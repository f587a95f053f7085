# SPDX-License-Identifier: Apache-2.0
"""A user's work in the tree is never lost without --force, and the tool says which files it means."""

from __future__ import annotations

import pytest
import world as worlds
from world import PRISTINE, replace

EDITS = {
    "patched": "python/sglang/alpha.py",
    "upstream": "python/sglang/__init__.py",
    "overlay": "python/sglang/added/__init__.py",
    "new by a patch": "python/sglang/fresh.py",
}


def edit(world, path: str) -> None:
    with open(world.tree / path, "ab") as out:
        out.write(b"# mine\n")


def outdate(world) -> None:
    worlds.write(world.root / "overlay", {"python/sglang/added/later.py": b"LATER = 1\n"})


@pytest.mark.parametrize("outdated", [False, True])
@pytest.mark.parametrize("path", EDITS.values(), ids=EDITS)
def test_apply_refuses_edited_files(world, error_line, path, outdated):
    assert world.run("apply") == 0
    edit(world, path)
    if outdated:
        outdate(world)
    before = world.everything()
    assert world.run("apply") == 1
    line = error_line()
    assert path in line and "--force" in line
    assert world.everything() == before


@pytest.mark.parametrize("path", EDITS.values(), ids=EDITS)
def test_apply_force_discards_edits_and_names_them(world, capfd, path):
    assert world.run("apply") == 0
    edit(world, path)
    assert world.run("apply", "--force") == 0
    assert f"discarding edits: {path}" in capfd.readouterr().err
    assert world.files() == world.expected()


@pytest.mark.parametrize("path", EDITS.values(), ids=EDITS)
def test_reverse_refuses_edited_files(world, error_line, path):
    assert world.run("apply") == 0
    edit(world, path)
    before = world.everything()
    assert world.run("reverse") == 1
    assert path in error_line()
    assert world.everything() == before


@pytest.mark.parametrize("path", EDITS.values(), ids=EDITS)
def test_reverse_force_restores_upstream(world, path):
    assert world.run("apply") == 0
    edit(world, path)
    assert world.run("reverse", "--force") == 0
    assert world.files() == PRISTINE


def test_removed_files_count_as_edits(world, error_line):
    assert world.run("apply") == 0
    (world.tree / "python/sglang/bare.txt").unlink()
    assert world.run("apply") == 1
    assert "python/sglang/bare.txt (removed)" in error_line()


def test_a_changed_executable_bit_counts_as_an_edit(world, error_line):
    assert world.run("apply") == 0
    (world.tree / "python/sglang/alpha.py").chmod(0o755)
    assert world.run("apply") == 1
    assert "python/sglang/alpha.py" in error_line()


def test_added_files_do_not_disturb_a_current_tree(world, capfd):
    assert world.run("apply") == 0
    worlds.write(world.tree, {"notes.txt": b"mine\n"})
    assert world.run("apply") == 0
    assert "notes.txt" in capfd.readouterr().err
    assert (world.tree / "notes.txt").read_bytes() == b"mine\n"


@pytest.mark.parametrize("command", ["apply", "reverse"])
def test_added_files_stop_a_replacement(world, error_line, command):
    assert world.run("apply") == 0
    worlds.write(world.tree, {"notes.txt": b"mine\n"})
    outdate(world)
    assert world.run(command) == 1
    assert "notes.txt (added)" in error_line()
    assert (world.tree / "notes.txt").exists()


def test_a_foreign_tree_is_not_overwritten(world, error_line):
    worlds.write(world.tree, {"python/sglang/__init__.py": b"somebody's fork\n"})
    assert world.run("apply") == 1
    assert "python/sglang/__init__.py" in error_line()
    assert world.files()["python/sglang/__init__.py"].data == b"somebody's fork\n"


def test_half_applied_by_hand_is_refused(world, error_line):
    """One file of a patch taken back: drifted, and named."""
    assert world.run("apply") == 0
    replace(world.tree / "python/sglang/bare.txt", b"changed", b"last")
    assert world.run("apply") == 1
    assert "python/sglang/bare.txt" in error_line()


def test_a_damaged_manifest_is_one_line(world, error_line):
    assert world.run("apply") == 0
    (world.tree / ".overlay/manifest.json").write_text("{")
    assert world.run("apply") == 1
    assert "manifest.json is damaged" in error_line()


def test_damaged_pristine_content_is_not_restored(world, error_line):
    assert world.run("apply") == 0
    for path in (world.tree / ".overlay/pristine").iterdir():
        path.write_bytes(b"rotten")
    before = world.everything()
    assert world.run("reverse") == 1
    assert "is damaged" in error_line()
    assert world.everything() == before
