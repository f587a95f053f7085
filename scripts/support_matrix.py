#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write what the code says into the documentation: docs/support_matrix.md and the README's table of options.

    support_matrix.py            print the support matrix
    support_matrix.py --options  print the table of options
    support_matrix.py --write    bring both files up to date

It reads HSA's refusals and defaults, so it needs the environment that quickstart.sh or test.sh makes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MATRIX = ROOT / "docs" / "support_matrix.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- options: begin -->\n", "<!-- options: end -->\n"


def support_matrix() -> str:
    """The page docs/support_matrix.md."""
    from sglang.srt.layers.attention.hsa import config
    from sglang.srt.layers.attention.hsa.chunk_repr import KINDS
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
        "## What start-up refuses",
        "",
        "With `--attention-backend hsa` each of these ends in an error that gives the reason. Nothing is switched off",
        "or replaced silently.",
        "",
        "| feature | asked for by | why not | instead |",
        "| --- | --- | --- | --- |",
        *(f"| {r.feature} | {_code(r.asked)} | {r.reason} | {_code(r.instead)} |" for r in REFUSALS),
    ]
    return "\n".join(lines) + "\n"


def options_table() -> str:
    """The `--hsa-*` options as the server's parser knows them, with the defaults of HSAConfig."""
    from sglang.srt.layers.attention.hsa.config import FIELD_PREFIX, HSAConfig
    from sglang.srt.layers.attention.hsa.server_args import HSAServerArgs

    parser = argparse.ArgumentParser(add_help=False)
    HSAServerArgs.add_hsa_cli_args(parser)
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    for action in parser._actions:
        default = getattr(HSAConfig, action.dest.removeprefix(FIELD_PREFIX))
        meaning = action.help.split(" Default: ")[0]
        if isinstance(action, argparse.BooleanOptionalAction):
            shown = "on" if default else "off"
            meaning += f" `{action.option_strings[1]}` turns it off." if default else ""
        else:
            shown = "the platform's best" if default is None else f"`{default}`"
        if action.choices:
            meaning += f" One of {', '.join(f'`{choice}`' for choice in action.choices)}."
        lines.append(f"| `{action.option_strings[0]}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def readme_with(table: str) -> str:
    """The README with the table between its two marks."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table}{END}{after}"


def _code(text: str) -> str:
    """Options in a sentence set as code."""
    return " ".join(_code_word(word) for word in text.split(" "))


def _code_word(word: str) -> str:
    bare = word.rstrip(",;.")
    return f"`{bare}`{word[len(bare):]}" if bare.startswith("--") else word


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--options", action="store_true", help="print the README's table of options")
    choice.add_argument("--write", action="store_true", help="bring both files up to date")
    args = parser.parse_args()
    try:
        import sglang.srt.layers.attention.hsa  # noqa: F401
    except ImportError:
        sys.exit("support_matrix: error: SGLang with HSA is not installed here; run scripts/test.sh, then use its .venv")
    if args.write:
        MATRIX.write_text(support_matrix(), encoding="utf-8")
        README.write_text(readme_with(options_table()), encoding="utf-8")
    else:
        print(options_table() if args.options else support_matrix(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
