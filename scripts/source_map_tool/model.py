# SPDX-License-Identifier: Apache-2.0
"""What a map holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from .calls import Kernel, Step
from .symbols import Class


@dataclass(frozen=True)
class Place:
    """A named thing at a line; a definition also has its last line."""

    name: str
    path: str
    line: int
    note: str = ""
    end: int = 0


@dataclass(frozen=True)
class Held:
    """What an attribute of a backend holds.

    Attributes:
        attribute: its name.
        what: function, class or name of another package.
        path, line, end: the definition, or where the attribute is set if that is in another package.
        kind: function or object, for people.
    """

    attribute: str
    what: str
    path: str
    line: int
    end: int
    kind: str


@dataclass(frozen=True)
class Setting:
    """A line that gives an option a value by itself."""

    text: str  # option = value
    condition: str  # the innermost
    function: str
    path: str
    line: int


@dataclass(frozen=True)
class Built:
    """A class that a factory returns an object of."""

    cls: Class
    call: str  # source of the returned expression
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class Outcomes:
    """What a factory does: objects it returns, conditions it demands, each with its message."""

    built: tuple[Built, ...]
    refuses: tuple[tuple[str, str], ...]


@dataclass
class Backend:
    """One name of the registry."""

    name: str
    factory: Place
    outcomes: Outcomes


@dataclass
class ClassFacts:
    """One class of the registry: its methods by kind, and the way from each to its kernels."""

    cls: Class
    place: Place
    bases: list[str]
    backends: list[str] = field(default_factory=list)
    methods: dict[str, list[Place]] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    paths: list[Step] = field(default_factory=list)
    others: list[Place] = field(default_factory=list)
    neighbours: list[Place] = field(default_factory=list)

    def kernels(self) -> dict[str, tuple[list[Kernel], list[str]]]:
        """Kernel -> its places and the methods that reach it."""
        found: dict[str, tuple[list[Kernel], list[str]]] = {}
        for path in self.paths:
            for kernel in path.kernels():
                places, methods = found.setdefault(f"{kernel.name}\n{'' if kernel.external else kernel.path}", ([], []))
                if kernel not in places:
                    places.append(kernel)
                method = path.name.rsplit(".", 1)[-1]
                if method not in methods:
                    methods.append(method)
        return found


@dataclass
class Map:
    label: str
    registry: Place
    lookups: list[Place]
    chain: list[Place]
    helpers: list[Place]
    settings: list[Setting]
    defaults: list[Place]
    wrapper: Place | None
    wrapped: Outcomes
    decode_step: list[Place]
    runner_calls: list[Place]
    contract: list[Place]
    backends: list[Backend]
    classes: list[ClassFacts]
