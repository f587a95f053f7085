# SPDX-License-Identifier: Apache-2.0
"""reverse: upstream's bytes again, and nothing of ours left."""

from __future__ import annotations

import world as worlds
from world import PRISTINE, replace


def test_restores_every_byte(world):
    assert world.run("apply") == 0
    assert world.run("reverse") == 0
    assert world.files() == PRISTINE
    assert sorted(path.name for path in world.tree.iterdir()) == ["python"]
    assert world.leftovers() == []


def test_leaves_no_rejects_no_state_and_no_empty_folders(world):
    assert world.run("apply") == 0
    worlds.write(world.tree, {"python/sglang/added/__pycache__/x.pyc": b"bytecode"})
    assert world.run("reverse") == 0
    folders = {str(path.relative_to(world.tree)) for path in world.tree.rglob("*") if path.is_dir()}
    assert folders == {"python", "python/sglang", "python/sglang.egg-info"}


def test_restores_what_an_installation_rewrote(world):
    assert world.run("apply") == 0
    worlds.write(world.tree, {"python/sglang/_version.py": b"regenerated\n", "python/sglang.egg-info/new": b"x"})
    assert world.run("reverse") == 0
    assert world.files() == PRISTINE


def test_twice_is_fine(world, capfd):
    assert world.run("apply") == 0
    assert world.run("reverse") == 0
    capfd.readouterr()
    assert world.run("reverse") == 0
    assert "nothing to do" in capfd.readouterr().out


def test_apply_after_reverse(world):
    assert world.run("apply") == 0
    assert world.run("reverse") == 0
    assert world.run("apply") == 0
    assert world.files() == world.expected()


def test_needs_neither_series_nor_archive_of_the_day(world):
    """The tree holds what it needs: a changed repository and an empty cache do not matter."""
    assert world.run("apply") == 0
    for path in [*world.patches.rglob("*.patch"), world.patches / "series", *(world.root / "cache").rglob("*.tar.gz")]:
        path.unlink()
    replace(world.root / "overlay/python/sglang/added/__init__.py", b"1", b"2")
    assert world.run("reverse") == 0
    assert world.files() == PRISTINE


def test_dry_run(world):
    assert world.run("apply") == 0
    before = world.everything()
    assert world.run("reverse", "--dry-run") == 0
    assert world.everything() == before


def test_without_a_tree(world, error_line):
    assert world.run("reverse") == 1
    assert "there is nothing to reverse" in error_line()


def test_patched_tree_without_manifest_is_refused(world, error_line):
    worlds.write(world.tree, world.expected())
    assert world.run("reverse") == 1
    assert "this tool did not write" in error_line()
    assert world.files() == world.expected()
