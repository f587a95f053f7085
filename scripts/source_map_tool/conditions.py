# SPDX-License-Identifier: Apache-2.0
"""The conditions that statements stand under, as text."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from .tree import Module


def grouped(test: str) -> str:
    """A condition that can be joined with others by `and`."""
    return f"({test})" if " or " in test or " if " in test else test


def negated(test: str) -> str:
    if test.startswith("not ") and " and " not in test and " or " not in test:
        return test.removeprefix("not ")
    return f"not {test}" if test.isidentifier() or test.replace(".", "").isidentifier() else f"not ({test})"


def statements(body: list[ast.stmt], module: Module, conditions: tuple[str, ...]) -> Iterator[tuple[ast.stmt, tuple]]:
    """Statements with the conditions that they stand under, outermost first.

    What follows a branch that always leaves the function is listed without its negation: read in order, it is implied.
    """
    for node in body:
        yield node, conditions
        if isinstance(node, ast.If):
            test = module.text_of(node.test)
            yield from statements(node.body, module, (*conditions, test))
            implied = conditions if leaves(node.body) else (*conditions, negated(test))
            yield from statements(node.orelse, module, implied)
        else:
            for name in ("body", "handlers", "orelse", "finalbody"):
                for part in getattr(node, name, []):
                    yield from statements([part] if isinstance(part, ast.stmt) else part.body, module, conditions)


def leaves(body: list[ast.stmt]) -> bool:
    """Whether every way through these statements returns or raises."""
    last = body[-1] if body else None
    return isinstance(last, (ast.Return, ast.Raise)) or (
        isinstance(last, ast.If) and leaves(last.body) and leaves(last.orelse)
    )
