# SPDX-License-Identifier: Apache-2.0
"""The gates that were declared before the runs: HSA as good as dense attention, the window alone far below."""

from __future__ import annotations

from typing import Any

POINTS = 1.0  # HSA may be below dense by this many points in every task and length
FAR = 50.0  # the window alone must be below dense by at least so many, where the facts lie outside of it


def by_task(summary: dict[str, Any], deepest: float = 1.0) -> dict[tuple[str, int], float]:
    """Points (0 to 100) of every task and length: the mean over depths up to ``deepest``."""
    cells: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for s in summary["scores"]:
        if s["depth"] is not None and s["depth"] <= deepest:
            cells.setdefault((s["task"], s["length"]), []).append((s["exact"], s["samples"]))
    return {cell: 100 * sum(e * n for e, n in rows) / sum(n for _, n in rows) for cell, rows in cells.items()}


def check(
    dense: dict[str, Any], hsa: dict[str, Any], window: dict[str, Any] | None, lengths: list[int], deepest: float
) -> tuple[list[str], bool]:
    """One line per task and length, and whether all gates hold.

    Args:
        lengths: lengths that the gates are about.
        deepest: largest depth at which all facts lie outside of the window.

    Raises:
        ValueError: a run lacks a length, or the runs are not about the same samples.
    """
    runs = [run for run in (dense, hsa, window) if run]
    for run in runs:
        if run["plan"] != dense["plan"]:
            raise ValueError(f"{run['label']} and {dense['label']} are runs of different plans: compare equal ones")
        if not run["complete"]:
            raise ValueError(f"{run['label']} is not complete ({run['results']} results): run it again to finish it")
    missing = [length for length in lengths if length not in dense["plan"]["lengths"]]
    if missing:
        raise ValueError(f"no run has length {missing[0]}: it has {dense['plan']['lengths']}")
    scores = [by_task(run) for run in runs]
    beyond = [by_task(run, deepest) for run in runs]
    lines, all_hold = [], True
    for cell in sorted(scores[0], key=lambda cell: (cell[1], cell[0])):
        if cell[1] not in lengths:
            continue
        full, sparse = scores[0][cell], scores[1][cell]
        near = sparse >= full - POINTS
        line = f"{cell[1]:6} {cell[0]:11} dense {full:5.1f}  hsa {sparse:5.1f} {'ok' if near else 'BELOW'}"
        if window:
            if cell not in beyond[0]:
                raise ValueError(f"no depth of the plan is at most {deepest:g}")
            gap = beyond[0][cell] - beyond[2][cell]
            far = gap >= FAR
            line += f"  window alone, depth <= {deepest:g}: {beyond[2][cell]:5.1f} {'ok' if far else 'NOT FAR BELOW'}"
            near = near and far
        lines.append(line)
        all_hold &= near
    return lines, all_hold
