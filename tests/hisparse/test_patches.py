# SPDX-License-Identifier: Apache-2.0
"""The HiSparse patches stand alone: on the pinned release, without the rest of the series, as commits to send upstream."""

import subprocess
from pathlib import Path

import pytest
from hisparse_release import KERNEL, OLDEST, RELEASE
from pin import pin_file

import sglang

SERIES = Path(__file__).parents[2] / "patches" / RELEASE / "series"
PATCHES = [SERIES.parent / name for name in SERIES.read_text().splitlines() if name.startswith("hisparse/")]
TREE = Path(sglang.__file__).parents[2]


def paths_in(patch):
    return [line[6:] for line in patch.read_text().splitlines() if line.startswith("+++ b/")]


def git(folder, *arguments):
    return subprocess.run(
        ["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@t.example", *arguments],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A git tree of the pinned files, with the HiSparse patches alone."""
    folder = tmp_path_factory.mktemp("pin")
    git(folder, "init", "-q")
    for path in sorted({path for patch in PATCHES for path in paths_in(patch)}):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(pin_file(path).read_bytes())
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "pin")
    git(folder, "tag", "pin")
    # Without this option git am takes "[HiSparse]" off the subject, as it does with "[PATCH]".
    git(folder, "am", "-q", "--keep-non-patch", *PATCHES)
    return folder


def test_each_patch_is_a_commit(upstream):
    subjects = git(upstream, "log", "--reverse", "--format=%s", "pin..HEAD").splitlines()
    assert len(subjects) == len(PATCHES) == len(list((SERIES.parent / "hisparse").iterdir())) >= (5 if OLDEST else 3)
    assert all(subject.startswith("[HiSparse] ") and len(subject) <= 76 for subject in subjects)
    for message in git(upstream, "log", "--format=%B%x00", "pin..HEAD").split("\0")[:-1]:
        assert "\nSigned-off-by: " in message and "\nRetire-When: " in message


def test_files_of_hisparse_alone_are_those_of_the_tree(upstream):
    """Nothing of HiSparse hides in another patch."""
    for path in (KERNEL, "python/sglang/srt/managers/hisparse_coordinator.py")[: 2 if OLDEST else 1]:
        assert (upstream / path).read_bytes() == (TREE / path).read_bytes(), path


def test_every_commit_leaves_valid_python(upstream):
    for commit in git(upstream, "rev-list", "pin..HEAD").split():
        for path in git(upstream, "show", "--format=", "--name-only", commit).split():
            if path.endswith(".py"):
                compile(git(upstream, "show", f"{commit}:{path}"), path, "exec")
