#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write what the code says into the documentation: the support matrix and the options.

    support_matrix.py            print the support matrix
    support_matrix.py --options  print the table of options
    support_matrix.py --write    bring docs/support_matrix.md and docs/options.md up to date

It reads HSA's refusals and defaults, so it needs the environment that quickstart.sh or test.sh makes. What is supported is
listed in support_matrix_cells.py with the test that proves it; a test that does not exist is an error.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

from support_matrix_cells import CELLS, Cell

ROOT = Path(__file__).resolve().parents[1]
MATRIX = ROOT / "docs" / "support_matrix.md"
OPTIONS = ROOT / "docs" / "options.md"

INTERPRETED = " (on a CPU with `TRITON_INTERPRET=1`)"


def wrong_cells(cells: tuple[Cell, ...] = CELLS) -> list[str]:
    """What is wrong with the matrix, one line each: cells without a proof, tests that do not exist, refusals left out."""
    from sglang.srt.layers.attention.hsa.refusals import REFUSALS

    known = {refusal.feature for refusal in REFUSALS}
    raised = set().union(*map(raised_texts, (ROOT / "overlay" / "python" / "sglang" / "srt").rglob("*.py")))
    wrong = []
    for cell in cells:
        name = f"{cell.feature}, {cell.setting}"
        if [bool(cell.proof), bool(cell.refusal), bool(cell.printed)].count(True) != 1:
            wrong.append(f"{name}: needs either a test or a refusal")
        if cell.printed and cell.printed not in raised:
            wrong.append(f"{name}: nothing raises {cell.printed!r}")
        if cell.refusal and cell.refusal not in known:
            wrong.append(f"{name}: there is no refusal named {cell.refusal!r}")
        wrong += [f"{name}: {problem}" for test in cell.proof for problem in _wrong_test(test)]
    wrong += [f"{feature}: refused, but not in the matrix" for feature in known - {cell.refusal for cell in cells}]
    unsupported = {text for text in raised if "hsa does not " in text}
    wrong += [f"{text}: raised, but not in the matrix" for text in unsupported - {cell.printed for cell in cells}]
    return wrong


def raised_texts(path: Path) -> set[str]:
    """Texts of the errors that a file raises, `…` for what differs."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = node.exc.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts))
    return found


def _wrong_test(test: str) -> list[str]:
    """Why a test id names no test; parameters are looked up in the decorators and the constants that these name."""
    path, _, name = test.partition("::")
    name, _, params = name.rstrip("]").partition("[")
    if not (ROOT / path).is_file():
        return [f"there is no file {path}"]
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    function = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    if function is None:
        return [f"{path} has no {name}"]
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    values: set[str] = set()
    todo: list[ast.AST] = list(function.decorator_list)
    while todo:
        for node in ast.walk(todo.pop()):
            if isinstance(node, ast.Constant):
                values.add(str(node.value))
            elif isinstance(node, ast.Name) and node.id in constants:
                todo.append(constants.pop(node.id))
    missing = [] if not params or params in values else [part for part in params.split("-") if part not in values]
    return [f"{path}::{name} has no parameter {part}" for part in missing]


def support_matrix() -> str:
    """The page docs/support_matrix.md."""
    from sglang.srt.layers.attention.hsa import config
    from sglang.srt.layers.attention.hsa.page_repr import KINDS
    from sglang.srt.layers.attention.hsa.refusals import REFUSALS

    values = (
        ("Page size", config.PAGE_SIZES, config.HSAConfig.page_size),
        ("Page representation", KINDS, config.HSAConfig.chunk_repr),
        ("Selection strategy", config.SELECTION_STRATEGIES, config.HSAConfig.selection_strategy),
        ("Weight mode", config.WEIGHT_MODES, config.HSAConfig.weight_mode),
        ("Dense backend", config.DENSE_BACKENDS, "the platform's best"),
    )
    lines = [
        "# Support matrix",
        "",
        "`scripts/support_matrix.py --write` makes this page from the code that start-up runs; do not edit it.",
        "",
        "## Values of the options",
        "",
        "| option | values | default |",
        "| --- | --- | --- |",
        *(f"| {name} | {', '.join(map(str, choices))} | {default} |" for name, choices, default in values),
        "",
        "## What works, and what start-up refuses",
        "",
        "*Yes* names the tests that prove it; they run on a CPU unless it says what they need. What ran on which device",
        "stands in the [benchmark log](../benchmarks/LOG.md). *Refused* names the row of the",
        "[table of refusals](#refusals), or gives the error that the server ends with once the model's layers exist, `…`",
        "for what differs.",
        "What start-up says to each model class of the release stands in [model classes](model_classes.md).",
        "Nothing that was asked for is switched off or replaced silently. Piecewise CUDA graphs, a default, are off with",
        "HSA.",
        "",
        "| feature | setting | with `--attention-backend hsa` |",
        "| --- | --- | --- |",
        *(f"| {cell.feature} | {cell.setting} | {_answer(cell)} |" for cell in CELLS),
        "",
        "## Refusals",
        "",
        "Start-up checks all of them, and ends with one line for each that applies:",
        "",
        "    --attention-backend hsa does not support WHAT (ASKED FOR BY): WHY NOT; INSTEAD.",
        "",
        "| what | asked for by | why not | instead |",
        "| --- | --- | --- | --- |",
        *(f"| {r.feature} | {_code(r.asked)} | {r.reason} | {_code(r.instead)} |" for r in REFUSALS),
    ]
    return "\n".join(lines) + "\n"


def _answer(cell: Cell) -> str:
    if cell.refusal:
        return f"**refused**: [{cell.refusal}](#refusals)"
    if cell.printed:
        return f"**refused**: `{cell.printed}`"
    tests = ", ".join(f"`{test}`" + (INTERPRETED if _is_interpreted(test) else "") for test in cell.proof)
    return f"**yes**: {tests}" + (f" (needs {cell.needs})" if cell.needs else "")


def _is_interpreted(test: str) -> bool:
    """Whether a test skips on a CPU, and so proves nothing there, unless Triton's interpreter is on."""
    return "needs_kernels" in (ROOT / test.partition("::")[0]).read_text(encoding="utf-8")


