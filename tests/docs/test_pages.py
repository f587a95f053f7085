# SPDX-License-Identifier: Apache-2.0
"""The handwritten pages quote what exists: error texts, metrics, commands, counters."""

from __future__ import annotations

import argparse
import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@functools.cache
def product_strings() -> list[str]:
    """Every string of the product, as the user would see it: pieces of f-strings, joined literals, shell scripts."""
    found = []
    sources = [*(ROOT / "overlay").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    for path in sources:
        if "/test/" in path.as_posix():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(parts))
    for path in (ROOT / "scripts").glob("*.sh"):
        found += path.read_text(encoding="utf-8").splitlines()
    return found


def quoted_errors() -> list[str]:
    return re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


def is_printed(error: str) -> bool:
    """Whether one string of the product has the parts of a quoted error, in their order."""
    parts = [re.escape(part.strip(" ;:,.")) for part in error.split("…") if len(part.strip(" ;:,.")) > 3]
    assert parts, "nothing to recognise it by"
    return any(re.search(".*".join(parts), text, re.DOTALL) for text in product_strings())


@pytest.mark.parametrize("error", quoted_errors())
def test_quoted_errors_exist(error):
    assert is_printed(error)


def test_an_invented_error_is_noticed():
    assert not is_printed("the server ate …")
    assert not is_printed("another run is working on … the hsa tree")


def test_every_refusal_can_be_looked_up(generator):
    """In the support matrix with all of its message, and there alone; the page of error texts leads to it."""
    from sglang.srt.layers.attention.hsa.refusals import REFUSALS

    template = "--attention-backend hsa does not support {} ({}): {}; {}."
    matrix, table = generator.MATRIX.read_text(encoding="utf-8").split("\n## Refusals\n")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    messages = [template.format(*row).replace("`", "") for row in rows]
    assert messages == [refusal.message for refusal in REFUSALS]
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    heading = "### `--attention-backend hsa does not support … (…): …; ….`\n"
    assert "](support_matrix.md#refusals)" in page.split(heading)[1].split("###")[0]
    others = [path.read_text(encoding="utf-8") for path in DOCS.glob("*.md") if path != generator.MATRIX]
    assert not [r.feature for r in REFUSALS for text in (matrix, *others) if r.message in text]
    rows = {line.replace("`", "") for text in others for line in text.splitlines() if line.startswith("| ")}
    assert not [r.feature for r in REFUSALS for row in rows if r.feature in row and r.instead in row]


def metrics_of(text: str) -> set[str]:
    return set(re.findall(r"sglang:(\w+)", text))


def hsa_metrics() -> set[str]:
    from sglang.srt.layers.attention.hsa.counters import COUNTERS

    return {f"hsa_{name}_total" for name in COUNTERS}


def test_dashboard_and_page_name_metrics_that_exist():
    """HSA's own come from its counters; the others have to be in SGLang's collector."""
    dashboard = (DOCS / "grafana" / "hsa.json").read_text(encoding="utf-8")
    collector = (ROOT / "sglang/python/sglang/srt/observability/metrics_collector.py").read_text(encoding="utf-8")
    for text in (dashboard, (DOCS / "metrics.md").read_text(encoding="utf-8")):
        own = {name for name in metrics_of(text) if name.startswith("hsa_")}
        assert own == hsa_metrics()
        for name in metrics_of(text) - own:
            assert f'"sglang:{re.sub("_(bucket|count|sum)$", "", name)}"' in collector, name


def test_dashboard_is_sound():
    board = json.loads((DOCS / "grafana" / "hsa.json").read_text(encoding="utf-8"))
    places = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & places and max(x for x, _ in cells) < 24, panel["title"]
        places |= cells
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {"model", "__rate_interval"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "model"}


def test_every_error_that_serving_adds_can_be_looked_up(generator):
    """Those of the ops are for who calls them with wrong tensors, not for who starts a server."""
    package = ROOT / "overlay" / "python" / "sglang" / "srt"
    files = [*(package / "layers" / "attention" / "hsa").glob("*.py"), package / "mem_cache" / "hsa_pool_setup.py"]
    texts = set().union(*map(generator.raised_texts, files)) - {"…"}  # the text of a refusal
    assert len(texts) > 12
    headings = [
        re.compile(".*".join(re.escape(part.strip(" .:;")) for part in error.split("…"))) for error in quoted_errors()
    ]
    assert not [text for text in texts if not any(heading.search(text) for heading in headings)]


