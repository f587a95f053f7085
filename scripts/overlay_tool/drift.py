# SPDX-License-Identifier: Apache-2.0
"""drift: what would become of each patch on other releases of SGLang. It rebases them in a scratch folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from . import replay, sources
from .archives import read_archive
from .build import Inputs, load_inputs
from .console import OverlayError, result
from .fetch import release_archive
from .lock import Release, version_in
from .replay import EXACT
from .sources import Upstream


def drift(root: Path, release: Release, targets: list[str], as_json: bool) -> None:
    """Prints one column of verdicts per target."""
    inputs = load_inputs(root, release)
    upstreams = [_target(name) for name in targets]
    pristine = sources.pinned(release)
    reports = [_report(inputs, pristine, name, upstream) for name, upstream in zip(targets, upstreams)]
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


def _report(inputs: Inputs, pristine: Upstream, name: str, upstream: Upstream) -> dict:
    with tempfile.TemporaryDirectory(prefix="sglang-hsa-") as scratch:
        folder = Path(scratch, "replay")
        folder.mkdir()
        outcomes = replay.run(folder, inputs.patches, pristine, upstream, inputs.release.name, name)
    return {
        "target": name,
        "version": sources.version_of(upstream),
        "patches": [{key: value for key, value in outcome.as_dict().items() if key != "commit"} for outcome in outcomes],
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
        lines += [f"{head}: {row['name']}: {row['why']}" for row in report["patches"] if row["verdict"] != EXACT]
        lines += [f"{head}: overlay file exists upstream: {path}" for path in report["overlay_clashes"]]
    return "\n".join(line.rstrip() for line in lines)
