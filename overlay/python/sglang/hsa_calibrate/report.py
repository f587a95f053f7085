# SPDX-License-Identifier: Apache-2.0
"""What is printed at the end, and the JSON: table, mass by layer, options."""

from __future__ import annotations

import dataclasses
import platform
from typing import Dict, List, Sequence

from sglang.hsa_calibrate.measure import EXACT, Bench, Measurement, Setting
from sglang.hsa_calibrate.recommend import Recommendation, ranges
from sglang.srt.layers.attention.hsa.config import HSAConfig, option

# Fields that are named even at their default: they are what was searched.
ALWAYS = ("topk", "chunk_repr", "selection_strategy")
PRINTED = (*ALWAYS, "layers", "window_size", "sink_pages", "page_size")


def options_line(config: HSAConfig) -> str:
    """The options of ``config`` as launch_server takes them."""
    parts = ["--attention-backend hsa"]
    defaults = {field.name: field.default for field in dataclasses.fields(HSAConfig)}
    for name in PRINTED:
        value = getattr(config, name)
        if name in ALWAYS or value != defaults[name]:
            parts.append(f"{option(name)} {value}")
    return " ".join(parts)


def options_of(bench: Bench, setting: Setting) -> str:
    """The options line of a setting; an exact choice has none."""
    if setting.kind == EXACT:
        return "none: no server can choose so"
    layers = bench.config.layers
    if setting.dense_layers:
        layers = ranges(bench.sparse_layers(setting))
    return options_line(
        dataclasses.replace(
            bench.config, topk=setting.topk, chunk_repr=setting.kind, layers=layers
        )
    )


def table(bench: Bench, dense: Measurement, measured: Sequence[Measurement]) -> str:
    """One row per measurement."""
    rows = [
        ("kind", "pages", "dense layers", "perplexity", "loss", "+-", "mass", "worst layer", "keys read", "rows sparse"),
        ("dense", "all", "all", f"{dense.perplexity:.3f}", "", "", "100.0 %", "", "100 %", ""),
    ]  # fmt: skip
    for m in measured:
        worst = min(m.mass, key=m.mass.get)
        rows.append(
            (
                m.setting.kind,
                str(m.setting.topk),
                ranges(bench.dense_layers(m.setting)) or "none",
                f"{m.perplexity:.3f}",
                percent(m.loss(dense), 2),
                percent(m.loss_error(dense), 2),
                percent(m.mean_mass),
                f"{worst} ({percent(m.mass[worst])})",
                percent(m.keys_read, 0),
                percent(m.rows_sparse, 0),
            )
        )
    return columns(rows)


def mass_table(measured: Sequence[Measurement]) -> str:
    """Attended mass by layer, one column per measurement."""
    layers = sorted({layer for m in measured for layer in m.mass})
    kinds = len({m.setting.kind for m in measured}) > 1
    rows = [["layer"]]
    for m in measured:
        dense = len(m.setting.dense_layers)
        name = f"{m.setting.kind} " if kinds else ""
        rows[0].append(
            f"{name}{m.setting.topk}" + (f" ({dense} dense)" if dense else "")
        )
    for layer in layers:
        cells = (
            percent(m.mass[layer]) if layer in m.mass else "dense" for m in measured
        )
        rows.append([str(layer), *cells])
    return columns(rows)


def verdict(
    bench: Bench,
    recommendation: Recommendation,
    dense: Measurement,
    best: Measurement,
    max_loss: float,
) -> List[str]:
    """The lines that end the report; the last one is the options line if a setting passed."""
    setting = best.setting
    layers = ranges(bench.dense_layers(setting))
    layers = f", layers {layers} dense" if layers else ""
    what = f"{setting.kind} with {setting.topk} pages{layers}"
    loss = percent(best.loss(dense), 2)
    if not recommendation.passed:
        return [
            f"None of the settings keeps a loss of {percent(max_loss, 2)}: {what} came nearest with {loss}. "
            "Try more --budgets, other --kinds or another --max-loss."
        ]
    lines = [
        f"Cheapest with a loss of at most {percent(max_loss, 2)}: {what} ({loss})."
    ]
    if best.loss(dense) + 2 * best.loss_error(dense) > max_loss:
        lines.append(
            f"Two standard errors ({percent(2 * best.loss_error(dense), 2)}) above that is more than the limit: more "
            "text would tell."
        )
    if best.rows_sparse < 0.5:
        lines.append(
            f"Only {percent(best.rows_sparse, 0)} of the scored rows left a page out, which dilutes the loss: use longer "
            "texts, more --tokens or more --skip."
        )
    return [*lines, options_of(bench, setting)]


def as_json(
    model_name: str,
    arguments: Dict[str, object],
    bench: Bench,
    dense: Measurement,
    measured: Sequence[Measurement],
    recommendation: Recommendation,
    max_loss: float,
) -> Dict[str, object]:
    """Everything that was measured. Paths are left out: of model and texts it has the names."""
    import torch
    import transformers

    import sglang

    best = recommendation.best.setting
    return {
        "model": model_name,
        "texts": [{"name": t.name, "tokens": len(t.ids)} for t in bench.texts],
        "arguments": arguments,
        "versions": {
            "sglang": sglang.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "layers": dataclasses.asdict(bench.layers),
        "scored_rows": len(dense.nll),
        "dense": {"perplexity": dense.perplexity},
        "settings": [_setting_json(bench, dense, m) for m in measured],
        "recommendation": {
            "passed": recommendation.passed,
            "max_loss": max_loss,
            "setting": dataclasses.asdict(best),
            "options": options_of(bench, best) if recommendation.passed else None,
        },
    }


def _setting_json(
    bench: Bench, dense: Measurement, m: Measurement
) -> Dict[str, object]:
    return {
        **dataclasses.asdict(m.setting),
        "perplexity": m.perplexity,
        "loss": m.loss(dense),
        "loss_error": m.loss_error(dense),
        "mass": m.mean_mass,
        "mass_by_layer": {str(layer): mass for layer, mass in m.mass.items()},
        "keys_read": m.keys_read,
        "rows_sparse": m.rows_sparse,
        "options": options_of(bench, m.setting),
    }


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def columns(rows: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Rows in aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = (
        gap.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