def test_matrix_quotes_errors_that_are_raised(generator):
    cells = (*generator.CELLS, generator.Cell("A feature", "on", printed="HSA is tired of …."))
    assert generator.wrong_cells(cells) == ["A feature, on: nothing raises 'HSA is tired of ….'"]
    cells = tuple(cell for cell in generator.CELLS if not cell.printed)
    assert len(generator.wrong_cells(cells)) >= 4


def test_every_test_that_the_matrix_names_is_collected(generator):
    """pytest itself knows the ids, parameters included."""
    named = sorted({test for cell in generator.CELLS for test in cell.proof})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *named]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert collected.returncode == 0, collected.stdout[-2000:] + collected.stderr[-2000:]


@functools.cache
def server_actions() -> list[argparse.Action]:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser._actions


def server_options() -> set[str]:
    return {option for action in server_actions() for option in action.option_strings}


def test_cache_dtypes_are_those_of_the_parser(generator):
    [action] = [action for action in server_actions() if "--kv-cache-dtype" in action.option_strings]
    settings = {cell.setting for cell in generator.CELLS if cell.feature == "KV cache dtype"}
    assert {"bfloat16" if name == "bf16" else name for name in action.choices} - {"auto"} <= settings


@pytest.mark.parametrize(
    "page",
    (
        "guide.md recipes.md metrics.md troubleshooting.md hsa.md kernels.md speculative.md options.md architecture.md "
        "../README.md"
    ).split(),
)
def test_server_options_exist(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    of_tools = {"--force", "--source", "--write", "--quick", "--hsa-", "--release"}
    named = {option.rstrip("-") for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)} - {"--hsa"}
    assert named and named <= server_options() | of_tools, sorted(named - server_options() - of_tools)


def test_patches_that_can_go_alone_import_nothing_of_the_overlay():
    """Or the page about sending patches upstream names what has to go along."""
    page = (DOCS / "upstreaming.md").read_text(encoding="utf-8")
    overlay = ROOT / "overlay"
    rows = dict(re.findall(r"^\| `(\[\w+\] .+)` \| (.+) \|$", page, re.MULTILINE))
    found = {}
    for patch in sorted((ROOT / "patches").rglob("*.patch")):
        text = patch.read_text(encoding="utf-8")
        # A long subject goes on in the next line.
        subject = " ".join(re.search(r"^Subject: \[PATCH\] (.+(?:\n .+)*)", text, re.MULTILINE)[1].split())
        modules = re.findall(r"^\+\s*from sglang\.([\w.]+) import", text, re.MULTILINE)
        files = {f"{module.replace('.', '/')}.py" for module in modules}
        release = patch.relative_to(ROOT / "patches").parts[0]
        packages = [overlay / "python/sglang", overlay / release / "python/sglang"]
        files = {file for file in files if any((package / file).is_file() for package in packages)}
        if files and not subject.startswith("[HSA]"):
            found[subject] = files
    assert found.keys() == rows.keys()
    for subject, files in found.items():
        assert all(f"`{file}`" in rows[subject] for file in files), (subject, files)


# Where the options of a tool are defined, by how a page calls it.
TOOLS = {
    "scripts/apply_overlay.sh": ("scripts/overlay.py", "scripts/overlay_tool"),
    "scripts/overlay.py": ("scripts/overlay.py", "scripts/overlay_tool"),
    "scripts/source_map.py": ("scripts/source_map.py",),
    "scripts/support_matrix.py": ("scripts/support_matrix.py",),
    "scripts/model_classes.py": ("scripts/model_classes.py", "scripts/model_classes_tool"),
    "-m benchmarks.retrieval": ("benchmarks/retrieval",),
    "-m sglang.hsa_calibrate": ("overlay/python/sglang/hsa_calibrate",),
    "-m benchmarks.quality": ("benchmarks/quality",),
    "-m sglang.mini": ("overlay/python/sglang/mini",),
    "-m benchmarks.mini": ("benchmarks/mini", "overlay/python/sglang/mini"),
    "benchmarks/bench_": ("benchmarks",),
    "examples/needle/train.py": ("examples/needle/train.py",),
    "test_hsa_storage_machine.py": ("overlay/python/sglang/test/attention/test_hsa_storage_machine.py",),
}


