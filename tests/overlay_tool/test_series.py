# SPDX-License-Identifier: Apache-2.0
"""The repository's own series and lock. The last tests use the pinned archives, which the tool obtains itself."""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess

import pytest
import world as worlds
from overlay_tool import lock, series, sources
from overlay_tool.applier import EXACT, OFFSET, locate, verdict
from overlay_tool.diff import DiffReader
from overlay_tool.lock import tomllib
from world import REPOSITORY, World

LOCK = lock.load(REPOSITORY)
PATCHES = {name: series.load(REPOSITORY, name) for name in LOCK.releases}
# What each series is made of, in this order.
FOLDERS = {
    "v0.5.23": ["cpu", "hsa", "hils", "scheduler", "requests", "hisparse"],
    "v0.5.17": ["cpu", "hsa", "hils", "scheduler", "requests"],
    "v0.5.10rc0": ["cpu", "hsa", "hils", "scheduler", "nsa", "hisparse", "requests"],
}
each_release = pytest.mark.parametrize("pin", LOCK.releases.values(), ids=lambda pin: pin.name)
each_patch = pytest.mark.parametrize(
    "patch", [pytest.param(patch, id=f"{name}/{patch.name}") for name in PATCHES for patch in PATCHES[name]]
)


@each_release
def test_there_are_patches(pin):
    """Without any, every test per patch would pass without having looked at one."""
    assert PATCHES[pin.name]


def test_every_folder_of_a_release_is_one_that_the_lock_knows():
    """A folder that is misspelt would be left out without a word."""
    assert {path.name for path in (REPOSITORY / "patches").iterdir() if path.is_dir()} == set(LOCK.releases)
    assert {path.name for path in (REPOSITORY / "overlay").glob("v*")} <= set(LOCK.releases)


def test_lock_is_canonical():
    text = (REPOSITORY / lock.FILE_NAME).read_text(encoding="utf-8")
    assert lock.dump(lock.parse(text)) == text


@each_release
def test_series_and_folder_agree(pin):
    folder = series.folder(REPOSITORY, pin.name)
    present = [str(path.relative_to(folder)) for path in folder.rglob("*.patch")]
    assert sorted(series.names(REPOSITORY, pin.name)) == sorted(present)
    assert (folder / "series").read_text(encoding="utf-8") == series.series_text(PATCHES[pin.name])


@each_release
def test_folders_are_the_concerns(pin):
    """And the series goes through them one by one."""
    folders = [patch.name.split("/")[0] for patch in PATCHES[pin.name]]
    assert list(dict.fromkeys(folders)) == FOLDERS[pin.name]
    assert [area for area, _ in itertools.groupby(folders)] == list(dict.fromkeys(folders))


@each_release
def test_lock_covers_exactly_the_touched_files(pin):
    assert set().union(*(patch.paths for patch in PATCHES[pin.name])) == set(pin.files)
    assert all(before != after for before, after in pin.files.values())


@each_release
def test_lock_and_patches_agree_on_every_blob(pin):
    ids = {}
    for patch in PATCHES[pin.name]:
        for diff in patch.files:
            if diff.old_path and diff.old_path in ids and diff.old_id:
                assert diff.old_id == ids[diff.old_path][1], (patch.name, diff.old_path)
            if diff.new_path == diff.old_path and diff.new_id:
                before = ids[diff.new_path][0] if diff.new_path in ids else diff.old_id
                ids[diff.new_path] = (before, diff.new_id)
    assert ids and all(pin.files[path] == pair for path, pair in ids.items())


@each_release
def test_status_prints_the_number_of_patched_lines(pin, capfd, tmp_path):
    assert World(REPOSITORY).run("status", "--json", "--release", pin.name, "--tree", str(tmp_path / "none")) == 0
    report = json.loads(capfd.readouterr().out)
    changed = [line for patch in PATCHES[pin.name] for line in added_and_removed(patch.data)]
    assert report["patched_lines"] == len(changed) > 0


