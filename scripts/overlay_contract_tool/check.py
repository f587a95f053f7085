# SPDX-License-Identifier: Apache-2.0
"""Checks the overlay's files against the sources of one release."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from overlay_tool import series, sources
from overlay_tool.applier import apply_exact
from overlay_tool.build import read_overlay
from overlay_tool.lock import Lock, Release
from overlay_tool.tree import Snapshot

from .classes import Types
from .library import ROOT, Cls, Library, Module
from .scan import Problem, Scan

_TESTS = re.compile(r"/(?:test|tests|benchmark)/|/test_[^/]*\.py$")


@dataclass(frozen=True)
class Finding:
    """A use of SGLang that does not resolve. `path` is that of the file in this repository."""

    path: str
    problem: Problem

    def __str__(self) -> str:
        return f"{self.path}:{self.problem.line}: {self.problem.uses}: {self.problem.missing}"


@dataclass(frozen=True)
class Checked:
    release: str
    files: int
    findings: list[Finding]


def check(root: Path, pins: Lock, release: Release, upstream: Snapshot, tests: bool = False) -> Checked:
    """What of the overlay's files does not resolve in a pristine release and what its patches add to it."""
    overlay = read_overlay(root, release)
    added = Additions(root, pins, release, upstream)
    library = Library({**added.files, **overlay}, overlay.keys())
    types = Types(library, added.members)
    modules = [module for path in sorted(overlay) if (module := _module(library, path)) and (tests or not _TESTS.search(f"/{path}"))]
    heirs = Heirs(types, [_module(library, path) for path in [*overlay, *added.touched] if path.endswith(".py")])
    types.infer = lambda function: Scan(types, function.module, heirs.of).returned(function)
    for base, heir in added.adopted:
        heirs.adopt(library, base, heir)
    findings = []
    for module in modules:
        is_test = bool(_TESTS.search(f"/{module.path}"))
        problems = Scan(types, module, heirs.of, is_test).run()
        findings += [Finding(_repository_path(root, release, module.path), problem) for problem in problems]
    return Checked(release.name, len(modules), findings)


def _module(library: Library, path: str) -> Module | None:
    if not (path.startswith(ROOT) and path.endswith(".py")):
        return None
    name = path.removeprefix(ROOT).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return library.module(name) if Library.is_ours(name) else None


def _repository_path(root: Path, release: Release, path: str) -> str:
    own = f"overlay/{release.name}/{path}"
    return own if (root / own).exists() else f"overlay/{path}"


class Additions:
    """What patches add for the overlay: a base class of server arguments, fields that its files read.

    A release with a series is taken with it. One without has what the newest series of the lock adds to classes, by their
    names, as its own patches are still to be made. `adopted` are the bases that it gives them: (base, heir), each a module
    and a name.
    """

    def __init__(self, root: Path, pins: Lock, release: Release, upstream: Snapshot):
        self.files = dict(upstream)
        self.touched: set[str] = set()
        self.members: dict[str, set[str]] = {}
        self.adopted: list[tuple[tuple[str, str], tuple[str, str]]] = []
        patches = series.load(root, release.name) if series.folder(root, release.name).exists() else []
        if patches:
            self.touched = _patch(self.files, patches)
            return
        for other in reversed(pins.releases.values()):
            patches = series.load(root, other.name)
            if patches:
                self._learn(root, other, patches)
                return

    def _learn(self, root: Path, other: Release, patches: list[series.Patch]) -> None:
        before = dict(sources.pinned(other).files)
        after = dict(before)
        touched = _patch(after, patches)
        overlay = read_overlay(root, other)
        old, new = Types(Library({**before, **overlay})), Types(Library({**after, **overlay}))
        for path in sorted(touched):
            for cls in _classes(_module(new.library, path)):
                known = {other.name: other for other in _classes(_module(old.library, path))}
                had = old.members(known[cls.name]).nodes.keys() if cls.name in known else set()
                gained = new.members(cls).nodes.keys() - had
                if gained:
                    self.members.setdefault(cls.name, set()).update(gained)
                for base in filter(None, new.bases(cls)):
                    if base.module.path in overlay:
                        self.adopted.append(((base.module.name, base.name), (cls.module.name, cls.name)))


def _patch(files: Snapshot, patches: list[series.Patch]) -> set[str]:
    for patch in patches:
        apply_exact(replace(patch), files)
    return set().union(*(patch.paths for patch in patches))


def _classes(module: Module | None) -> list[Cls]:
    nodes = module.tree.body if module else []
    return [Cls(module, node) for node in nodes if type(node).__name__ == "ClassDef"]


class Heirs:
    """Classes of some modules by the classes that they derive from."""

    def __init__(self, types: Types, modules: list[Module | None]):
        self._heirs: dict[int, list[Cls]] = {}
        for module in modules:
            for cls in _classes(module):
                for base in types.lineage(cls)[1:]:
                    self._heirs.setdefault(id(base.node), []).append(cls)

    def of(self, cls: Cls) -> list[Cls]:
        return self._heirs.get(id(cls.node), [])

    def adopt(self, library: Library, base: tuple[str, str], heir: tuple[str, str]) -> None:
        """A class that patches will derive from one of the overlay, wherever it is in this release."""
        found = [_class_of(library, *base), _class_of(library, *heir) or _class_of(library, library.where(heir[1]), heir[1])]
        if all(found):
            self._heirs.setdefault(id(found[0].node), []).append(found[1])


def _class_of(library: Library, module: str | None, name: str) -> Cls | None:
    source = library.module(module) if module else None
    return next((cls for cls in _classes(source) if cls.name == name), None)
