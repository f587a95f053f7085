# SPDX-License-Identifier: Apache-2.0
"""drift: how each patch stands against other releases of SGLang."""

from __future__ import annotations

import json
from pathlib import Path

from . import sources
from .applier import EXACT, locate, verdict
from .archives import read_archive
from .build import Inputs, load_inputs
from .console import OverlayError, result
from .fetch import release_archive
from .lock import Release, version_in
from .sources import Upstream

def drift(root: Path, release: Release, targets: list[str], as_json: bool) -> None:
    """Prints one column per target: exact, offset, conflict or already upstream."""
    inputs = load_inputs(root, release)
    reports = [_report(inputs, name, _target(name)) for name in targets]
    if as_json:
        result(json.dumps({"pin": release.name, "targets": reports}, indent=2))
    else:
        result(_table(inputs, reports))


def _target(name: str) -> Upstream:
    if Path(name).exists():
        return sources.read_source(Path(name).absolute())
    version = version_in(name)
    if not version:
        raise OverlayError(f"{name} is neither a release nor an existing folder or archive", "give one of these")
    archive, data = release_archive(version)
    return Upstream(sources.place(read_archive(archive, data), archive), archive)


def _report(inputs: Inputs, name: str, upstream: Upstream) -> dict:
    files = dict(upstream.files)
    rows = []
    for patch in inputs.patches:
        placed = locate(patch, files)
        rows.append(
            {
                "name": patch.name,
                "verdict": verdict(placed),
                "hunks": len(placed),
                "details": [str(place) for place in placed if place.verdict != EXACT],
            }
        )
    return {
        "target": name,
        "version": sources.version_of(upstream),
        "patches": rows,
        "overlay_clashes": sorted(inputs.overlay.keys() & upstream.files.keys()),
    }


def _table(inputs: Inputs, reports: list[dict]) -> str:
    width = max((len(patch.name) for patch in inputs.patches), default=5)
    heads = [report["version"] or Path(report["target"]).name for report in reports]
    columns = [max(16, len(head)) for head in heads]
    lines = ["patch".ljust(width) + "".join(f"  {head:<{size}}" for head, size in zip(heads, columns))]
    for number, patch in enumerate(inputs.patches):
        cells = [report["patches"][number]["verdict"] for report in reports]
        lines.append(patch.name.ljust(width) + "".join(f"  {cell:<{size}}" for cell, size in zip(cells, columns)))
    for report, head in zip(reports, heads):
        details = [(row["name"], detail) for row in report["patches"] for detail in row["details"]]
        lines += [f"{head}: {name}: {detail}" for name, detail in details]
        lines += [f"{head}: overlay file exists upstream: {path}" for path in report["overlay_clashes"]]
    return "\n".join(line.rstrip() for line in lines)