def added_and_removed(data: bytes) -> list[bytes]:
    """Counted without the tool's reader, except for where the diff starts."""
    lines = data[data.index(b"\ndiff --git ") :].split(b"\n")
    return [line for line in lines if re.match(rb"\+(?!\+\+ )|-(?!-- )", line)]


@each_patch
def test_header_is_complete(patch):
    assert series.header_problems(patch.message) == []
    assert patch.subject and not re.match(r"(fixup|squash)!", patch.subject)


@each_patch
def test_export_is_plain(patch):
    assert patch.data.startswith(series.ZERO_COMMIT)
    assert b"\n-- \n" not in patch.data and b"\nSubject: [PATCH " not in patch.data
    assert patch.name == series.file_name(patch.subject)
    modified = [diff for diff in patch.files if diff.hunks]
    assert all(len(diff.old_id) == len(diff.new_id) == 40 for diff in modified)


@each_patch
def test_line_endings_are_lf(patch):
    """CR may only stand in lines of an upstream file that has them."""
    reader = DiffReader(patch.name, patch.data)
    assert not any(line.endswith(b"\r") for line in reader.lines if line[:1] not in (b" ", b"+", b"-"))


@functools.cache
def pristine(name: str) -> sources.Upstream:
    """The pinned archive, from the cache or through pip: without it these tests fail rather than skip."""
    return sources.pinned(LOCK.release(name))


@pytest.mark.parametrize("name,folder", [(name, folder) for name in FOLDERS for folder in FOLDERS[name]])
def test_each_folder_applies_alone(name, folder):
    """To read, to drop or to send: no concern needs the lines of another."""
    files = dict(pristine(name).files)
    patches = [patch for patch in PATCHES[name] if patch.name.startswith(f"{folder}/")]
    verdicts = {patch.name: verdict(locate(patch, files)) for patch in patches}
    assert verdicts and set(verdicts.values()) <= {EXACT, OFFSET}, verdicts


@each_release
def test_git_am_accepts_the_series_in_order(pin, tmp_path):
    repository = World(REPOSITORY)
    assert repository.run("checkout", str(tmp_path / "dev"), "--release", pin.name) == 0
    count = subprocess.run(
        ["git", "rev-list", "--count", "pin..HEAD"], cwd=tmp_path / "dev", capture_output=True, text=True, check=True
    )
    assert int(count.stdout) == len(PATCHES[pin.name])
    for path, (_, after) in pin.files.items():
        listed = worlds.run_git(tmp_path / "dev", "ls-tree", "HEAD", "--", path).split()
        assert (listed[2] if listed else "0" * 40) == after


@each_release
def test_applies_exactly_and_reverses_to_the_last_byte(pin, tmp_path):
    repository, tree = World(REPOSITORY), ["--release", pin.name, "--tree", str(tmp_path / "tree")]
    assert repository.run("apply", *tree) == 0
    assert repository.run("verify", *tree) == 0
    assert repository.run("reverse", *tree) == 0
    repository.tree = tmp_path / "tree"
    assert repository.files() == pristine(pin.name).files


@each_release
def test_one_release_follows_another(pin, tmp_path):
    """And the tree is the same as one that was built for it alone."""
    repository, tree = World(REPOSITORY), ["--tree", str(tmp_path / "tree")]
    repository.tree = tmp_path / "tree"
    assert repository.run("apply", *tree, "--release", pin.name) == 0
    alone = repository.everything()
    for name in (*LOCK.releases, pin.name):
        assert repository.run("apply", *tree, "--release", name) == 0
        assert repository.run("verify", *tree) == 0
    assert repository.everything() == alone


def test_root_project_asks_for_what_upstream_asks_for():
    upstream = pristine("v0.5.10rc0").files[sources.PROJECT_FILE].data.decode()
    root = (REPOSITORY / "overlay/pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(root)["build-system"]["requires"] == tomllib.loads(upstream)["build-system"]["requires"]
