# SPDX-License-Identifier: Apache-2.0
"""What became of backends over several releases, as a short page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

from .model import Backend, Map
from .page import short

MAX_NAMED = 4  # kernels of a class; the others are counted
MAX_ROWS = 24  # of a table that `--diff` has in full
NONE = "–"

INTRO = """\
# Attention backends over the releases

`scripts/source_map.py --releases {arguments} --write` makes this page from the released archives, without the
patches of this repository; do not edit it. It is the short form of `scripts/source_map.py --diff A B`, which has every place.
[The source map](attention_backend_source_map.md) says what a backend and a kernel are, and its limits hold here, too: all
branches are followed, whatever device they are for. A kernel counts once for each file that defines it, or for its name if it
is of another package. A backend whose class has another name by now is in the table of names alone.
"""


def page(maps: list[Map]) -> str:
    labels = [facts.label for facts in maps]
    lines = [INTRO.format(arguments=" ".join(label.removeprefix("v") for label in labels))]
    lines += ["## In numbers", "", *_head("", labels)]
    for title, count in COUNTS:
        lines.append(_row(title, [str(count(facts)) for facts in maps]))
    lines += ["", "## Names of `--attention-backend` and their classes", "", *_head("name", labels)]
    lines += _matrix([{item.name: _classes(item) for item in facts.backends} for facts in maps])
    lines += ["", "## The contract", ""]
    methods = [{place.name.split(".")[-1]: str(place.line) for place in facts.contract} for facts in maps]
    some = {name for part in methods for name in part if not all(name in other for other in methods)}
    if some:
        lines += ["Methods of `AttentionBackend` that not every release has, each with its line:", "", *_head("method", labels)]
        lines += _matrix([{name: f":{line}" for name, line in part.items() if name in some} for part in methods])
    else:
        lines.append("`AttentionBackend` has the same methods in each.")
    for old, new in pairwise(maps):
        lines += ["", f"## Kernels from {old.label} to {new.label}", "", *_moves(old, new), "", *_by_class(old, new)]
    return "\n".join(lines) + "\n"


COUNTS: tuple[tuple[str, Callable[[Map], int]], ...] = (
    ("names of `--attention-backend`", lambda facts: len(facts.backends)),
    ("classes behind them", lambda facts: len(facts.classes)),
    ("methods of `AttentionBackend`", lambda facts: len(facts.contract)),
    ("kernels", lambda facts: len({kernel for item in facts.classes for kernel in item.kernels()})),
    ("calls of the engine for metadata and graphs", lambda facts: len(facts.runner_calls)),
    ("lines that set one of the options", lambda facts: len(facts.settings)),
)


def _classes(backend: Backend) -> str:
    return ", ".join(dict.fromkeys(f"`{built.cls.name}`" for built in backend.outcomes.built))


def _matrix(columns: list[dict[str, str]]) -> list[str]:
    names = sorted({name for column in columns for name in column})
    return [_row(f"`{name}`", [column.get(name, NONE) for column in columns]) for name in names]


def _head(first: str, labels: list[str]) -> list[str]:
    return [_row(first, labels), _row("---", ["---"] * len(labels))]


def _row(first: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


def _files(facts: Map) -> dict[tuple[str, str], str]:
    """Kernel and class -> the file that defines it; only of kernels of the tree."""
    found = {}
    for item in facts.classes:
        for places, _ in item.kernels().values():
            if not places[0].external:
                found[places[0].name, item.place.name] = short(places[0].path)
    return found


def _moves(old: Map, new: Map) -> list[str]:
    """From which file to which file kernels of the same name went."""
    before, after = _files(old), _files(new)
    moved: dict[tuple[str, str], dict[str, None]] = {}
    for key in sorted(before.keys() & after.keys()):
        if before[key] != after[key]:
            moved.setdefault((before[key], after[key]), {})[key[0]] = None
    if not moved:
        return ["No kernel went to another file."]
    rows = [f"| `{source}` | `{target}` | {len(names)} |" for (source, target), names in sorted(moved.items())]
    return ["| kernels of | went to | kernels |", "| --- | --- | --- |", *_first(rows, 3)]


def _by_class(old: Map, new: Map) -> list[str]:
    """Kernels that classes of both releases reach in one of them alone, by name."""
    before, after = _names(old), _names(new)
    rows = []
    for name in sorted(before.keys() & after.keys()):
        came, went = sorted(after[name] - before[name]), sorted(before[name] - after[name])
        if came or went:
            rows.append(f"| `{name}` | {_some(came)} | {_some(went)} |")
    if not rows:
        return ["Every class comes to the same kernels."]
    return ["| class | now comes to | no longer to |", "| --- | --- | --- |", *_first(rows, 3)]


def _names(facts: Map) -> dict[str, set[str]]:
    return {item.place.name: {kernel.split("\n")[0] for kernel in item.kernels()} for item in facts.classes}


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    shown = ", ".join(f"`{_brief(name)}`" for name in names[:MAX_NAMED])
    return (shown + (f" and {more} more" if more > 0 else "")) or NONE


def _brief(name: str) -> str:
    """Of a name of many packages the first part and the last."""
    parts = name.split(".") if " " not in name else []
    return f"{parts[0]}…{parts[-1]}" if len(parts) > 3 else name


def _first(rows: list[str], columns: int) -> list[str]:
    rest = len(rows) - MAX_ROWS
    return rows[:MAX_ROWS] + ([_row(f"{rest} more rows", [""] * (columns - 1))] if rest > 0 else [])
