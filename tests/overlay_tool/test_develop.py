# SPDX-License-Identifier: Apache-2.0
"""checkout and refresh: the series as commits and back, the same bytes every time."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import world as worlds
from overlay_tool import lock
from overlay_tool.series import ZERO_COMMIT, load
from overlay_tool.tree import Entry
from world import DEP3, NAMES, RELEASE, SDIST, replace, run_git


def series_bytes(world) -> dict[str, bytes]:
    files = [path for path in world.patches.rglob("*") if path.is_file()]
    return {str(path.relative_to(world.root)): path.read_bytes() for path in [*files, world.root / "upstream.lock"]}


def test_checkout_is_the_pin_and_one_commit_per_patch(world, tmp_path):
    made = tmp_path / "made"
    assert world.run("checkout", str(made)) == 0
    subjects = run_git(made, "log", "--reverse", "--format=%s").splitlines()
    assert subjects == [
        f"SGLang {RELEASE}", "[Core] Change alpha", "[Core] Change line endings and scripts", "[Core] Rename, add and remove",
    ]
    assert run_git(made, "status", "--porcelain") == ""
    assert run_git(made, "rev-parse", "pin").strip() == run_git(made, "rev-list", "--max-parents=0", "HEAD").strip()


def test_checkout_is_deterministic(world, tmp_path):
    heads = set()
    for name in ("one", "two"):
        world.run("checkout", str(tmp_path / name))
        heads.add(run_git(tmp_path / name, "rev-parse", "HEAD"))
    assert len(heads) == 1


def test_checkout_arrives_at_what_apply_builds(world, tmp_path):
    assert world.run("apply") == 0
    world.run("checkout", str(tmp_path / "made"))
    for path in world.release().files:
        made, built = tmp_path / "made" / path, world.tree / path
        assert made.exists() == built.exists()
        if made.exists():
            assert made.read_bytes() == built.read_bytes()
            assert made.stat().st_mode == built.stat().st_mode


def test_refresh_after_checkout_gives_the_same_bytes(world, tmp_path, capfd):
    before = series_bytes(world)
    world.run("checkout", str(tmp_path / "made"))
    assert world.run("refresh", str(tmp_path / "made")) == 0
    assert "unchanged: 3 patches, 13 patched upstream lines in 8 files" in capfd.readouterr().out
    assert series_bytes(world) == before


def test_refresh_ignores_the_users_git_configuration(world, dev, tmp_path, monkeypatch):
    before = series_bytes(world)
    config = tmp_path / "gitconfig"
    config.write_text(
        "[diff]\n noprefix = true\n context = 9\n renames = false\n algorithm = patience\n"
        "[format]\n signOff = true\n signature = mine\n numbered = true\n attach = true\n"
        "[core]\n autocrlf = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    config.rename(tmp_path / ".gitconfig")
    assert world.run("refresh", str(dev)) == 0
    assert series_bytes(world) == before


def test_refresh_leaves_the_developers_repository_alone(world, dev):
    before = {path: path.read_bytes() for path in dev.rglob("*") if path.is_file()}
    assert world.run("refresh", str(dev)) == 0
    after = {path: path.read_bytes() for path in dev.rglob("*") if path.is_file()}
    assert {str(path) for path in after} == {str(path) for path in before}
    assert all(after[path] == data for path, data in before.items() if path.name != "index")


def test_exported_patches_are_plain(world):
    for patch in load(world.root, RELEASE):
        assert patch.data.startswith(ZERO_COMMIT)
        assert b"\n-- \n" not in patch.data and b"[PATCH 1/" not in patch.data
        assert all(diff.old_id is None or len(diff.old_id) == 40 for diff in patch.files)
    first = load(world.root, RELEASE)[0]
    assert first.subject == "[Core] Change alpha" and "Retire-When: upstream does it" in first.message


def test_context_is_the_least_that_names_one_place(world, dev):
    """line 10 stands once, so one line of context does; between repeated lines three are needed."""
    hunk = load(world.root, RELEASE)[0].files[0].hunks[0]
    assert [tag for tag, _ in hunk.lines] == [b" ", b"+", b" "]
    path = dev / "python/sglang/__init__.py"
    path.write_bytes(b"one\nrepeat\nrepeat\ntwo\nrepeat\nrepeat\nthree\n")
    worlds.commit(dev, "[Core] Prepare repeated lines")
    path.write_bytes(b"one\nrepeat\nrepeat\ntwo\nrepeat\nnew\nrepeat\nthree\n")
    worlds.commit(dev, "[Core] Change between repeated lines")
    assert world.run("refresh", str(dev)) == 0
    hunk = load(world.root, RELEASE)[-1].files[0].hunks[0]
    assert hunk.old == [b"two\n", b"repeat\n", b"repeat\n", b"three\n"]


def test_a_dropped_commit_takes_its_patch_and_its_lock_entries(world, dev):
    run_git(dev, "reset", "--quiet", "--hard", "HEAD~1")
    assert world.run("refresh", str(dev)) == 0
    assert len(list(world.patches.rglob("*.patch"))) == 2
    assert "python/sglang/fresh.py" not in world.release().files
    assert world.run("apply") == 0
    assert (world.tree / "python/sglang/old_name.py").exists()


def test_an_empty_series_is_possible(world, dev):
    run_git(dev, "reset", "--quiet", "--hard", "pin")
    assert world.run("refresh", str(dev)) == 0
    assert world.run("apply") == 0 and world.run("verify") == 0
    assert (world.tree / "python/sglang/gone.py").exists()


def test_other_files_of_the_series_folder_stay(world, dev):
    notes = [world.patches / "README.md", world.patches / "core/README.md"]
    for path in notes:
        path.write_text("notes\n")
    run_git(dev, "reset", "--quiet", "--hard", "HEAD~1")
    assert world.run("refresh", str(dev)) == 0
    assert [path.read_text() for path in notes] == ["notes\n"] * 2


def test_uncommitted_changes_are_refused(world, dev, error_line):
    before = series_bytes(world)
    replace(dev / "python/sglang/alpha.py", b"line 30\n", b"mine\n")
    assert world.run("refresh", str(dev)) == 1
    assert "has uncommitted changes" in error_line()
    assert series_bytes(world) == before


@pytest.mark.parametrize(
    "field", ["Description", "Origin", "Forwarded", "Applied-Upstream", "Last-Update", "Retire-When", "Signed-off-by"]
)
def test_an_incomplete_header_is_refused(world, dev, error_line, field):
    before = series_bytes(world)
    message = "\n".join(line for line in DEP3.splitlines() if not line.startswith(field))
    replace(dev / "python/sglang/fresh.py", b"True", b"False")
    worlds.commit(dev, "[Core] Incomplete", message)
    assert world.run("refresh", str(dev)) == 1
    assert f"core/incomplete.patch lacks {field}" in error_line()
    assert series_bytes(world) == before


def test_a_vague_date_is_refused(world, dev, error_line):
    replace(dev / "python/sglang/fresh.py", b"True", b"False")
    worlds.commit(dev, "[Core] Vague", DEP3.replace("2026-01-02", "lately"))
    assert world.run("refresh", str(dev)) == 1
    assert "Last-Update as YYYY-MM-DD" in error_line()


@pytest.mark.parametrize(
    "subject, name",
    [
        ("[CPU] Honour the caps", "cpu/honour-the-caps.patch"),
        ("[Two Words] Take a request's `page_size` from --options: now", "two-words/take-a-requests-page_size-from-options-now.patch"),
        ("[HSA] A subject as long as a subject may be, which no file name cuts off in the midst", None),
    ],
)
def test_a_patch_is_named_after_its_whole_subject(world, dev, subject, name):
    replace(dev / "python/sglang/fresh.py", b"True", b"False")
    worlds.commit(dev, subject)
    assert world.run("refresh", str(dev)) == 0
    patch = load(world.root, RELEASE)[-1]
    name = name or "hsa/a-subject-as-long-as-a-subject-may-be-which-no-file-name-cuts-off-in-the-midst.patch"
    assert patch.name == name and patch.subject == subject
    assert (world.patches / name).read_bytes() == patch.data


def test_a_patch_between_two_others_renames_none(world, dev):
    before = series_bytes(world)
    run_git(dev, "checkout", "--quiet", "-b", "longer", "HEAD~2")
    worlds.write(dev, {"python/sglang/between.py": b"between\n"})
    worlds.commit(dev, "[Core] Between the others")
    run_git(dev, "cherry-pick", "overlay~1", "overlay")
    assert world.run("refresh", str(dev)) == 0
    after = series_bytes(world)
    assert {path for path in before | after if before.get(path) != after.get(path)} == {
        "upstream.lock", f"patches/{RELEASE}/series", f"patches/{RELEASE}/core/between-the-others.patch",
    }
    assert [patch.name for patch in load(world.root, RELEASE)] == [NAMES[0], "core/between-the-others.patch", *NAMES[1:]]


@pytest.mark.parametrize("subject", ["Change something", "[] Change", "[Core]", "[Core] ...", "Core] Change", "[Core]Change"])
def test_a_subject_without_an_area_is_refused(world, dev, error_line, subject):
    before = series_bytes(world)
    replace(dev / "python/sglang/fresh.py", b"True", b"False")
    worlds.commit(dev, subject)
    assert world.run("refresh", str(dev)) == 1
    assert f"the subject {subject!r} does not begin with its [Area]; reword the commit" in error_line()
    assert series_bytes(world) == before


def test_two_commits_of_one_name_are_refused(world, dev, error_line):
    replace(dev / "python/sglang/fresh.py", b"True", b"False")
    worlds.commit(dev, "[core] Change: Alpha!")
    assert world.run("refresh", str(dev)) == 1
    assert f"two commits would both be {NAMES[0]}" in error_line()


def test_fixup_commits_must_be_folded_in(world, dev, error_line):
    replace(dev / "python/sglang/fresh.py", b"True", b"False")
    worlds.commit(dev, "fixup! [Core] Rename, add and remove")
    assert world.run("refresh", str(dev)) == 1
    assert "autosquash" in error_line()


def test_merges_are_refused(world, dev, error_line):
    run_git(dev, "checkout", "--quiet", "-b", "side", "HEAD~1")
    worlds.write(dev, {"python/sglang/side.py": b"side\n"})
    worlds.commit(dev, "[Core] Side")
    run_git(dev, "merge", "--quiet", "--no-edit", "overlay")
    assert world.run("refresh", str(dev)) == 1
    assert "is a merge" in error_line()


def test_empty_commits_are_refused(world, dev, error_line):
    run_git(dev, "commit", "--quiet", "--allow-empty", "-m", "[Core] Nothing" + DEP3)
    assert world.run("refresh", str(dev)) == 1
    assert "changes nothing" in error_line()


def test_binary_changes_are_refused(world, dev, error_line):
    worlds.write(dev, {"python/sglang/blob.bin": bytes(range(256))})
    worlds.commit(dev, "[Core] Binary")
    assert world.run("refresh", str(dev)) == 1
    assert "put the file into overlay/" in error_line()


def test_a_change_that_a_later_commit_restores_is_refused(world, dev, error_line):
    for way, old, new in (("Forth", b"line 30\n", b"mine\n"), ("Back", b"mine\n", b"line 30\n")):
        replace(dev / "python/sglang/crlf.py", old.replace(b"\n", b"\r\n"), new.replace(b"\n", b"\r\n"))
        worlds.commit(dev, f"[Core] {way}")
    replace(dev / "python/sglang/crlf.py", b"seven\r", b"line 7\r")
    worlds.commit(dev, "[Core] Restore")
    assert world.run("refresh", str(dev)) == 1
    assert "changes and restores python/sglang/crlf.py" in error_line()


@pytest.fixture
def elsewhere(world, tmp_path):
    """A branch made on a tree that is not the pin: two lines more at the top of alpha.py."""
    folder = tmp_path / "elsewhere"
    world.run("checkout", "--no-patches", str(folder))
    replace(folder / "python/sglang/alpha.py", b"line 1\n", b"one\ntwo\nline 1\n")
    worlds.commit(folder, "another upstream")
    run_git(folder, "tag", "--force", "pin")
    replace(folder / "python/sglang/alpha.py", b"line 10\n", b"line 10\ninserted\n")
    worlds.commit(folder, "[Core] Made elsewhere")
    return folder


def test_inexact_hunks_are_printed_and_refused(world, elsewhere, capfd):
    before = series_bytes(world)
    assert world.run("refresh", str(elsewhere)) == 1
    text = capfd.readouterr().err
    assert "core/made-elsewhere.patch: python/sglang/alpha.py:12 offset by -2 lines" in text
    assert f"overlay: error: 1 change not made for {RELEASE} as it is" in text
    assert series_bytes(world) == before


def test_a_file_that_differs_beside_the_hunks_is_inexact_too(world, tmp_path, capfd):
    folder = tmp_path / "elsewhere"
    world.run("checkout", "--no-patches", str(folder))
    replace(folder / "python/sglang/alpha.py", b"line 40\n", b"another 40\n")
    worlds.commit(folder, "another upstream")
    run_git(folder, "tag", "--force", "pin")
    replace(folder / "python/sglang/alpha.py", b"line 10\n", b"line 10\ninserted\n")
    worlds.commit(folder, "[Core] Made elsewhere")
    assert world.run("refresh", str(folder)) == 1
    assert "python/sglang/alpha.py differs from the pin beside the hunks" in capfd.readouterr().err
    assert world.run("refresh", "--force", str(folder)) == 0
    assert world.run("apply") == 0
    assert b"line 40\n" in (world.tree / "python/sglang/alpha.py").read_bytes()


def test_force_moves_inexact_hunks_to_their_lines(world, elsewhere):
    assert world.run("refresh", "--force", str(elsewhere)) == 0
    patch = load(world.root, RELEASE)[0]
    assert patch.files[0].hunks[0].old_at == 9 and patch.subject == "[Core] Made elsewhere"
    assert b"From: A Developer <dev@example.org>" in patch.data
    assert world.run("apply") == 0 and world.run("verify") == 0


def test_conflicts_are_refused_even_with_force(world, elsewhere, error_line):
    replace(elsewhere / "python/sglang/alpha.py", b"two\n", b"three\n")
    worlds.commit(elsewhere, "[Core] Change what the pin lacks")
    before = series_bytes(world)
    assert world.run("refresh", "--force", str(elsewhere)) == 1
    assert f"conflicts with {RELEASE}" in error_line()
    assert series_bytes(world) == before


def test_without_a_base(world, dev, error_line):
    run_git(dev, "tag", "--delete", "pin")
    assert world.run("refresh", str(dev)) == 1
    assert "has no base commit named pin" in error_line()
    assert world.run("refresh", "--base", "HEAD~3", str(dev)) == 0


def test_refresh_of_a_plain_folder(world, tmp_path, error_line):
    assert world.run("refresh", str(tmp_path)) == 1
    assert "is not a git repository" in error_line()


def test_checkout_into_a_used_folder(world, dev, error_line):
    before = run_git(dev, "rev-parse", "HEAD")
    assert world.run("checkout", str(dev)) == 1
    assert "exists and is not empty" in error_line()
    assert run_git(dev, "rev-parse", "HEAD") == before


def test_checkout_that_fails_leaves_nothing(world, tmp_path, error_line):
    replace(world.patches / NAMES[1], b"-line 7\r", b"-line X\r")
    assert world.run("checkout", str(tmp_path / "made")) == 1
    assert f"git am refuses {NAMES[1]}" in error_line()
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_moving_to_another_release(world, tmp_path):
    """The steps of docs/overlay_tool.md, on a release whose alpha.py has grown at its top."""
    alpha = Entry(b"new in this release\n" + SDIST["sglang/alpha.py"].data)
    metadata = Entry(SDIST["PKG-INFO"].data.replace(worlds.VERSION.encode(), b"10.0"))
    archive = worlds.tar_bytes(SDIST | {"PKG-INFO": metadata, "sglang/alpha.py": alpha})
    sha256 = hashlib.sha256(archive).hexdigest()
    pins = lock.load(world.root)
    later = dataclasses.replace(
        world.release(), name="v10.0", version="10.0", tag="v10.0", archives={"sglang-10.0.tar.gz": sha256},
        identity={worlds.IDENTITY[0]: alpha.blob}, files={},
    )
    text = lock.dump(lock.Lock("v10.0", pins.with_release(later).releases))
    worlds.write(world.root, {
        "upstream.lock": text.encode(),
        "patches/v10.0/series": b"",
        f"cache/{sha256}/sglang-10.0.tar.gz": archive,
    })

    old, new = tmp_path / "old", tmp_path / "new"
    assert world.run("checkout", str(old), "--release", RELEASE) == 0
    assert world.run("checkout", str(new), "--no-patches") == 0
    run_git(new, "fetch", "--quiet", "--no-tags", str(old), "overlay:old")
    base = run_git(new, "rev-list", "--max-parents=0", "old").strip()
    run_git(new, "cherry-pick", f"{base}..old")
    assert world.run("refresh", str(new)) == 0

    first = load(world.root, "v10.0")[0]
    assert first.files[0].hunks[0].old_at == load(world.root, RELEASE)[0].files[0].hunks[0].old_at + 1
    assert world.run("apply") == 0 and world.run("verify") == 0
    assert (world.tree / "python/sglang/alpha.py").read_bytes().startswith(b"new in this release\n")
    assert world.run("apply", "--release", RELEASE) == 0
    assert world.files() == world.expected()
