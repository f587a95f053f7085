# SPDX-License-Identifier: Apache-2.0
"""gates.json: rows, failures and where they come from, rewritten after every server so that a time limit loses nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from . import gates

VERSION = 1
ROW = (
    "arm role context kind strategy budget layers default keys keys_dense keys_total ppl ppl_dense ppl_loss ppl_tokens "
    "share counters seconds"
).split()
PATH_OPTIONS = ("--gguf", "--out")


def machine(on_cpu: bool) -> dict[str, Any]:
    """Hardware and versions that a result belongs to."""
    import torch

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    about: dict[str, Any] = dict(cpu_cores=os.cpu_count())
    if not on_cpu:
        about["gpu"] = torch.cuda.get_device_name(0)
    about.update(python=platform.python_version(), torch=torch.__version__)
    about.update(triton=version("triton"), transformers=version("transformers"))
    return about


def command(arguments: list[str]) -> str:
    """The command without the folders of the machine it ran on."""
    shown, after = [], None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if after in PATH_OPTIONS:
            argument = Path(argument).name
        elif equals and name in PATH_OPTIONS:
            argument = f"{name}={Path(value).name}"
        shown.append(f'"{argument}"' if " " in argument else argument)
        after = argument
    return " ".join(["python -m benchmarks.quality", *shown])


def row(arm, found: dict[str, Any], dense: dict[str, Any], info: dict[str, Any], counters: dict, seconds: float) -> dict:
    """A row of gates.json.

    Args:
        found: what ``measure.context`` returned for the arm.
        dense: the same of dense attention.
        info: the server's /server_info, which says what it really ran with.
        counters: HSA's, of this row alone.
    """
    made = dict(
        arm=arm.name,
        role=arm.role,
        context=found["context"],
        kind=info["hsa_chunk_repr"],
        strategy=info["hsa_selection_strategy"],
        budget=info["hsa_topk"],
        layers=info["hsa_layers"],
        default=not arm.options,
        keys=found["keys"],
        keys_dense=dense["keys"],
        keys_total=found["keys_total"],
        ppl=round(found["ppl"], 5),
        ppl_dense=round(dense["ppl"], 5),
        ppl_tokens=found["ppl_tokens"],
        share=round(counters["pages_selected"] / max(1, counters["pages_candidate"]), 4),
        counters=counters,
        seconds=round(seconds, 1),
    )
    return {name: made[name] if name != "ppl_loss" else round(gates.loss(made), 3) for name in ROW}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write the whole file or nothing."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    lines = [
        f"{'arm':28}{'context':>8}{'kind':>11}{'strategy':>14}{'budget':>7}{'pages':>7}"
        f"{'keys':>7}{'dense':>7}{'ppl':>9}{'loss':>9}"
    ]
    for r in rows:
        lines.append(
            f"{r['arm'][:27]:28}{r['context']:8}{r['kind']:>11}{r['strategy']:>14}{r['budget']:7}{r['share']:7.0%}"
            f"{r['keys']:7}{r['keys_dense']:7}{r['ppl']:9.3f}{r['ppl_loss']:+8.2f}%"
        )
    return "\n".join(lines)


def suite_table(rows: list[dict[str, Any]]) -> str:
    """The rows of the retrieval suite for a terminal."""
    lines = [f"{'task':12}{'context':>8}{'samples':>9}{'dense':>8}{'default':>9}"]
    for r in rows:
        more = "  dense attention cannot do it: it shows nothing" if r["unable"] else ""
        lines.append(f"{r['task']:12}{r['context']:8}{r['samples']:9}{r['points_dense']:8.1f}{r['points']:9.1f}{more}")
    return "\n".join(lines)
