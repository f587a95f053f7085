# SPDX-License-Identifier: Apache-2.0
"""apply: what it builds, and that it does so once."""

from __future__ import annotations

import json
import os

import pytest
import world as worlds
from overlay_tool import build, lock
from overlay_tool.tree import Entry, is_generated
from world import PRISTINE, RELEASE, replace


def test_builds_exactly_pin_series_and_overlay(world):
    assert world.run("apply") == 0
    assert world.files() == world.expected()
    assert world.leftovers() == []


def test_sdist_lands_in_upstreams_layout(world):
    assert world.run("apply") == 0
    assert (world.tree / "python/pyproject.toml").read_bytes() == worlds.PYPROJECT
    assert (world.tree / "pyproject.toml").read_bytes() == worlds.OVERLAY["pyproject.toml"]


def test_keeps_crlf_missing_newline_and_executable_bit(world):
    assert world.run("apply") == 0
    package = world.tree / "python/sglang"
    assert (package / "crlf.py").read_bytes().count(b"\r\n") == 30
    assert b"seven\r\n" in (package / "crlf.py").read_bytes()
    assert (package / "bare.txt").read_bytes() == b"first\nchanged without newline"
    assert os.access(package / "run.sh", os.X_OK) and not os.access(package / "alpha.py", os.X_OK)


def test_second_apply_changes_nothing(world, capfd):
    assert world.run("apply") == 0
    before, inode = world.everything(), world.tree.stat().st_ino
    capfd.readouterr()
    assert world.run("apply") == 0
    assert "up to date" in capfd.readouterr().out
    assert world.everything() == before and world.tree.stat().st_ino == inode


@pytest.mark.parametrize("change", ["overlay changed", "overlay added", "overlay removed"])
def test_apply_follows_the_overlay(world, change):
    assert world.run("apply") == 0
    folder = world.root / "overlay/python/sglang/added"
    if change == "overlay changed":
        replace(folder / "__init__.py", b"1", b"2")
    elif change == "overlay added":
        (folder / "more.py").write_bytes(b"MORE = 1\n")
    else:
        (folder / "__init__.py").unlink()
    assert world.run("apply") == 0
    added = {path: entry for path, entry in world.files().items() if "/added/" in path}
    assert added == {
        f"python/sglang/added/{path.name}": Entry(path.read_bytes()) for path in folder.iterdir()
    }


def test_apply_follows_the_series(world, dev):
    assert world.run("apply") == 0
    replace(dev / "python/sglang/fresh.py", b"True", b"False")
    worlds.commit(dev, "[Core] Change what was added")
    assert world.run("refresh", str(dev)) == 0
    assert world.run("apply") == 0
    assert (world.tree / "python/sglang/fresh.py").read_bytes() == b"fresh = False\n"


def test_update_needs_no_archive(world):
    assert world.run("apply") == 0
    for archive in (world.root / "cache").rglob("*.tar.gz"):
        archive.unlink()
    replace(world.root / "overlay/python/sglang/added/__init__.py", b"1", b"2")
    assert world.run("apply") == 0
    assert (world.tree / "python/sglang/added/__init__.py").read_bytes() == b"ADDED = 2\n"


def test_dry_run_writes_nothing(world, capfd):
    before = sorted(world.root.rglob("*"))
    assert world.run("apply", "--dry-run") == 0
    assert "3 patches on 8 files" in capfd.readouterr().out
    assert sorted(world.root.rglob("*")) == before


def test_dry_run_leaves_an_outdated_tree(world):
    assert world.run("apply") == 0
    replace(world.root / "overlay/python/sglang/added/__init__.py", b"1", b"2")
    before = world.everything()
    assert world.run("apply", "--dry-run") == 0
    assert world.everything() == before


