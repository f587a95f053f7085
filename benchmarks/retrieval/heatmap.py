# SPDX-License-Identifier: Apache-2.0
"""Heatmaps of several runs side by side, as one SVG file: columns are lengths, rows are depths."""

from __future__ import annotations

from html import escape
from typing import Any

CELL_WIDTH, CELL_HEIGHT = 54, 26
LEFT, TOP, GAP = 120, 54, 36
# From wrong to right: readable without color too, because every cell has its number.
LOW, HIGH = (178, 24, 43), (33, 102, 172)


def color(share: float) -> str:
    """Color of a share from 0 to 1, through white at one half."""
    end, weight = (LOW, 1 - 2 * share) if share < 0.5 else (HIGH, 2 * share - 1)
    return "#%02x%02x%02x" % tuple(round(255 + (c - 255) * weight) for c in end)


def mean_scores(summary: dict[str, Any], task: str | None) -> dict[tuple[int, float], float]:
    """Exact share by (length, depth) of one task, or the mean over all tasks."""
    cells: dict[tuple[int, float], list[float]] = {}
    for score in summary["scores"]:
        if score["depth"] is not None and task in (None, score["task"]):
            cells.setdefault((score["length"], score["depth"]), []).append(score["exact"])
    return {cell: sum(values) / len(values) for cell, values in cells.items()}


def heatmap(summaries: list[dict[str, Any]], per_task: bool = False) -> str:
    """SVG text: one column of panels per run; with ``per_task`` a row of panels per task below the mean's."""
    lengths = sorted({s["length"] for run in summaries for s in run["scores"]})
    depths = sorted({s["depth"] for run in summaries for s in run["scores"] if s["depth"] is not None})
    rows: list[str | None] = [None]
    if per_task:
        rows += list(dict.fromkeys(s["task"] for run in summaries for s in run["scores"]))
    panel_width, panel_height = CELL_WIDTH * len(lengths), CELL_HEIGHT * len(depths)
    width = LEFT + len(summaries) * (panel_width + GAP)
    height = TOP + len(rows) * (panel_height + GAP + 14) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" text-anchor="middle">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]

    def text(x: float, y: float, content: str, more: str = "") -> None:
        parts.append(f'<text x="{x:g}" y="{y:g}" {more}>{escape(content)}</text>')

    for column, run in enumerate(summaries):
        x0 = LEFT + column * (panel_width + GAP)
        text(x0 + panel_width / 2, 20, run["label"], 'font-weight="bold" font-size="14"')
        for row, task in enumerate(rows):
            y0 = TOP + row * (panel_height + GAP + 14)
            scores = mean_scores(run, task)
            if column == 0:
                text(LEFT - 46, y0 - 8, task or "all tasks", 'font-weight="bold" text-anchor="end"')
            for j, depth in enumerate(depths):
                middle = y0 + (j + 0.5) * CELL_HEIGHT
                if column == 0:
                    text(LEFT - 8, middle + 4, f"depth {depth:.0%}", 'text-anchor="end"')
                for i, length in enumerate(lengths):
                    x = x0 + i * CELL_WIDTH
                    share = scores.get((length, depth))
                    fill = "#eeeeee" if share is None else color(share)
                    parts.append(
                        f'<rect x="{x}" y="{y0 + j * CELL_HEIGHT}" width="{CELL_WIDTH - 1}" '
                        f'height="{CELL_HEIGHT - 1}" fill="{fill}"/>'
                    )
                    if share is not None:
                        dark = abs(share - 0.5) > 0.3
                        ink = 'fill="white"' if dark else 'fill="black"'
                        text(x + CELL_WIDTH / 2, middle + 4, f"{100 * share:.0f}", ink)
            for i, length in enumerate(lengths):
                size = f"{length // 1024}K" if length % 1024 == 0 else str(length)
                text(x0 + (i + 0.5) * CELL_WIDTH, y0 + panel_height + 14, size)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
