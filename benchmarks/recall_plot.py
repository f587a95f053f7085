# SPDX-License-Identifier: Apache-2.0
"""Tables and curves of selection_recall.py: means over layers and KV heads, by K."""

from __future__ import annotations

import math
from html import escape
from typing import Any

COLORS = {"mean": "#1b9e77", "mean_std": "#d95f02", "mean_std": "#7570b3", "landmark": "#e7298a"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 260, 170, 60, 50, 60


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def groups(table: list[dict[str, Any]], *names: str) -> dict[tuple, list[dict[str, Any]]]:
    """Rows by the values of some columns, in order of appearance."""
    found: dict[tuple, list] = {}
    for row in table:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def summary(table: list[dict[str, Any]]) -> str:
    """Shares in percent: covered mass, found best pages and found very best page per setting and kind, at equal bytes."""
    lines = [
        f"{'source':22}{'length':>7}{'window':>7}{'sinks':>6}  {'strategy':13}{'kind':9}{'K':>4}{'mass':>7}{'best':>7}{'local':>7}{'pages':>7}{'top':>7}"
    ]
    names = ("source", "length", "window", "sinks", "strategy", "kind", "equal_bytes")
    for key, rows in groups([row for row in table if row["equal_bytes"] != ""], *names).items():
        source, length, window, sinks, strategy, kind, _ = key
        cells = "".join(
            f"{100 * _mean([r[c] for r in rows]):7.1f}" for c in ("mass", "mass_best", "mass_local", "pages", "top_page")
        )
        lines.append(f"{source:22}{length:7}{window:7}{sinks:6}  {strategy:13}{kind:9}{rows[0]['topk']:4}{cells}")
    return "\n".join(lines)


def ranking(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kind and strategy by covered mass, mean over everything else, at equal bytes; best first."""
    found = groups([row for row in table if row["equal_bytes"] != ""], "kind", "strategy")
    ranked = [
        dict(
            kind=kind,
            strategy=strategy,
            mass=round(_mean([r["mass"] for r in rows]), 5),
            pages=round(_mean([r["pages"] for r in rows]), 5),
            top_page=round(_mean([r["top_page"] for r in rows]), 5),
        )
        for (kind, strategy), rows in found.items()
    ]
    return sorted(ranked, key=lambda entry: -entry["mass"])


def plot(table: list[dict[str, Any]]) -> str:
    """SVG: a panel per source and strategy, covered mass over K, a curve per kind; dashed the best K pages."""
    sources = list(groups(table, "source", "length", "window", "sinks"))
    strategies = list(dict.fromkeys(row["strategy"] for row in table))
    kinds = list(dict.fromkeys(row["kind"] for row in table))
    topks = sorted({row["topk"] for row in table})
    low, high = math.log2(topks[0]), math.log2(max(topks[-1], 2 * topks[0]))
    width = LEFT + len(strategies) * (WIDTH + GAP)
    height = TOP + len(sources) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, kind in enumerate(kinds):
        x = LEFT + 110 * i
        parts.append(f'<line x1="{x}" y1="14" x2="{x + 22}" y2="14" stroke="{COLORS[kind]}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 28}" y="18">{kind}</text>')
    x = LEFT + 110 * len(kinds)
    parts.append(f'<line x1="{x}" y1="14" x2="{x + 22}" y2="14" stroke="#555" stroke-dasharray="4 3"/>')
    parts.append(f'<text x="{x + 28}" y="18">best K pages</text>')

    for row, place in enumerate(sources):
        for column, strategy in enumerate(strategies):
            x0, y0 = LEFT + column * (WIDTH + GAP), TOP + row * (HEIGHT + GAP)
            own = [
                r
                for r in table
                if (r["source"], r["length"], r["window"], r["sinks"]) == place and r["strategy"] == strategy
            ]
            source, length, window, sinks = place
            title = f"{source}, {length} tokens, window {window}, {sinks} sinks: {strategy}"
            parts.append(f'<text x="{x0}" y="{y0 - 8}" font-size="10">{escape(title)}</text>')
            parts.append(f'<rect x="{x0}" y="{y0}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>')
            for share in (0, 0.5, 1):
                y = y0 + HEIGHT * (1 - share)
                parts.append(f'<text x="{x0 - 6}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
                parts.append(f'<line x1="{x0}" y1="{y}" x2="{x0 + WIDTH}" y2="{y}" stroke="#ddd"/>')
            for topk in topks:
                x = x0 + WIDTH * (math.log2(topk) - low) / (high - low)
                parts.append(f'<text x="{x:.1f}" y="{y0 + HEIGHT + 14}" text-anchor="middle">{topk}</text>')

            def curve(points: dict[int, float], style: str) -> None:
                xy = " ".join(
                    f"{x0 + WIDTH * (math.log2(k) - low) / (high - low):.1f},{y0 + HEIGHT * (1 - share):.1f}"
                    for k, share in sorted(points.items())
                )
                parts.append(f'<polyline points="{xy}" fill="none" {style}/>')

            for kind in kinds:
                by_k = groups([r for r in own if r["kind"] == kind], "topk")
                curve(
                    {k: _mean([r["mass"] for r in rs]) for (k,), rs in by_k.items()},
                    f'stroke="{COLORS[kind]}" stroke-width="2"',
                )
            by_k = groups(own, "topk")
            curve(
                {k: _mean([r["mass_best"] for r in rs]) for (k,), rs in by_k.items()},
                'stroke="#555" stroke-dasharray="4 3"',
            )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