def test_generated_files_are_nobodys_edits(world):
    """pip writes _version.py and *.egg-info, Python writes caches; neither stops or survives as an edit."""
    assert world.run("apply") == 0
    worlds.write(world.tree, {
        "python/sglang/_version.py": b"version = 'regenerated'\n",
        "python/sglang.egg-info/PKG-INFO": b"regenerated\n",
        "python/sglang.egg-info/SOURCES.txt": b"new\n",
        "python/sglang/__pycache__/alpha.cpython-311.pyc": b"bytecode",
    })
    assert world.run("verify") == 0
    replace(world.root / "overlay/python/sglang/added/__init__.py", b"1", b"2")
    assert world.run("apply") == 0
    assert (world.tree / "python/sglang/_version.py").read_bytes() == b"version = 'regenerated'\n"
    assert (world.tree / "python/sglang.egg-info/SOURCES.txt").exists()
    assert not list(world.tree.rglob("*.pyc"))


def test_manifest_records_every_file_of_ours(world):
    assert world.run("apply") == 0
    manifest = json.loads((world.tree / ".overlay/manifest.json").read_text())
    assert manifest["version"] == worlds.VERSION
    assert set(manifest["written"]) == set(world.release().files) | set(worlds.OVERLAY)
    assert set(manifest["upstream"]) == set(PRISTINE)
    assert is_generated("python/sglang/_version.py")


def test_never_vacuous_a_patch_that_changes_nothing_is_refused(world, error_line):
    """A CI once printed OK after applying nothing; here the lock says which files must change."""
    name = worlds.NAMES[1]
    (world.patches / name).unlink()
    replace(world.patches / "series", f"{name}\n".encode(), b"")
    assert world.run("apply") == 1
    assert "disagree about" in error_line()
    assert not world.tree.exists()


def test_never_vacuous_an_applier_that_does_nothing_is_noticed(world, monkeypatch, error_line):
    monkeypatch.setattr(build, "apply_exact", lambda patch, files: None)
    assert world.run("apply") == 1
    assert "the series changed 0 files, upstream.lock lists 8" in error_line()
    assert not world.tree.exists()


def test_a_wrong_result_is_refused(world, error_line):
    path = world.root / "upstream.lock"
    after = world.release().files["python/sglang/fresh.py"][1]
    replace(path, after.encode(), b"1" * 40)
    assert world.run("apply") == 1
    assert "python/sglang/fresh.py came out different" in error_line()
    assert not world.tree.exists()


def test_a_moved_hunk_is_refused_at_the_pin(world, error_line):
    """Offset 0: a hunk that would fit some lines away does not apply."""
    name = world.patches / worlds.NAMES[0]
    replace(name, b"@@ -10,2 +10,3 @@", b"@@ -12,2 +12,3 @@")
    assert world.run("apply") == 1
    error = error_line()
    assert f"{name.name} does not apply exactly" in error
    assert error.endswith("; nothing was changed; restore the patch, or write it anew with refresh")
    assert not world.tree.exists()


def test_overlay_may_not_replace_an_upstream_file(world, error_line):
    worlds.write(world.root / "overlay", {"python/sglang/__init__.py": b"mine\n"})
    assert world.run("apply") == 1
    assert "overlay files exist upstream: python/sglang/__init__.py" in error_line()


def test_overlay_may_not_hold_links(world, error_line):
    (world.root / "overlay/link").symlink_to("/etc/hosts")
    assert world.run("apply") == 1
    assert "overlay/ holds links (link)" in error_line()


@pytest.mark.parametrize("place", [".", "..", "scripts", "overlay/python"])
def test_refuses_a_tree_that_would_swallow_the_repository(world, error_line, place):
    before = sorted(world.root.rglob("*"))
    assert world.run("apply", "--tree", str(world.root / place), "--force") == 1
    assert "choose another --tree" in error_line()
    assert sorted(world.root.rglob("*")) == before


def test_tree_can_stand_elsewhere(world, tmp_path, capfd):
    assert world.run("apply", "--tree", str(tmp_path / "other/tree")) == 0
    assert (tmp_path / "other/tree/python/sglang/fresh.py").exists()
    assert "pip install -e" in capfd.readouterr().out
    assert not world.tree.exists()


def test_series_and_folder_must_agree(world, error_line):
    (world.patches / "core/stray.patch").write_bytes(b"")
    assert world.run("apply") == 1
    assert "series does not name: core/stray.patch" in error_line()


def test_lock_is_canonical(world):
    text = (world.root / "upstream.lock").read_text()
    assert lock.dump(lock.parse(text)) == text and RELEASE in text