def tool_commands(text: str) -> list[tuple[str, str]]:
    """(tool, option) of the indented lines of a page; a backslash at the end of a line goes on."""
    lines = re.findall(r"^ {4,}(.+)$", text.replace("\\\n", " "), re.MULTILINE)
    found = []
    for line in lines:
        command = line.split(" #")[0]
        tool = next((tool for tool in TOOLS if tool in command), None)
        options = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", command.split(tool, 1)[1]) if tool else []
        found += [(tool, option) for option in options]
    return found


def test_options_of_the_tools_exist():
    pages = [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/*/checkpoint/*.md")]
    named = {command for page in pages for command in tool_commands(page.read_text(encoding="utf-8"))}
    assert len(named) > 20 and ("scripts/overlay.py", "--release") in named
    for tool, option in sorted((tool, option) for tool, option in named if option != "--help"):
        places = [ROOT / place for place in TOOLS[tool]]
        files = [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]
        assert any(f'"{option}"' in file.read_text(encoding="utf-8") for file in files), f"{tool} has no {option}"


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_named_scripts_exist(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/])((?:scripts|benchmarks)/[\w/]+\.(?:py|sh|md))", text):
        assert (ROOT / path).is_file(), path


def test_the_quickstart_ends_with_what_to_do_next(tmp_path):
    import quickstart

    own, shared = quickstart.next_steps(ROOT / ".venv"), quickstart.next_steps(tmp_path)
    assert "source .venv/bin/activate\n" in own
    assert f"source {tmp_path}/bin/activate && export PYTHONPATH={ROOT}/sglang/python\n" in shared
    assert set(re.findall(r"(?<!\w)--[a-z-]+", own)) <= server_options()
    assert all((ROOT / page).is_file() for page in re.findall(r"docs/\w+\.md", own))


def logged_steps() -> dict[tuple[str, str], list[str]]:
    """Newest table of the log with times through the engine: (geometry, context x batch) -> its cells without spreads."""
    log = (ROOT / "benchmarks" / "LOG.md").read_text(encoding="utf-8")
    table = log.split("| geometry | context x batch |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {(row[0].upper(), row[1]): [cell.split(" (")[0] for cell in row[2:8]] for row in rows}


def test_the_log_divides_right():
    for shape, (prefill, dense_prefill, gain, step, dense_step, step_gain) in logged_steps().items():
        assert abs(float(dense_prefill) / float(prefill) - float(gain)) < 0.0055, shape
        assert abs(float(dense_step) / float(step) - float(step_gain)) < 0.0055, shape


def test_the_log_quotes_its_runs():
    """The newest folder with runs of steps has the times of the newest table."""
    folder = max(folder for folder in (ROOT / "benchmarks" / "runs").iterdir() if any(folder.glob("[0-9]*.json")))
    measured = {}
    for path in sorted(folder.glob("[0-9]*.json"), key=lambda path: len(path.name)):
        run = json.loads(path.read_text(encoding="utf-8"))
        for row in run["rows"]:
            shape = run["geometry"].upper(), f"{row['length'] // 1024}K x {row['batch']}"
            # A context that a run with a longer one repeats stands where it came first.
            measured.setdefault((*shape, row["backend"]), (row["prefill_ms"], row["step_ms"]))
    log = logged_steps()
    assert {(geometry, shape) for geometry, shape, backend in measured if backend == "hsa"} == set(log)
    for shape, (prefill, dense_prefill, _, step, dense_step, _) in log.items():
        for backend, cells in (("hsa", (prefill, step)), ("fa3", (dense_prefill, dense_step))):
            for cell, value in zip(cells, measured[(*shape, backend)]):
                assert abs(float(cell) - value) < 0.0006, (shape, backend)


def default_steps() -> dict[tuple[str, str], list[str]]:
    """The log's newest table of the defaults: (shape, context) -> prefill, step, FA3's prefill and step, and the ratios."""
    log = (ROOT / "benchmarks" / "LOG.md").read_text(encoding="utf-8")
    table = log.split("| shape, context | before: prefill, step | default: prefill, step |", 1)[1].split("\n\n", 1)[0]
    found = {}
    for line in table.splitlines()[2:]:
        name, _, default, dense, ratios = (cell.strip() for cell in line.strip("|").split("|"))
        if default != "not measured":
            times = [part.split(" (")[0] for cell in (default, dense) for part in cell.split(", ")]
            found[tuple(name.split(", "))] = [*times, *ratios.split(", ")]
    return found


def test_the_log_divides_right_for_the_defaults():
    steps = default_steps()
    assert len(steps) == 4
    for shape, (prefill, step, dense_prefill, dense_step, gain, step_gain) in steps.items():
        if prefill == "not measured":
            assert gain == prefill
        else:
            assert abs(float(dense_prefill) / float(prefill) - float(gain)) < 0.0055, shape
        assert abs(float(dense_step) / float(step) - float(step_gain)) < 0.0055, shape


def test_measurements_are_those_of_the_log():
    """Times in the guide, and ratios in the README and on the performance page."""
    log, defaults = logged_steps(), default_steps()
    pages = {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in ("README.md", "docs/guide.md", "docs/performance.md")
    }
    times = re.findall(
        r"^\| (\w+, \d+K) \| ([\d.]+|not measured) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", pages["docs/guide.md"], re.MULTILINE
    )
    assert len(times) == len(defaults)
    for shape, *row in times:
        prefill, step, dense_prefill, dense_step, *_ = defaults[tuple(shape.split(", "))]
        assert row == [prefill, dense_prefill, step, dense_step], shape

    for page in ("README.md", "docs/performance.md"):
        rows = re.findall(r"^\| (345M|8B) \| ([^/|]+ / \S+|not measured) \| ([^/|]+ / \S+|not measured) \|$", pages[page], re.M)
        assert [row[0] for row in rows] == ["345M", "8B"], page
        for geometry, *cells in rows:
            for context, cell in zip(("64K", "128K"), cells, strict=True):
                ratios = defaults.get((geometry, context), ["not measured"])[-2:]
                assert cell == " / ".join(ratios), (page, geometry, context)

    rows = re.findall(
        r"^\| (prefill|decode step), (\w+)(?:, batch (\d+))?, ([^|]+) \| [^|]+ \| ([^|]+) \|$",
        pages["docs/performance.md"],
        re.MULTILINE,
    )
    assert len(rows) == 6
    for what, geometry, batch, contexts, ratios in rows:
        for context, ratio in zip(contexts.split(" / "), ratios.split(" / "), strict=True):
            cells = log[geometry, f"{context} x {batch or 1}"]
            assert ratio == cells[2 if what == "prefill" else 5], (what, geometry, context)


def gates() -> dict:
    """The newest run of the quality gates on a pretrained model."""
    path = max((ROOT / "benchmarks" / "runs").glob("*-quality/gates-*.json"))
    return json.loads(path.read_text(encoding="utf-8"))


def test_quality_numbers_are_those_of_the_run():
    """The README's row and the first rows of the quality page's results."""
    rows = {(row["context"], row["kind"], row["budget"], row["layers"]): row for row in gates()["rows"]}
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/quality.md")}
    [row] = re.findall(r"^\| pass keys found of 40, dense / HSA \| (.*) \|$", pages["README.md"], re.MULTILINE)
    for context, cell in zip((4096, 7500), row.split("|"), strict=True):
        measured = next(row for row in rows.values() if row["default"] and row["context"] == context)
        assert measured["kind"] == "slow_keys" and measured["budget"] == 32 and measured["keys_total"] == 40
        assert cell.replace("*", "").strip() == f"{measured['keys_dense']} / {measured['keys']}", context
    assert gates()["holds"] and gates()["complete"] and "All quality gates hold" in pages["README.md"]

    table = re.findall(
        r"^\| ([\d,]+) \| `(\w+)`, (\d+)(?: \(default\))? \| `([^`]+)` \| (\d+) % \| (\d+) \| (\d+) \| \+([\d.]+) % \|",
        pages["docs/quality.md"],
        re.MULTILINE,
    )
    assert len(table) == len(rows)
    for context, kind, budget, layers, share, keys, dense, loss in table:
        measured = rows[int(context.replace(",", "")), kind, int(budget), layers]
        shown = round(100 * measured["share"]), measured["keys"], measured["keys_dense"], f"{measured['ppl_loss']:.2f}"
        assert (int(share), int(keys), int(dense), loss) == shown, (context, kind, budget)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_example_of_choosing_tests_chooses_some(page):
    """pytest's -k looks for a part of a name."""
    [part] = re.findall(r"scripts/test\.sh -k (\w+)", (ROOT / page).read_text(encoding="utf-8"))
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "overlay/python/sglang/test/attention").glob("test_*.py")]
    names = [name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text(encoding="utf-8"))]
    assert any(part in name for name in names)
