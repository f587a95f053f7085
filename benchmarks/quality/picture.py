# SPDX-License-Identifier: Apache-2.0
"""One SVG file: per length, the keys each arm finds and the perplexity it loses, dense attention as a line."""

from __future__ import annotations

from html import escape
from typing import Any

ROW_HEIGHT, BAR, TOP, HEAD = 26, 15, 64, 34
NAMES, KEYS, LOSSES, GAP, NUMBER = 310, 240, 240, 24, 72
COLORS = {"default": "#2166ac", "half budget": "#67a9cf", "extra": "#999999", "control": "#b2182b"}
WIDTH = 20 + NAMES + KEYS + NUMBER + GAP + LOSSES + NUMBER


def draw(rows: list[dict[str, Any]], title: str) -> str:
    """SVG text; the same bytes for the same rows."""
    lengths = sorted({row["context"] for row in rows})
    height = TOP + sum(HEAD + ROW_HEIGHT * (1 + sum(r["context"] == n for r in rows)) for n in lengths) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]

    def text(x: float, y: float, content: str, more: str = "") -> None:
        parts.append(f'<text x="{x:g}" y="{y:g}" {more}>{escape(content)}</text>')

    def bar(x: float, y: float, width: float, color: str) -> None:
        parts.append(f'<rect x="{x:g}" y="{y:g}" width="{max(width, 1):.1f}" height="{BAR}" fill="{color}"/>')

    text(20, 24, title, 'font-size="15" font-weight="bold"')
    keys_at, losses_at = 20 + NAMES, 20 + NAMES + KEYS + NUMBER + GAP
    text(keys_at, 50, "pass keys found", 'fill="#444"')
    text(losses_at, 50, "perplexity above dense attention", 'fill="#444"')
    most = max([row["ppl_loss"] for row in rows] + [0.1])
    y = TOP
    for length in lengths:
        mine = [row for row in rows if row["context"] == length]
        total = max(row["keys_total"] for row in mine)
        text(20, y + 18, f"{length:,} tokens", 'font-weight="bold"')
        y += HEAD
        dense = mine[0]["keys_dense"]
        line = keys_at + KEYS * dense / total
        below = y + ROW_HEIGHT * (1 + len(mine)) - 8
        text(20, y + 12, "dense attention")
        bar(keys_at, y, KEYS * dense / total, "#444444")
        text(line + 6, y + 12, f"{dense} of {total}")
        text(losses_at, y + 12, f"perplexity {mine[0]['ppl_dense']:.2f}", 'fill="#444"')
        for row in mine:
            y += ROW_HEIGHT
            color = COLORS.get(row["role"], "#999999")
            text(20, y + 12, label(row))
            bar(keys_at, y, KEYS * row["keys"] / total, color)
            text(max(line, keys_at + KEYS * row["keys"] / total) + 6, y + 12, f"{row['keys']}")
            width = LOSSES * max(row["ppl_loss"], 0) / most
            bar(losses_at, y, width, color)
            text(losses_at + width + 6, y + 12, f"{row['ppl_loss']:+.2f} %")
        parts.append(
            f'<line x1="{line:.1f}" x2="{line:.1f}" y1="{y - ROW_HEIGHT * len(mine) - 4}" y2="{below}" '
            'stroke="#444" stroke-dasharray="3 3"/>'
        )
        y += ROW_HEIGHT
    return "\n".join([*parts, "</svg>", ""])


def label(row: dict[str, Any]) -> str:
    """What an arm ran with, and the share of pages it attended."""
    layers = "" if row["layers"] == "all" else f", layers {row['layers']}"
    default = ", default" if row["default"] else ""
    return f"{row['kind']}, {row['strategy']}, {row['budget']} pages ({row['share']:.0%}){layers}{default}"
