# SPDX-License-Identifier: Apache-2.0
"""The documentation says what the code does: tables, counters, links, versions."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])


def test_support_matrix_is_current(generator):
    written = generator.MATRIX.read_text(encoding="utf-8")
    assert written == generator.support_matrix(), "run scripts/support_matrix.py --write"


# Every row that a reader may ask for; the matrix has at least these.
FEATURES = (
    "Page size", "KV cache dtype", "CUDA graph", "Radix cache", "Chunked prefill", "Mixed chunk", "Overlap schedule",
    "Speculative decoding", "Sliding window", "Soft cap", "Tensor parallel", "Data parallel", "Pipeline parallel",
    "Prefill-decode disaggregation", "Hierarchical cache", "LoRA", "Deterministic inference", "CPU", "Models",
)  # fmt: skip


def test_every_cell_of_the_matrix_has_a_test_or_a_refusal(generator):
    from sglang.srt.layers.attention.hsa import config

    assert not generator.wrong_cells()
    assert set(FEATURES) <= {cell.feature for cell in generator.CELLS}

    def settings(feature):
        return [cell.setting for cell in generator.CELLS if cell.feature == feature]

    assert settings("Page size") == [str(size) for size in config.PAGE_SIZES]
    assert "other multimodal ones" in settings("Models") and "prefill" in settings("CUDA graph")


def test_speculative_kinds_are_those_of_the_parser(generator):
    import argparse

    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    [action] = [action for action in parser._actions if "--speculative-algorithm" in action.option_strings]
    # Since 0.5.13 others can be registered, and the help names those that are built in.
    kinds = action.choices or re.search(r"Builtins: ([^.]+)\.", action.help)[1].split(", ")
    settings = [cell.setting for cell in generator.CELLS if cell.feature == "Speculative decoding"]
    assert (settings[: len(kinds)] if action.choices else settings) == kinds


@pytest.mark.parametrize(
    "proof, refusal, message",
    [
        ((), "", "needs either a test or a refusal"),
        (("tests/test_docs.py::test_support_matrix_is_current",), "LMCache", "needs either a test or a refusal"),
        (("tests/no_such_file.py::test_x",), "", "there is no file"),
        (("tests/test_docs.py::test_no_such_test",), "", "has no test_no_such_test"),
        (("tests/test_docs.py::test_links_lead_somewhere[nowhere.md]",), "", "has no parameter"),
        ((), "time travel", "there is no refusal named"),
    ],
)
def test_a_wrong_cell_is_found(generator, proof, refusal, message):
    cell = generator.Cell("A feature", "on", proof, refusal)
    assert any(message in line for line in generator.wrong_cells((*generator.CELLS, cell)))


def test_a_refusal_left_out_is_found(generator):
    cells = tuple(cell for cell in generator.CELLS if cell.refusal != "LMCache")
    assert generator.wrong_cells(cells) == ["LMCache: refused, but not in the matrix"]


def test_options_are_current(generator):
    page = ROOT / "docs" / "options.md"
    current = generator.options_with(generator.options_table())
    assert page.read_text(encoding="utf-8") == current, "run scripts/support_matrix.py --write"


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
    from sglang.srt.layers.attention.hsa.page_repr import KINDS

    guide = (ROOT / "docs" / "hsa.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)`(?: \(default\))? \|.*\| \d D", guide, re.MULTILINE)
    assert rows == [kind.name for kind in KINDS.values()]


def test_architecture_names_files_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^(\d)\. \*\*", text, re.MULTILINE) == list("12345678")
    homes = {"hsa": "layers/attention/hsa", "mem_cache": "mem_cache"}
    named = re.findall(r"`(hsa|mem_cache)/([\w/]+\.py)`", text)
    assert len(named) > 20
    for home, file in named:
        assert (ROOT / "overlay/python/sglang/srt" / homes[home] / file).is_file(), f"{home}/{file}"


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
