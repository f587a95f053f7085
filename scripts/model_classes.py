#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask start-up and the loader about every model class of the release, and write docs/model_classes.md from the answers.

    model_classes.py                   print the page
    model_classes.py --write           bring docs/model_classes.md up to date
    model_classes.py --check           fail if the page is not up to date
    model_classes.py --check CLASS...  the same for the rows of some classes

It needs the environment that quickstart.sh or test.sh makes. No weights are read and no device is needed; all classes
take about a minute on one core.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from model_classes_tool.configurations import LAYERS, Recipe
from model_classes_tool.probe import Verdict, classify
from model_classes_tool.recipes import NOT_ASKED, recipes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "model_classes.md"
# The release reads these as it is imported.
ENVIRONMENT = dict(HF_HUB_OFFLINE="1", SGLANG_USE_CPU_ENGINE="1")
NAMES = {"served": "served", "refused": "refused", "not built": "not built here"}


def released_classes() -> dict[str, str]:
    """Model classes of the release by name, and the module that each is in; read from the source, so none is missing."""
    folder = Path(find_spec("sglang").submodule_search_locations[0]) / "srt" / "models"
    found = {}
    for file in sorted(folder.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8-sig")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "EntryClass":
                entries = node.value.elts if isinstance(node.value, (ast.List, ast.Tuple)) else [node.value]
                found |= {entry.id: file.stem for entry in entries}
    return found


def rows(released: dict[str, str], only: set[str]) -> dict[str, tuple[str, str]]:
    """Kind of answer and row of the table by class ``released``; of the classes ``only`` if there are any."""
    # Modules that every child would import again.
    import sglang.srt.model_loader.loader  # noqa: F401
    from sglang.srt.models.registry import ModelRegistry

    found = {}
    for name, recipe in recipes(set(released)).items():
        architecture = name.partition(",")[0]
        if only and architecture not in only:
            continue
        if architecture not in ModelRegistry.models:
            reason = f"its module `{released[architecture]}` needs packages that are not installed"
            verdict = Verdict("not built", [reason])
        elif recipe is None:
            verdict = Verdict("not built", [NOT_ASKED.get(name, "nobody has written a configuration for it")])
        else:
            verdict = classify(name, recipe)
        found[name] = verdict.kind, f"| {name} | {_configuration(recipe)} | {_answer(verdict)} |"
    return found


def _configuration(recipe: Recipe | None) -> str:
    if recipe is None:
        return ""
    marks = [mark for mark, on in (("stands in", recipe.stands_in), ("draft", recipe.draft)) if on]
    return recipe.model_type + (f" ({', '.join(marks)})" if marks else "")


def _answer(verdict: Verdict) -> str:
    from sglang.srt.layers.attention.hsa.refusals import REFUSALS

    if verdict.kind == "served":
        sparse = verdict.layers - verdict.dense
        layers = f"{sparse} of {verdict.layers} layers" if verdict.dense else "all layers"
        return f"**served**: {layers}" + "".join(f", with `{option}`" for option in verdict.options)
    if verdict.kind == "refused":
        features = {refusal.message: refusal.feature for refusal in REFUSALS}
        named = (f"[{features[r]}](support_matrix.md#refusals)" if r in features else f"`{r}`" for r in verdict.reason)
        return "**refused**: " + ", ".join(named)
    return f"not built here: {verdict.reason[0].replace('|', chr(0xA6))}"


def page(found: dict[str, tuple[str, str]]) -> str:
    counts = Counter(kind for kind, _ in found.values())
    return "\n".join(
        [
            "# Model classes",
            "",
            "`scripts/model_classes.py --write` makes this page; do not edit it. It asks start-up and the loader about",
            f"each model class of the release, with a configuration of {LAYERS} small layers where sizes can be chosen,",
            "on a CPU and with `--hsa-layers all`. No weights are read, and no answer depends on them.",
            "",
            "- *served*: the layers exist and HSA takes them. Layers that it leaves to the dense backend have sliding",
            "  windows. `scripts/test.sh -m slow` gives each of these classes random weights and compares its tokens with",
            "  those of dense attention, all pages selected; it skips drafts, and classes that dense attention cannot run so.",
            "  Those that read images have a test with images instead.",
            "- *refused*: the row of the [table of refusals](support_matrix.md#refusals), from the configuration alone; or",
            "  the error that the loader raises when the layers exist and before it reads weights.",
            "- *not built here*: the class could not be asked, for the reason given.",
            "",
            "*Stands in* marks a configuration of another class with this one's fields: its own comes as Python code with",
            "the checkpoints. *Draft* marks classes that draft for another model; they are asked about beside a Llama.",
            "",
            "| answer | rows |",
            "| --- | --- |",
            *(f"| {name} | {counts[kind]} |" for kind, name in NAMES.items()),
            "",
            "| class | configuration | with `--attention-backend hsa` |",
            "| --- | --- | --- |",
            *(row for _, row in found.values()),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--write", action="store_true", help="bring the page up to date")
    choice.add_argument("--check", nargs="*", metavar="CLASS", help="fail if the page, or some rows, are not up to date")
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    try:
        import sglang.srt.layers.attention.hsa  # noqa: F401
    except ImportError:
        sys.exit("model_classes: error: SGLang with HSA is not installed here; run scripts/test.sh, then use its .venv")
    released = released_classes()
    unknown = set(args.check or ()) - set(released)
    if unknown:
        sys.exit(f"model_classes: error: the release has no {', '.join(sorted(unknown))}")
    found = rows(released, set(args.check or ()))
    if args.write:
        PAGE.write_text(page(found), encoding="utf-8")
    elif args.check is None:
        print(page(found), end="")
    else:
        text = PAGE.read_text(encoding="utf-8")
        wrong = [row for _, row in found.values() if row not in text.split("\n")]
        if wrong or (not args.check and text != page(found)):
            sys.exit("\n".join(["model_classes: error: docs/model_classes.md is old; run --write", *wrong]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
