# SPDX-License-Identifier: Apache-2.0
"""The documentation says what the code does: tables, counters, links, versions."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("support_matrix", ROOT / "scripts" / "support_matrix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_support_matrix_is_current(generator):
    written = generator.MATRIX.read_text(encoding="utf-8")
    assert written == generator.support_matrix(), "run scripts/support_matrix.py --write"


def test_readme_options_are_current(generator):
    written = generator.README.read_text(encoding="utf-8")
    assert written == generator.readme_with(generator.options_table()), "run scripts/support_matrix.py --write"


def test_every_option_has_a_row(generator):
    """The table comes from the parser; HSAConfig is where options are defined."""
    import dataclasses

    from sglang.srt.layers.attention.hsa.config import HSAConfig, option

    rows = re.findall(r"^\| `(--[a-z-]+)`", generator.options_table(), re.MULTILINE)
    assert rows == [option(field.name) for field in dataclasses.fields(HSAConfig)]


def test_guide_names_every_counter():
    from sglang.srt.layers.attention.hsa.counters import COUNTERS

    guide = (ROOT / "docs" / "hsa.md").read_text(encoding="utf-8")
    table = guide.split("## What ran")[1]
    assert re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE) == list(COUNTERS)


def test_guide_names_every_representation():
    from sglang.srt.layers.attention.hsa.chunk_repr import KINDS

    guide = (ROOT / "docs" / "hsa.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)`(?: \(default\))? \|.*\| \d D", guide, re.MULTILINE)
    assert rows == [kind.name for kind in KINDS.values()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_linter_versions_agree():
    """CI installs the linters from the package index, pre-commit from their repositories."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pinned = re.findall(r"^([a-z-]+)==(.+)$", (ROOT / ".ci" / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned
    for package, version in pinned:
        repository = {"ruff": "ruff-pre-commit", "isort": "isort"}.get(package, package)
        found = re.search(rf"repo: https://github.com/\S+/{repository}\n\s+rev: v?(\S+)", hooks)
        assert found and found[1] == version, package