def options_table() -> str:
    """The `--hsa-*` options as the server's parser knows them, with the defaults of HSAConfig."""
    from sglang.srt.layers.attention.hsa.config import FIELD_PREFIX, HSAConfig
    from sglang.srt.layers.attention.hsa.server_args import HSAServerArgs

    parser = argparse.ArgumentParser(add_help=False)
    HSAServerArgs.add_hsa_cli_args(parser)
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    for action in parser._actions:
        default = getattr(HSAConfig, action.dest.removeprefix(FIELD_PREFIX))
        meaning, resolved = action.help.split(" Default: ")
        if isinstance(action, argparse.BooleanOptionalAction):
            shown = "on" if default else "off"
            meaning += f" `{action.option_strings[1]}` turns it off." if default else ""
        else:
            shown = resolved.rstrip(".") if default is None else f"`{default}`"
        if action.choices:
            meaning += f" One of {', '.join(f'`{choice}`' for choice in action.choices)}."
        lines.append(f"| `{action.option_strings[0]}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def options_with(table: str) -> str:
    """docs/options.md with the table of options between its two marks."""
    begin, end = "<!-- options: begin -->\n", "<!-- options: end -->\n"
    before, rest = OPTIONS.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{table}{end}{after}"


def _code(text: str) -> str:
    """Options in a sentence set as code."""
    return " ".join(_code_word(word) for word in text.split(" "))


def _code_word(word: str) -> str:
    bare = word.rstrip(",;.")
    return f"`{bare}`{word[len(bare):]}" if bare.startswith("--") else word


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--options", action="store_true", help="print the table of options")
    choice.add_argument("--write", action="store_true", help="bring all pages up to date")
    args = parser.parse_args()
    try:
        import sglang.srt.layers.attention.hsa  # noqa: F401
    except ImportError:
        sys.exit(
            "support_matrix: error: SGLang with HSA is not installed here; run scripts/test.sh, then use its .venv"
        )
    wrong = wrong_cells()
    if wrong:
        sys.exit("support_matrix: error: " + "\n".join(wrong))
    if args.write:
        MATRIX.write_text(support_matrix(), encoding="utf-8")
        OPTIONS.write_text(options_with(options_table()), encoding="utf-8")
    else:
        print(options_table() if args.options else support_matrix(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
