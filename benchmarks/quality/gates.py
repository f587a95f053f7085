# SPDX-License-Identifier: Apache-2.0
"""The gates, declared before anything is measured: how far below dense attention an arm may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .arms import CONTROL, DEFAULT, HALF

POINTS = 2.0  # of a retrieval task in percent, at the default
UNABLE = 5.0  # a task of which dense attention answers fewer percent shows nothing


@dataclass(frozen=True)
class Limit:
    """What an arm may lose.

    Attributes:
        keys: pass keys.
        ppl: perplexity, in percent.
    """

    keys: int
    ppl: float

    def __str__(self) -> str:
        keys = f"finds at least the keys of dense attention less {self.keys}" if self.keys else "finds every key of dense"
        return f"{keys}, perplexity within {self.ppl:g} %"


FULL = {DEFAULT: Limit(2, 0.3), HALF: Limit(4, 1.0)}
# One document and a few keys, of which none may be lost; the control has to break its limit.
SMALL = {DEFAULT: Limit(0, 1.0), CONTROL: Limit(0, 1.0)}


def declared(limits: dict[str, Limit], retrieval: bool) -> list[str]:
    """One line per gate."""
    lines = [
        f"{role}: must NOT hold, or the gate can never fail: {limit}" if role == CONTROL else f"{role}: {limit}"
        for role, limit in limits.items()
    ]
    if retrieval:
        lines.append(f"{DEFAULT}: no task of the retrieval suite more than {POINTS:g} points below dense attention")
    lines.append("every arm of HSA: rows_sparse > 0 and pages_selected < pages_candidate, so something was left out")
    return lines


def loss(row: dict[str, Any]) -> float:
    """Perplexity lost to dense attention, in percent."""
    return 100 * (row["ppl"] / row["ppl_dense"] - 1)


def broken(row: dict[str, Any], limit: Limit) -> list[str]:
    """What of a row breaks the limit."""
    found = []
    if row["keys"] < row["keys_dense"] - limit.keys:
        found.append(f"{row['keys']} keys, dense attention {row['keys_dense']}")
    if not loss(row) <= limit.ppl:  # a perplexity that is not a number breaks it too
        found.append(f"perplexity {loss(row):+.2f} %")
    return found


def is_sparse(counters: dict[str, int]) -> bool:
    """Whether counters prove that pages were left out."""
    return counters["rows_sparse"] > 0 and 0 < counters["pages_selected"] < counters["pages_candidate"]


def judge(rows: list[dict[str, Any]], retrieval: list[dict[str, Any]], limits: dict[str, Limit]) -> list[str]:
    """Failures, one line each; empty if everything holds.

    Args:
        rows: those of the arms of HSA, as in gates.json.
        retrieval: those of the suite.
        limits: by role; arms of another role are only reported.
    """
    failures = []
    for row in rows:
        where = f"{row['arm']} at {row['context']:,} tokens"
        if not is_sparse(row["counters"]):
            failures.append(f"{where}: nothing was left out")
    for role, limit in limits.items():
        mine = [row for row in rows if row["role"] == role]
        if not mine:
            failures.append(f"{role}: not measured")
        elif role == CONTROL:
            if not any(broken(row, limit) for row in mine):
                failures.append(f"{mine[0]['arm']}: holds, so the gate of this tier cannot fail")
        else:
            for row in mine:
                failures += [f"{row['arm']} at {row['context']:,} tokens: {text}" for text in broken(row, limit)]
    for row in retrieval:
        if row["points"] < row["points_dense"] - POINTS:
            failures.append(
                f"{row['task']} at {row['context']:,} tokens: {row['points']:.1f}, dense attention {row['points_dense']:.1f}"
            )
    return failures
