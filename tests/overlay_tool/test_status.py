# SPDX-License-Identifier: Apache-2.0
"""status and verify: three states per patch, the number of patched lines, and no false comfort."""

from __future__ import annotations

import json

import pytest
import world as worlds
from world import NAMES, replace


def report(world, capfd) -> dict:
    capfd.readouterr()
    assert world.run("status", "--json") == 0
    return json.loads(capfd.readouterr().out)


def states(world, capfd) -> list[str]:
    rows = report(world, capfd)["patches"]
    assert [row["name"] for row in rows] == NAMES
    return [row["state"] for row in rows]


def test_not_applied_without_a_tree(world, capfd):
    assert world.run("status") == 0
    assert capfd.readouterr().out.count("not applied") == 3
    assert not world.tree.exists()


def test_applied_and_after_reverse(world, capfd):
    assert world.run("apply") == 0
    assert states(world, capfd) == ["applied"] * 3
    assert world.run("reverse") == 0
    assert states(world, capfd) == ["not applied"] * 3


def test_half_applied_is_drifted(world, capfd):
    """One of the two files of the second patch is as upstream has it."""
    assert world.run("apply") == 0
    replace(world.tree / "python/sglang/run.sh", b"two", b"one")
    assert states(world, capfd) == ["applied", "drifted", "applied"]


def test_one_of_two_hunks_is_drifted(world, capfd):
    assert world.run("apply") == 0
    replace(world.tree / "python/sglang/alpha.py", b"line fifty\n", b"line 50\n")
    assert states(world, capfd)[0] == "drifted"


def test_a_moved_hunk_is_drifted(world, capfd):
    assert world.run("apply") == 0
    replace(world.tree / "python/sglang/alpha.py", b"line 2\n", b"line 2\nmine\n")
    assert states(world, capfd) == ["drifted", "applied", "applied"]


def test_an_edit_beside_the_hunks_is_applied_but_reported(world, capfd):
    assert world.run("apply") == 0
    replace(world.tree / "python/sglang/alpha.py", b"line 30\n", b"mine\n")
    assert states(world, capfd) == ["applied"] * 3
    assert report(world, capfd)["edits"] == ["python/sglang/alpha.py"]


def test_a_patch_taken_out_by_hand_is_not_applied(world, capfd):
    assert world.run("apply") == 0
    replace(world.tree / "python/sglang/run.sh", b"two", b"one")
    replace(world.tree / "python/sglang/crlf.py", b"seven\r", b"line 7\r")
    assert states(world, capfd) == ["applied", "not applied", "applied"]


def test_a_file_renamed_by_hand_is_drifted(world, capfd):
    assert world.run("apply") == 0
    (world.tree / "python/sglang/new_name.py").rename(world.tree / "python/sglang/elsewhere.py")
    assert states(world, capfd) == ["applied", "applied", "drifted"]


def test_counts_patched_lines(world, capfd):
    """alpha +2 -1, bare +1 -1, crlf +1 -1, run.sh +1 -1, new_name +1 -1, fresh +1, gone -1."""
    found = report(world, capfd)
    assert [(row["added"], row["removed"]) for row in found["patches"]] == [(3, 2), (2, 2), (2, 2)]
    assert found["patched_lines"] == 13 and found["patched_files"] == 8 and found["overlay_files"] == 2
    world.run("status")
    assert "patched upstream lines: 13 in 8 files, 3 patches; overlay files: 2" in capfd.readouterr().out


def test_table_names_state_and_edits(world, capfd):
    assert world.run("apply") == 0
    worlds.write(world.tree, {"notes.txt": b"mine\n"})
    world.run("status")
    text = capfd.readouterr().out
    assert NAMES[0] in text and "applied" in text and "edited: notes.txt (added)" in text


def test_verify_accepts_a_fresh_tree(world, capfd):
    assert world.run("apply") == 0
    assert world.run("verify") == 0
    assert "8 patched files, 2 overlay files and 12 upstream files" in capfd.readouterr().out


@pytest.mark.parametrize(
    "path", ["python/sglang/alpha.py", "python/sglang/__init__.py", "python/sglang/added/__init__.py"]
)
def test_verify_refuses_edits(world, error_line, path):
    assert world.run("apply") == 0
    with open(world.tree / path, "ab") as out:
        out.write(b"mine\n")
    assert world.run("verify") == 1
    assert path in error_line()


def test_verify_refuses_an_outdated_tree(world, error_line):
    assert world.run("apply") == 0
    worlds.write(world.root / "overlay", {"python/sglang/added/later.py": b"1\n"})
    assert world.run("verify") == 1
    assert "python/sglang/added/later.py" in error_line()


def test_verify_refuses_a_tree_without_manifest(world, error_line):
    worlds.write(world.tree, world.expected())
    assert world.run("verify") == 1
    assert "was not built by this tool" in error_line()


def test_verify_says_that_there_is_no_tree(world, error_line):
    assert world.run("verify") == 1
    assert error_line().endswith("sglang does not exist; run scripts/apply_overlay.sh")


def test_status_and_verify_write_nothing(world):
    assert world.run("apply") == 0
    before = world.everything()
    world.run("status")
    world.run("verify")
    assert world.everything() == before and world.leftovers() == []
