# SPDX-License-Identifier: Apache-2.0
"""What moved between two maps."""

from __future__ import annotations

from .model import Map
from .page import short

Facts = dict[str, tuple[str, int]]  # name of a fact -> path and line


def flatten(facts: Map) -> Facts:
    """Every place of a map under a name that does not depend on lines."""
    found: Facts = {f"registry {facts.registry.name}": (facts.registry.path, facts.registry.line)}
    for place in (*facts.chain, *facts.helpers, *([facts.wrapper] if facts.wrapper else [])):
        found[f"choice {place.name}"] = (place.path, place.line)
    for place in facts.contract:
        found[f"contract {place.name}"] = (place.path, place.line)
    for backend in facts.backends:
        place = (backend.factory.path, backend.factory.line)
        found[f"backend {backend.name}"] = place
        for built in backend.outcomes.built:  # a fact of its own: a backend that gets another class is no new backend
            found[f"backend {backend.name} -> {built.cls.name}"] = place
    for item in facts.classes:
        found[f"class {item.place.name}"] = (item.place.path, item.place.line)
        for places in item.methods.values():
            for place in places:
                found[f"method {item.place.name}: {place.name}"] = (place.path, place.line)
        for kernels, _ in item.kernels().values():
            first = kernels[0]
            found[f"kernel {item.place.name}: {first.name}"] = (first.path, first.line)
    return found


def compare(old: Map, new: Map) -> str:
    """Added, removed, moved to another file, moved within a file; one line each, grouped, in the order of names."""
    before, after = flatten(old), flatten(new)
    groups: dict[str, list[str]] = {
        f"added in {new.label}": [f"{name}  {_where(after[name])}" for name in sorted(after.keys() - before.keys())],
        f"removed since {old.label}": [
            f"{name}  {_where(before[name])}" for name in sorted(before.keys() - after.keys())
        ],
        "in another file": [],
        "on another line": [],
    }
    same = 0
    for name in sorted(before.keys() & after.keys()):
        if before[name] == after[name]:
            same += 1
        elif before[name][0] != after[name][0]:
            groups["in another file"].append(f"{name}  {_where(before[name])} -> {_where(after[name])}")
        else:
            groups["on another line"].append(f"{name}  {_where(before[name])} -> {after[name][1]}")
    lines = [f"{old.label} -> {new.label}: {len(before)} and {len(after)} places, {same} of them the same"]
    for title, rows in groups.items():
        lines += [f"{title}: {len(rows)}", *(f"  {row}" for row in rows)]
    return "\n".join(lines) + "\n"


def _where(place: tuple[str, int]) -> str:
    return f"{short(place[0])}:{place[1]}"
