# SPDX-License-Identifier: Apache-2.0
"""drift: the verdicts of a rebase on each target, as a table and as JSON."""

from __future__ import annotations

import json

import pytest
import world as worlds
from overlay_tool import fetch
from world import PRISTINE, SDIST, Entry, write, zip_bytes

ALPHA, CRLF = "python/sglang/alpha.py", "python/sglang/crlf.py"


def edited(path: str, old: bytes, new: bytes) -> dict[str, Entry]:
    data = PRISTINE[path].data
    assert data.count(old) == 1
    return {path: Entry(data.replace(old, new), PRISTINE[path].mode)}


def drift(world, tmp_path, capfd, changes: dict[str, Entry], without=()) -> list[dict]:
    files = {path: entry for path, entry in (PRISTINE | changes).items() if path not in without}
    target = write(tmp_path / "target", files)
    capfd.readouterr()
    assert world.run("drift", "--json", str(target)) == 0
    return json.loads(capfd.readouterr().out)["targets"][0]["patches"]


def test_exact_at_the_pin(world, tmp_path, capfd):
    rows = drift(world, tmp_path, capfd, {})
    assert [row["verdict"] for row in rows] == ["exact"] * 3
    assert all(row["why"] == "" and row["moved"] == [] for row in rows)


def test_merged_at_other_lines(world, tmp_path, capfd):
    rows = drift(world, tmp_path, capfd, edited(ALPHA, b"line 30\n", b"line 30\nupstream's\n"))
    assert [row["verdict"] for row in rows] == ["merged", "exact", "exact"]
    assert rows[0]["moved"] == [f"{ALPHA}:49 is {ALPHA}:50"] and rows[0]["why"] == "1 hunk at other lines"


def test_conflict(world, tmp_path, capfd):
    rows = drift(world, tmp_path, capfd, edited(CRLF, b"line 7\r", b"line VII\r"))
    assert [row["verdict"] for row in rows] == ["exact", "conflict", "exact"]
    assert rows[1]["files"] == [CRLF] and rows[1]["why"] == f"{CRLF}:6"


def test_already_upstream(world, tmp_path, capfd):
    assert world.run("apply") == 0
    taken = {path: world.files()[path] for path in (CRLF, "python/sglang/run.sh")}
    rows = drift(world, tmp_path, capfd, taken)
    assert [row["verdict"] for row in rows] == ["exact", "already upstream", "exact"]
    assert rows[1]["why"] == "the merge changes nothing"


def test_half_taken_is_for_a_person_to_judge(world, tmp_path, capfd):
    assert world.run("apply") == 0
    rows = drift(world, tmp_path, capfd, {CRLF: world.files()[CRLF]})
    assert rows[1]["verdict"] == "already upstream" and rows[1]["why"] == "upstream has 2 lines of its change"


def test_a_renamed_file_is_followed(world, tmp_path, capfd):
    moved = {"python/sglang/moved/crlf.py": PRISTINE[CRLF]}
    rows = drift(world, tmp_path, capfd, moved, without=[CRLF])
    assert rows[1]["verdict"] == "merged" and rows[1]["why"] == f"{CRLF} is python/sglang/moved/crlf.py"


def test_files_that_are_gone(world, tmp_path, capfd):
    rows = drift(world, tmp_path, capfd, {}, without=[CRLF, "python/sglang/run.sh"])
    assert [row["verdict"] for row in rows] == ["exact", "not needed", "exact"]
    assert rows[1]["why"] == f"upstream has no {CRLF}, python/sglang/run.sh any more"


def test_an_added_file_that_upstream_has_too(world, tmp_path, capfd):
    rows = drift(world, tmp_path, capfd, {"python/sglang/fresh.py": Entry(b"theirs\n")})
    assert rows[2]["verdict"] == "conflict" and rows[2]["files"] == ["python/sglang/fresh.py"]


def test_a_later_patch_on_the_same_file_builds_on_the_earlier(world, dev, tmp_path, capfd):
    worlds.replace(dev / ALPHA, b"inserted\n", b"inserted\nand more\n")
    worlds.commit(dev, "[Core] Build on the first patch")
    assert world.run("refresh", str(dev)) == 0
    rows = drift(world, tmp_path, capfd, {})
    assert rows[3]["verdict"] == "exact"


def test_table_has_a_column_per_target(world, tmp_path, capfd):
    write(tmp_path / "one", PRISTINE)
    write(tmp_path / "two", PRISTINE | edited(CRLF, b"line 7\r", b"line VII\r"))
    (tmp_path / "two/python/PKG-INFO").write_bytes(b"Version: 10.0\n")
    assert world.run("drift", str(tmp_path / "one"), str(tmp_path / "two")) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["patch", worlds.VERSION, "10.0"]
    assert lines[2].split() == [worlds.NAMES[1], "exact", "conflict"]
    assert lines[4] == f"10.0: {worlds.NAMES[1]}: {CRLF}:6"


def test_overlay_files_that_upstream_has_now(world, tmp_path, capfd):
    write(tmp_path / "target", PRISTINE | {"python/sglang/added/__init__.py": b"theirs\n"})
    assert world.run("drift", str(tmp_path / "target")) == 0
    assert "overlay file exists upstream: python/sglang/added/__init__.py" in capfd.readouterr().out


def test_a_release_is_fetched_as_a_wheel(world, monkeypatch, capfd):
    files = {path: entry for path, entry in SDIST.items() if path.startswith("sglang/")}
    files["sglang-10.1.dist-info/METADATA"] = Entry(b"Version: 10.1\n")
    asked = []

    def download(requirement, version, *options):
        asked.append((requirement, options))
        return "sglang-10.1-py3-none-any.whl", zip_bytes(files)

    monkeypatch.setattr(fetch, "_pip_download", download)
    assert world.run("drift", "v10.1", "--json") == 0
    report = json.loads(capfd.readouterr().out)["targets"][0]
    assert asked == [("sglang==10.1", ())] and report["version"] == "10.1"
    assert [row["verdict"] for row in report["patches"]] == ["exact"] * 3


@pytest.mark.parametrize("name", ["latest", "no/such/folder", "v"])
def test_a_target_that_is_neither(world, error_line, name):
    assert world.run("drift", name) == 1
    assert f"{name} is neither a release nor" in error_line()
