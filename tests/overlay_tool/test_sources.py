# SPDX-License-Identifier: Apache-2.0
"""Where a tree may come from, and everything that must not get in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile

import pytest
import world as worlds
from overlay_tool import fetch, gitio
from overlay_tool.archives import read_archive
from overlay_tool.console import OverlayError
from overlay_tool.tree import Entry
from world import ARCHIVE, OVERLAY, PRISTINE, RELEASE, SDIST, VERSION, replace, tar_bytes, write, zip_bytes

ORIGINAL_DOWNLOAD = fetch._pip_download

# A git checkout has the whole repository and none of the sdist's generated files.
CHECKOUT = {
    path: entry for path, entry in PRISTINE.items() if "PKG-INFO" not in path and not path.endswith("_version.py")
} | {"README.md": Entry(b"# SGLang\n"), "test/case.py": Entry(b"case\n")}


@pytest.fixture
def clone(tmp_path):
    folder = write(tmp_path / "clone", CHECKOUT)
    worlds.run_git(folder, "init", "--quiet")
    worlds.commit(folder, "upstream")
    worlds.run_git(folder, "tag", RELEASE)
    return folder


def ours(world) -> dict[str, Entry]:
    """Everything that apply changes, as it should come out of any source."""
    expected = world.expected()
    return {path: expected.get(path) for path in [*world.release().files, *OVERLAY]}


def assert_applied(world) -> None:
    files = world.files()
    assert {path: files.get(path) for path in ours(world)} == ours(world)


@pytest.mark.parametrize("layout", ["sdist", "repository"])
def test_folder(world, tmp_path, layout):
    source = write(tmp_path / "source", SDIST if layout == "sdist" else PRISTINE)
    before = sorted(source.rglob("*"))
    assert world.run("apply", "--source", str(source)) == 0
    assert world.files() == world.expected()
    assert sorted(source.rglob("*")) == before


def test_relative_folder(world, tmp_path, monkeypatch):
    write(tmp_path / "source", SDIST)
    monkeypatch.chdir(tmp_path)
    assert world.run("apply", "--source", "source") == 0
    assert_applied(world)


@pytest.mark.parametrize(
    "name,data",
    [
        (ARCHIVE, tar_bytes(SDIST)),
        ("repository.tar.gz", tar_bytes(CHECKOUT, top="sglang-tag")),
        ("repository.zip", zip_bytes(CHECKOUT, top="sglang-tag/")),
        ("bare.zip", zip_bytes(PRISTINE)),
    ],
)
def test_archives(world, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert world.run("apply", "--source", str(tmp_path / name)) == 0
    assert_applied(world)


def test_wheel_of_any_python(world, tmp_path, capfd):
    files = {path: entry for path, entry in SDIST.items() if path.startswith("sglang/")}
    files[f"sglang-{VERSION}.dist-info/METADATA"] = SDIST["PKG-INFO"]
    wheel = tmp_path / f"sglang-{VERSION}-cp312-cp312-linux_x86_64.whl"  # its sources are those of any Python
    wheel.write_bytes(zip_bytes(files))
    assert world.run("apply", "--source", str(wheel)) == 0
    assert_applied(world)
    assert "next: pip install -e" in capfd.readouterr().out


def test_folder_without_project_says_that_pip_cannot_install_it(world, tmp_path, capfd):
    files = {path: entry for path, entry in SDIST.items() if path.startswith("sglang/")}
    assert world.run("apply", "--source", str(write(tmp_path / "source", files))) == 0
    assert "PYTHONPATH=" in capfd.readouterr().out


def test_git_checkout_gives_its_tracked_files(world, clone):
    write(clone, {"untracked.txt": b"not upstream's\n"})
    assert world.run("apply", "--source", str(clone)) == 0
    assert_applied(world)
    assert "untracked.txt" not in world.files() and "test/case.py" in world.files()
    assert not (world.tree / ".git").exists()


def test_reverse_of_a_git_checkout_restores_the_whole_repository(world, clone):
    world.run("apply", "--source", str(clone))
    assert world.run("reverse") == 0
    assert world.files() == CHECKOUT


def test_git_checkout_with_changes_is_refused(world, clone, error_line):
    replace(clone / "README.md", b"SGLang", b"Mine")
    assert world.run("apply", "--source", str(clone)) == 1
    assert "has uncommitted changes" in error_line()


def test_git_url_is_cloned_at_the_tag(world, clone):
    replace(clone / "python/sglang/alpha.py", b"line 30\n", b"later work\n")
    worlds.commit(clone, "after the tag")
    assert world.run("apply", "--git", clone.as_uri()) == 0
    assert_applied(world)


def test_git_url_that_does_not_answer(world, tmp_path, error_line):
    assert world.run("apply", "--git", (tmp_path / "nowhere").as_uri()) == 1
    assert "cannot clone" in error_line()
    assert not world.tree.exists()


def test_missing_git_is_one_line_and_apply_needs_none(world, clone, tmp_path, monkeypatch, error_line):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert world.run("apply", "--source", str(clone)) == 1
    assert "git was not found" in error_line()
    for command in (["checkout", str(tmp_path / "x")], ["refresh", str(clone)], ["apply", "--git", "url"]):
        assert world.run(*command) == 1
        assert "git was not found" in error_line()
    assert world.run("apply") == 0
    assert world.files() == world.expected()


def test_wrong_release_by_metadata(world, tmp_path, error_line):
    files = SDIST | {"PKG-INFO": Entry(b"Name: sglang\nVersion: 9.9.9\n")}
    assert world.run("apply", "--source", str(write(tmp_path / "source", files))) == 1
    assert f"wrong release: the source is SGLang 9.9.9, not {VERSION}" in error_line()
    assert not world.tree.exists()


@pytest.mark.parametrize("name", [ARCHIVE, "sglang-9.9.9-cp312-cp312-linux_x86_64.whl"])
def test_another_release_is_not_called_a_wrong_hash(world, tmp_path, error_line, name):
    """Under the name of the pinned archive, and as a wheel."""
    metadata = Entry(b"Name: sglang\nVersion: 9.9.9\n")
    files = SDIST | {"PKG-INFO": metadata}
    if name.endswith(".whl"):
        files = {path: entry for path, entry in SDIST.items() if path.startswith("sglang/")}
        files["sglang-9.9.9.dist-info/METADATA"] = metadata
    (tmp_path / name).write_bytes(zip_bytes(files) if name.endswith(".whl") else tar_bytes(files))
    assert world.run("apply", "--source", str(tmp_path / name)) == 1
    line = error_line()
    assert f"wrong release: the source is SGLang 9.9.9, not {VERSION}" in line and "hash" not in line
    assert not world.tree.exists()


def test_wrong_release_by_content(world, clone, error_line):
    replace(clone / "python/sglang/crlf.py", b"line 3\r\n", b"other\r\n")
    worlds.commit(clone, "another release")
    assert world.run("apply", "--source", str(clone)) == 1
    line = error_line()
    assert "wrong release: 1 of 8 checked files" in line and "crlf.py" in line


@pytest.mark.parametrize("kind", ["missing", "text file", "empty folder"])
def test_sources_that_are_none(world, tmp_path, error_line, kind):
    source = tmp_path / "source"
    if kind == "text file":
        source.write_text("hello")
    elif kind == "empty folder":
        source.mkdir()
    assert world.run("apply", "--source", str(source)) == 1
    assert "source" in error_line()


def test_truncated_archive(world, tmp_path, error_line):
    (tmp_path / "cut.tar.gz").write_bytes(tar_bytes(SDIST)[:-200])
    assert world.run("apply", "--source", str(tmp_path / "cut.tar.gz")) == 1
    assert "cut.tar.gz is not a readable archive" in error_line()


def test_source_and_tree_may_not_overlap(world, error_line):
    write(world.tree, SDIST)
    assert world.run("apply", "--source", str(world.tree), "--force") == 1
    assert "--source and --tree overlap" in error_line()


def test_source_and_git_exclude_each_other(world, tmp_path, error_line):
    assert world.run("apply", "--source", str(tmp_path), "--git") == 1
    assert "exclude each other" in error_line()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    made.size = 1 if kind == tarfile.REGTYPE else 0
    return made


TOP = f"sglang-{VERSION}"
EVIL = {
    "parent folder": ([member(f"{TOP}/../../evil")], "unsafe path"),
    "absolute path": ([member("/evil")], "unsafe path"),
    "backslash": ([member(f"{TOP}/..\\evil")], "unsafe path"),
    "git folder": ([member(f"{TOP}/.git/config")], "git's own files"),
    "absolute link": ([member(f"{TOP}/link", tarfile.SYMTYPE, "/etc/passwd")], "leaves the tree"),
    "escaping link": ([member(f"{TOP}/a/link", tarfile.SYMTYPE, "../../../evil")], "leaves the tree"),
    "write through a link": (
        [member(f"{TOP}/door", tarfile.SYMTYPE, "sglang"), member(f"{TOP}/door/evil")],
        "lies below door",
    ),
    "hard link": ([member(f"{TOP}/hard", tarfile.LNKTYPE, f"{TOP}/PKG-INFO")], "a device or a hard link"),
    "device": ([member(f"{TOP}/null", tarfile.CHRTYPE)], "a device or a hard link"),
    "pipe": ([member(f"{TOP}/pipe", tarfile.FIFOTYPE)], "a device or a hard link"),
    "same name twice": ([member(f"{TOP}/PKG-INFO")], "twice"),
}


@pytest.mark.parametrize("extra,reason", EVIL.values(), ids=EVIL)
def test_evil_tar_archives_are_refused_before_anything_is_written(world, tmp_path, error_line, extra, reason):
    (tmp_path / "evil.tar.gz").write_bytes(tar_bytes(SDIST, extra=extra))
    before = sorted(tmp_path.rglob("*"))
    assert world.run("apply", "--source", str(tmp_path / "evil.tar.gz")) == 1
    assert reason in error_line()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "path,entry,reason",
    [
        ("../evil", Entry(b"x"), "unsafe path"),
        ("/evil", Entry(b"x"), "unsafe path"),
        ("sglang/link", Entry(b"../../evil", "120000"), "leaves the tree"),
        ("sglang/null", Entry(b"", "020644"), "a device"),
    ],
)
def test_evil_zip_archives_are_refused(path, entry, reason):
    with pytest.raises(OverlayError, match=reason):
        read_archive("evil.zip", zip_bytes(SDIST | {path: entry}))


def test_a_folder_with_an_escaping_link_is_refused(world, tmp_path, error_line):
    source = write(tmp_path / "source", SDIST)
    (source / "sglang/link").symlink_to("/etc/passwd")
    assert world.run("apply", "--source", str(source)) == 1
    assert "leaves the tree" in error_line()


def test_links_inside_the_tree_survive_apply_and_reverse(world, tmp_path):
    source = write(tmp_path / "source", SDIST)
    (source / "sglang/link.py").symlink_to("alpha.py")
    (source / "sglang/door").symlink_to("../sglang")
    assert world.run("apply", "--source", str(source)) == 0
    assert os.readlink(world.tree / "python/sglang/link.py") == "alpha.py"
    assert world.run("reverse") == 0
    links = {"python/sglang/link.py": Entry(b"alpha.py", "120000"), "python/sglang/door": Entry(b"../sglang", "120000")}
    assert world.files() == PRISTINE | links


def cached(world):
    return world.root / "cache" / world.release().archives[ARCHIVE] / ARCHIVE


@pytest.fixture
def pip(world, monkeypatch):
    """pip replaced by a function; the cache is empty. Returns the commands that were run."""
    data = cached(world).read_bytes()
    shutil.rmtree(world.root / "cache")
    monkeypatch.setattr(fetch, "_pip_download", ORIGINAL_DOWNLOAD)
    commands = []

    def install(archive=data, output="", code=0):
        def run(command, **_):
            commands.append(command)
            folder = command[command.index("--dest") + 1]
            if code == 0:
                os.makedirs(folder)
                with open(os.path.join(folder, ARCHIVE), "wb") as out:
                    out.write(archive)
            return subprocess.CompletedProcess(command, code, stdout="", stderr=output)

        monkeypatch.setattr(fetch.subprocess, "run", run)
        return commands

    return install


def test_pip_is_asked_once_and_the_archive_is_kept(world, pip):
    commands = pip()
    assert world.run("apply") == 0
    assert world.files() == world.expected()
    assert len(commands) == 1 and "download" in commands[0] and "--no-deps" in commands[0]
    assert commands[0][commands[0].index("sglang") - 1] == "--no-binary"
    shutil.rmtree(world.tree)
    assert world.run("apply") == 0
    assert len(commands) == 1


def test_a_wrong_archive_from_pip_is_refused_and_not_kept(world, pip, error_line):
    pip(archive=tar_bytes(SDIST | {"extra.py": Entry(b"evil")}))
    assert world.run("apply") == 1
    assert "wrong hash" in error_line()
    assert not world.tree.exists() and not cached(world).exists()


def test_pips_own_hash_refusal_is_one_line(world, pip, error_line):
    pip(code=1, output="ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n  Expected ...")
    assert world.run("apply") == 1
    assert "wrong hash: the package index serves another" in error_line()


def test_a_wheel_for_another_python_is_not_called_a_wrong_hash(world, pip, error_line):
    other = f"sglang-{VERSION}-cp312-cp312-linux_x86_64.whl"
    output = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
        f"    sglang=={VERSION} from https://example.invalid/{other} (from -r requirements.txt (line 1)):\n"
        "        Expected sha256 00\n             Got        11\n"
    )
    pip(code=1, output=output)
    assert world.run("apply") == 1
    line = error_line()
    assert f"wrong file: pip chose {other} for this Python, upstream.lock pins {ARCHIVE}" in line and "hash" not in line
    pip(code=1, output=output.replace(other, ARCHIVE))
    assert world.run("apply") == 1
    assert "wrong hash: the package index serves another" in error_line()


def test_no_network_is_one_line(world, pip, error_line):
    output = (
        "WARNING: Retrying after connection broken by NewConnectionError\n"
        "ERROR: Could not find a version that satisfies the requirement sglang (from versions: none)\n"
        "ERROR: No matching distribution found for sglang\n"
    )
    pip(code=1, output=output)
    assert world.run("apply") == 1
    line = error_line()
    assert "pip cannot fetch" in line and "--source" in line
    assert not world.tree.exists()


def test_no_network_leaves_an_existing_tree(world, pip):
    pip(code=1, output="ERROR: no network\n")
    write(world.tree, PRISTINE)
    before = world.everything()
    assert world.run("apply") == 1
    assert world.everything() == before and world.leftovers() == []


def test_a_version_that_the_index_lacks(world, pip, error_line):
    pip(code=1, output="ERROR: Could not find a version ... (from versions: 0.4.0, 0.5.0)\n")
    assert world.run("drift", "77.1") == 1
    assert "the package index has no sglang 77.1" in error_line()


def test_a_damaged_cache_is_fetched_again(world, pip, capfd):
    commands = pip()
    cached(world).parent.mkdir(parents=True)
    cached(world).write_bytes(b"rotten")
    assert world.run("apply") == 0
    assert len(commands) == 1 and "is damaged" in capfd.readouterr().err
    assert fetch._sha256(cached(world).read_bytes()) == world.release().archives[ARCHIVE]


def test_a_cache_that_cannot_be_written_costs_only_the_cache(world, pip, monkeypatch, capfd):
    pip()
    monkeypatch.setenv("SGLANG_HSA_CACHE", "/proc/no-such-place")
    assert world.run("apply") == 0
    assert "not kept in the cache" in capfd.readouterr().err
    assert world.files() == world.expected()


def test_a_named_pin_with_a_wrong_hash_is_refused(world, tmp_path, error_line):
    (tmp_path / ARCHIVE).write_bytes(tar_bytes(SDIST, top="other"))
    assert world.run("apply", "--source", str(tmp_path / ARCHIVE)) == 1
    assert "wrong hash" in error_line()


def test_without_pip(world, pip, monkeypatch, error_line):
    pip()
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    assert world.run("apply") == 1
    assert "has no pip" in error_line()


def test_read_commit_gives_gits_bytes(clone):
    assert gitio.read_commit(clone, "HEAD") == CHECKOUT
