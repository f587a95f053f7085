# SPDX-License-Identifier: Apache-2.0
"""rebase: what becomes of each patch on another release, and the repository to finish by hand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace as with_fields

import pytest
import world as worlds
from overlay_tool import lock, moved
from overlay_tool.tree import Entry
from world import DEP3, NAMES, PRISTINE, RELEASE, SDIST, numbered, replace, run_git, tar_bytes, write

LATER = "v10.0"
ALPHA, CRLF = "python/sglang/alpha.py", "python/sglang/crlf.py"


def release(world, changes=(), without=(), version="10.0") -> dict[str, Entry]:
    """Pins one more release, which differs so from the first one; returns its files."""
    files = {path: entry for path, entry in SDIST.items() if path not in without} | dict(changes)
    files["PKG-INFO"] = Entry(f"Metadata-Version: 2.4\nName: sglang\nVersion: {version}\n".encode())
    archive = tar_bytes(files, top=f"sglang-{version}")
    digest, name = hashlib.sha256(archive).hexdigest(), f"sglang-{version}.tar.gz"
    pins = lock.load(world.root)
    made = with_fields(
        pins.releases[RELEASE], name=f"v{version}", version=version, tag=f"v{version}", files={}, archives={name: digest},
        identity={"python/sglang/bare.txt": files["sglang/bare.txt"].blob},
    )  # fmt: skip
    write(world.root, {
        "upstream.lock": lock.dump(pins.with_release(made)).encode(),
        f"patches/v{version}/series": b"", f"cache/{digest}/{name}": archive,
    })
    return {f"python/{path}": entry for path, entry in files.items()}


def alpha(*edits: tuple[bytes, bytes], data: bytes = numbered()) -> dict[str, Entry]:
    for old, new in edits:
        assert data.count(old) == 1
        data = data.replace(old, new)
    return {"sglang/alpha.py": Entry(data)}


def add_patch(world, dev, subject: str, *edits: tuple[str, bytes, bytes]) -> None:
    """One more patch of the old series."""
    for path, old, new in edits:
        replace(dev / path, old, new)
    worlds.commit(dev, subject)
    assert world.run("refresh", str(dev)) == 0


def rebase(world, folder, capfd) -> list[dict]:
    capfd.readouterr()
    assert world.run("rebase", "--release", LATER, "--json", str(folder)) == 0
    return json.loads(capfd.readouterr().out)["patches"]


def verdicts(rows: list[dict]) -> list[str]:
    return [row["verdict"] for row in rows]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "made"


def test_a_release_with_the_same_files_takes_all_as_it_is(world, folder, capfd):
    files = release(world)
    assert world.run("rebase", "--release", LATER, str(folder)) == 0
    out, err = capfd.readouterr()
    assert [line.split() for line in out.splitlines()[:3]] == [[name, "exact"] for name in NAMES]
    assert f"3 patches of {RELEASE} on {LATER}: 3 exact" in out and "cherry-pick" not in out
    assert f"then: scripts/overlay.py refresh {folder} --release {LATER}" in out
    assert f"the series is that of {RELEASE}; --from names another release" in err
    # The repository is one of checkout's, with the old series beside it.
    assert {path for path in run_git(folder, "ls-tree", "-r", "-z", "--name-only", "pin").split("\0") if path} == set(files)
    subjects = ["[Core] Rename, add and remove", "[Core] Change line endings and scripts", "[Core] Change alpha"]
    assert run_git(folder, "log", "--format=%s", "overlay").splitlines() == [*subjects, f"SGLang {LATER}"]
    assert run_git(folder, "log", "--format=%s", "old").splitlines() == [*subjects, f"SGLang {RELEASE}"]
    assert run_git(folder, "branch", "--show-current").strip() == "overlay" and run_git(folder, "status", "--porcelain") == ""
    # What refresh makes of it is the old series, and the tree has it.
    assert world.run("refresh", str(folder), "--release", LATER) == 0
    for name in NAMES:
        assert (world.patches.parent / LATER / name).read_bytes() == (world.patches / name).read_bytes()
    assert world.run("apply", "--release", LATER) == 0
    changed = {path for path, entry in world.expected().items() if world.files().get(path) != entry}
    assert changed == {"python/PKG-INFO"}


def test_moved_lines_and_moved_files_are_merged(world, folder, capfd):
    moves = {"sglang/deep/crlf2.py": Entry(PRISTINE[CRLF].data.replace(b"line 1\r", b"line one\r"))}
    release(world, {**alpha((b"line 30\n", b"line 30\nupstream's\n")), **moves}, without=["sglang/crlf.py"])
    rows = rebase(world, folder, capfd)
    assert verdicts(rows) == ["merged", "merged", "exact"]
    assert rows[0]["moved"] == [f"{ALPHA}:49 is {ALPHA}:50"] and rows[0]["why"] == "1 hunk at other lines"
    assert rows[1]["why"] == f"{CRLF} is python/sglang/deep/crlf2.py"
    text = (folder / "python/sglang/deep/crlf2.py").read_bytes()
    assert b"line one\r\n" in text and b"seven\r\n" in text
    assert world.run("refresh", str(folder), "--release", LATER) == 0
    assert world.run("apply", "--release", LATER) == 0
    assert b"upstream's\n" in world.files()[ALPHA].data and b"line fifty\n" in world.files()[ALPHA].data


def test_a_conflict_is_left_out_and_the_rest_goes_on(world, folder, capfd):
    release(world, alpha((b"line 50\n", b"line L\n")))
    assert world.run("rebase", "--release", LATER, "--from", RELEASE, str(folder)) == 0
    out, err = capfd.readouterr()
    assert f"3 patches of {RELEASE} on {LATER}: 2 exact, 1 conflict" in out and "the series is that of" not in err
    assert out.splitlines()[0].split() == [NAMES[0], "conflict", f"{ALPHA}:49"]
    assert (folder / "python/sglang/fresh.py").exists() and b"inserted" not in (folder / ALPHA).read_bytes()
    # The printed command brings it back, to be resolved.
    command = next(line for line in out.splitlines() if "git cherry-pick " in line and "--continue" not in line)
    commit = command.split()[2]
    assert command == f"  git cherry-pick {commit}  # {NAMES[0]}"
    with pytest.raises(AssertionError):
        run_git(folder, "cherry-pick", commit)
    text = (folder / ALPHA).read_bytes()
    start, end = text.index(b"<<<<<<<"), text.index(b">>>>>>>")
    assert b"line L\n" in text[start:end] and b"line fifty\n" in text[start:end]
    (folder / ALPHA).write_bytes(text[:start] + b"line fifty\n" + text[end:].partition(b"\n")[2])
    run_git(folder, "add", "--all")
    run_git(folder, "-c", "core.editor=true", "cherry-pick", "--continue")
    assert world.run("refresh", str(folder), "--release", LATER) == 0
    assert world.run("apply", "--release", LATER) == 0
    assert b"line fifty\n" in world.files()[ALPHA].data and b"inserted\n" in world.files()[ALPHA].data


def test_what_upstream_has_is_left_out(world, folder, capfd):
    assert world.run("apply") == 0
    taken = {path.removeprefix("python/"): world.files()[path] for path in (CRLF, "python/sglang/run.sh")}
    release(world, taken)
    rows = rebase(world, folder, capfd)
    assert verdicts(rows) == ["exact", "already upstream", "exact"]
    assert rows[1]["why"] == "the merge changes nothing"


def test_half_of_a_patch_is_not_taken_silently(world, folder, capfd):
    assert world.run("apply") == 0
    release(world, {"sglang/run.sh": world.files()["python/sglang/run.sh"]})
    rows = rebase(world, folder, capfd)
    assert verdicts(rows) == ["exact", "already upstream", "exact"]
    assert rows[1]["why"] == "upstream has 2 lines of its change"
    assert b"seven" not in (folder / CRLF).read_bytes()


ADDED = b"release_buffers_of(self.request)\n"


@pytest.mark.parametrize(
    "near, added, verdict",
    [
        (b"line 45\n", ADDED, "already upstream"),
        (b"line 45\n", b"    release_buffers_of(request)\n", "already upstream"),  # moved into a function
        (b"line 5\n", ADDED, "merged"),  # in another place of the file
        (b"line 45\n", b"release_slots_of(self.request)\n", "merged"),
    ],
)
def test_a_line_that_upstream_has_gained_near_the_place(world, dev, folder, capfd, near, added, verdict):
    """git merges each of these without a word: release_buffers_of would run twice."""
    add_patch(world, dev, "[Core] Release before", (ALPHA, b"line 55\n", b"line 55\n" + ADDED))
    release(world, alpha((near, near + added)))
    rows = rebase(world, folder, capfd)
    assert rows[3]["verdict"] == verdict
    assert (ADDED in (folder / ALPHA).read_bytes().splitlines(True)[50:]) == (verdict == "merged")
    if verdict != "merged":
        assert rows[3]["why"] == f'upstream has 1 of 1 added line: {ALPHA}:47 "{ADDED.decode().strip()}"'


def test_a_line_that_upstream_had_before_says_nothing(world, dev, folder, capfd):
    add_patch(world, dev, "[Core] First", (ALPHA, b"line 45\n", b"line 45\n" + ADDED))
    add_patch(world, dev, "[Core] Second", (ALPHA, b"line 55\n", b"line 55\n" + ADDED))
    release(world, alpha((b"line 1\n", b"line one\n")))
    assert verdicts(rebase(world, folder, capfd)) == ["exact"] * 5


@pytest.mark.parametrize("line", [b"return False", b"else:", b"import os, sys", b"if state is None:", b"# a comment on it", b"@property"])
def test_lines_that_say_nothing(line):
    assert moved.telling(line) == b""


@pytest.mark.parametrize("line", [b"    self.slots.release(request)", b"if ready_requests and not self.batch_is_full:"])
def test_lines_that_tell(line):
    assert moved.telling(line) == line.strip().replace(b"self.", b"")


def test_a_definition_that_upstream_has_gained_anywhere(world, dev, folder, capfd):
    add_patch(world, dev, "[Core] Add", (ALPHA, b"line 55\n", b"line 55\ndef release_buffers(one, other):\n    pass\n"))
    release(world, alpha((b"line 2\n", b"line 2\ndef release_buffers(self):\n")))
    rows = rebase(world, folder, capfd)
    assert rows[3]["verdict"] == "already upstream"
    assert rows[3]["why"] == f'upstream has 1 of 1 added line: {ALPHA}:3 "def release_buffers(one, other):"'


def test_a_conflict_of_which_upstream_has_most_is_upstream(world, dev, folder, capfd):
    added = b"release_buffers_of(self.request)\nretract_staged_of(self.request)\n"
    add_patch(world, dev, "[Core] Replace", (ALPHA, b"line 55\n", added))
    release(world, alpha((b"line 55\n", added.splitlines(True)[0])))
    rows = rebase(world, folder, capfd)
    assert rows[3]["verdict"] == "already upstream" and "upstream has 1 of 2 added lines" in rows[3]["why"]


def test_files_that_are_gone_need_no_patch(world, folder, capfd):
    release(world, without=["sglang/crlf.py", "sglang/run.sh"])
    rows = rebase(world, folder, capfd)
    assert verdicts(rows) == ["exact", "not needed", "exact"]
    assert rows[1]["why"] == f"upstream has no {CRLF}, python/sglang/run.sh any more"


def test_one_file_that_is_gone_is_a_conflict(world, folder, capfd):
    release(world, without=["sglang/crlf.py"])
    rows = rebase(world, folder, capfd)
    assert verdicts(rows) == ["exact", "conflict", "exact"]
    assert rows[1]["files"] == [CRLF] and f"{CRLF} is gone" in rows[1]["why"]


def test_a_file_that_was_taken_apart_is_found_by_its_lines(world, dev, folder, capfd):
    """Neither its name nor its likeness tells git; the lines around the hunk do."""
    body = b"".join(b"the function number %d does its work\n" % number for number in range(400))
    add_patch(world, dev, "[Core] Make room", (ALPHA, b"line 60\n", b"line 60\n" + body))
    add_patch(world, dev, "[Core] Work", (ALPHA, b"number 200 does", b"number 200 no longer does"))
    part = b"".join(body.splitlines(True)[170:230]) + b"".join(b"quite another thing %d\n" % number for number in range(400))
    release(world, {"sglang/part.py": Entry(part)}, without=["sglang/alpha.py"])
    rows = rebase(world, folder, capfd)
    assert rows[4]["verdict"] == "conflict" and f"{ALPHA} is python/sglang/part.py" in rows[4]["why"]
    assert rows[4]["builds_on"] == [rows[3]["name"]]


def test_a_patch_says_which_left_out_patch_it_builds_on(world, dev, folder, capfd):
    add_patch(world, dev, "[Core] Build on the first", (ALPHA, b"inserted\n", b"inserted\nand more\n"))
    add_patch(world, dev, "[Core] Stand alone", (ALPHA, b"line 20\n", b"line twenty\n"))
    release(world, alpha((b"line 10\nline 11\n", b"line ten\nline eleven\n"), (b"line 20\n", b"line XX\n")))
    rows = rebase(world, folder, capfd)
    assert verdicts(rows) == ["conflict", "exact", "exact", "conflict", "conflict"]
    assert rows[3]["builds_on"] == [NAMES[0]] and rows[4]["builds_on"] == []


def test_the_users_git_configuration_does_not_matter(world, folder, tmp_path, monkeypatch, capfd):
    (tmp_path / "config").write_text("[merge]\n renames = false\n conflictStyle = nonsense\n[commit]\n gpgSign = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    release(world, {"sglang/deep/crlf.py": PRISTINE[CRLF]}, without=["sglang/crlf.py"])
    assert verdicts(rebase(world, folder, capfd)) == ["exact", "merged", "exact"]


def test_the_series_of_the_release_before_is_the_default(world, folder, capfd):
    release(world, version="9.9")
    release(world, version="11.0")
    release(world)
    assert world.run("rebase", "--release", LATER, str(folder)) == 1  # that of v9.9, and it is empty
    assert "the series of v9.9 has no patches; name another release with --from" in capfd.readouterr().err
    assert world.run("rebase", "--release", LATER, "--from", RELEASE, str(folder)) == 0


@pytest.mark.parametrize(
    "argv, line",
    [
        (["--release", RELEASE], f"upstream.lock has no release before {RELEASE}; name one with --from"),
        (["--release", RELEASE, "--from", RELEASE], f"{RELEASE} cannot be rebased onto itself"),
        (["--release", LATER, "--from", "v1.0"], "upstream.lock has no release v1.0"),
        (["--release", "v12.0"], "upstream.lock has no release v12.0"),
    ],
)
def test_releases_that_cannot_be(world, folder, error_line, argv, line):
    release(world)
    assert world.run("rebase", *argv, str(folder)) == 1
    assert line in error_line() and not folder.exists()


def test_a_folder_that_is_in_use(world, folder, error_line):
    release(world)
    write(folder, {"mine": b"mine"})
    assert world.run("rebase", "--release", LATER, str(folder)) == 1
    assert "exists and is not empty; give a new folder" in error_line()
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_failure_leaves_no_folder(world, folder, monkeypatch, error_line):
    release(world)
    monkeypatch.setattr("overlay_tool.replay.Replay.run", interrupted)
    assert world.run("rebase", "--release", LATER, str(folder)) == 1
    assert "interrupted" in error_line()
    assert [path.name for path in folder.parent.iterdir() if "made" in path.name] == []


def interrupted(_):
    from overlay_tool.transaction import Interrupted

    raise Interrupted("interrupted; the tree is what it was")


def test_a_series_that_refresh_would_replace_is_named(world, folder, capfd):
    release(world)
    write(world.patches.parent / LATER, {"series": b"core/one.patch\n", "core/one.patch": (world.patches / NAMES[0]).read_bytes()})
    assert world.run("rebase", "--release", LATER, str(folder)) == 0
    assert f"note: {LATER} has a series of 1 patch, which refresh would replace" in capfd.readouterr().err
    assert DEP3.strip() in run_git(folder, "log", "-1", "--format=%B")
