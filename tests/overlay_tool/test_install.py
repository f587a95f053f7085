# SPDX-License-Identifier: Apache-2.0
"""The tree's root as a project: `pip install -e` gives upstream's metadata, and the tool ignores what pip writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest
import world as worlds
from overlay_tool.tree import Entry

RUNNING = "cp%d%d" % sys.version_info[:2]
HOOK = """
import importlib, os, sys
os.chdir(sys.argv[1])
sys.path.insert(0, sys.argv[1])
backend = importlib.import_module("_sglang_build")
print("result:", getattr(backend, sys.argv[2])(*sys.argv[3:]))
"""


@pytest.fixture
def tree(world) -> Path:
    """The synthetic tree with the real root project, below a git repository with a tag of its own."""
    for name in ("pyproject.toml", "_sglang_build.py"):
        shutil.copy(worlds.REPOSITORY / "overlay" / name, world.root / "overlay" / name)
    worlds.run_git(world.root, "init", "--quiet")
    worlds.commit(world.root, "parent")
    worlds.run_git(world.root, "tag", "v1.0.0")
    assert world.run("apply") == 0
    return world.tree


def hook(tree: Path, name: str, *args: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("SETUPTOOLS_SCM")}
    done = subprocess.run([sys.executable, "-c", HOOK, str(tree), name, *args], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.rsplit("result: ", 1)[1].strip()


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_metadata_is_upstreams(tree, tmp_path, kind):
    (tmp_path / "meta").mkdir()
    folder = hook(tree, f"prepare_metadata_for_build_{kind}", str(tmp_path / "meta"))
    metadata = Parser().parsestr((tmp_path / "meta" / folder / "METADATA").read_text())
    assert (metadata["Name"], metadata["Version"]) == ("sglang", worlds.VERSION)
    assert metadata.get_all("Requires-Dist") == ["first-need>=1", "second-need"]
    assert "sglang = sglang:main" in (tmp_path / "meta" / folder / "entry_points.txt").read_text()


def test_an_editable_installation_is_found_before_the_folder_next_to_it(tree, world, tmp_path):
    """From the repository's root, `sglang` is also the name of a folder without __init__.py."""
    wheel = hook(tree, "build_editable", str(tmp_path))
    site = tmp_path / "site"
    shutil.unpack_archive(tmp_path / wheel, site, "zip")
    code = f"import site; site.addsitedir({str(site)!r}); import sglang; print(sglang.__file__)"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=world.root, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(tree / "python/sglang/__init__.py"), done.stderr


NEEDS = b"Requires-Dist: first-need>=1\nRequires-Dist: second-need\n"
SCRIPTS = b"[console_scripts]\nsglang = sglang:main\n"


def lay_out_wheel(world, tmp_path, python: str, metadata: bool = True) -> None:
    shutil.rmtree(world.tree)
    files = {path: entry for path, entry in worlds.SDIST.items() if path.startswith("sglang/")}
    if metadata:
        info = f"sglang-{worlds.VERSION}.dist-info"
        files[f"{info}/METADATA"] = Entry(worlds.SDIST["PKG-INFO"].data + NEEDS)
        files[f"{info}/WHEEL"] = Entry(f"Wheel-Version: 1.0\nTag: {python}-{python}-linux_x86_64\n".encode())
        files[f"{info}/RECORD"] = Entry(b"sglang/alpha.py,,\n")
        files[f"{info}/entry_points.txt"] = Entry(SCRIPTS)
    wheel = tmp_path / f"sglang-{worlds.VERSION}-{python}-{python}-linux_x86_64.whl"
    wheel.write_bytes(worlds.zip_bytes(files))
    assert world.run("apply", "--source", str(wheel)) == 0


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_tree_from_a_wheel_has_the_wheels_metadata(tree, world, tmp_path, kind):
    lay_out_wheel(world, tmp_path, RUNNING)
    assert hook(tree, f"get_requires_for_build_{kind}") == "[]"
    (tmp_path / "meta").mkdir()
    folder = hook(tree, f"prepare_metadata_for_build_{kind}", str(tmp_path / "meta"))
    metadata = Parser().parsestr((tmp_path / "meta" / folder / "METADATA").read_text())
    assert (metadata["Name"], metadata["Version"]) == ("sglang", worlds.VERSION)
    assert metadata.get_all("Requires-Dist") == ["first-need>=1", "second-need"]

    made = hook(tree, f"build_{kind}", str(tmp_path / "meta"))
    assert made == f"sglang-{worlds.VERSION}-{RUNNING}-{RUNNING}-linux_x86_64.whl"
    site = tmp_path / "site"
    shutil.unpack_archive(tmp_path / "meta" / made, site, "zip")
    assert (site / folder / "entry_points.txt").read_bytes() == SCRIPTS
    recorded = {line.split(",")[0] for line in (site / folder / "RECORD").read_text().splitlines()}
    assert recorded == {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    code = f"import site; site.addsitedir({str(site)!r}); import sglang.added; print(sglang.main(), sglang.__file__)"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=world.root, env=env, capture_output=True, text=True)
    place = site if kind == "wheel" else tree / "python"
    assert done.stdout.strip() == f"upstream {place}/sglang/__init__.py", done.stderr
    assert world.run("verify") == 0


def test_a_tree_from_a_wheel_of_another_python_is_refused(tree, world, tmp_path):
    lay_out_wheel(world, tmp_path, "cp39")
    for name, arguments in (("get_requires_for_build_editable", []), ("build_editable", [str(tmp_path / "out")])):
        line = refusal(tree, name, *arguments)
        assert f"{tree} was made from a wheel for Python 3.9, this is 3." in line and "with PYTHON set to this one" in line


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_tree_without_project_and_metadata_is_refused(tree, world, tmp_path, kind):
    """Without either setuptools would install an empty sglang 0.0.0."""
    lay_out_wheel(world, tmp_path, RUNNING, metadata=False)
    for name, arguments in ((f"get_requires_for_build_{kind}", []), (f"build_{kind}", [str(tmp_path / "out")])):
        line = refusal(tree, name, *arguments)
        assert f"{tree} was made from a source without" in line and "delete it and run scripts/apply_overlay.sh" in line
    shutil.rmtree(tree)
    assert world.run("apply") == 0  # as the line says
    hook(tree, f"build_{kind}", str(tmp_path))
    assert list(tmp_path.glob(f"sglang-{worlds.VERSION}-*.whl"))


def refusal(tree: Path, name: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", HOOK, str(tree), name, *args], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_what_pip_writes_is_no_edit(tree, world, tmp_path):
    hook(tree, "build_editable", str(tmp_path))
    assert b"as shipped" not in (tree / "python/sglang/_version.py").read_bytes()
    assert world.run("verify") == 0 and world.run("apply") == 0
    assert world.run("reverse") == 0
    assert world.files() == worlds.PRISTINE
