# SPDX-License-Identifier: Apache-2.0
"""Strings that a tree spells in pieces, such as the name of a kernel's file."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from .symbols import Function, import_source
from .tree import Module

if TYPE_CHECKING:
    from .evaluate import Evaluator

MAX_IMPORTS = 4  # from file to file


def written_text(evaluator: Evaluator, node: ast.expr, module: Module, function: Function | None) -> str:
    """The string that an expression is, over f-strings and names bound once at the top of a file.

    What is only known when the code runs stays as it is written; inside an f-string it is in braces.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(written_text(evaluator, part, module, function) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        found = _definition(evaluator, node.value, module, function)
        # Before Python 3.12 places inside an f-string are not those of the file, so the source cannot be quoted.
        unknown = node.value.id if isinstance(node.value, ast.Name) else "…"
        return written_text(evaluator, *found, None) if found else f"{{{unknown}}}"
    found = _definition(evaluator, node, module, function)
    return written_text(evaluator, *found, None) if found else module.text_of(node)


def _definition(
    evaluator: Evaluator, node: ast.expr, module: Module, function: Function | None
) -> tuple[ast.expr, Module] | None:
    """The one string that a name stands for, and the file that has it."""
    if not isinstance(node, ast.Name) or function is not None and node.id in (*function.bindings, *function.params):
        return None
    name = node.id
    for _ in range(MAX_IMPORTS):
        bindings = evaluator.top(module).get(name, [])
        if len(bindings) != 1:
            return None
        [binding] = bindings
        if binding.kind == "value" and isinstance(binding.value, (ast.Constant, ast.JoinedStr)):
            return binding.value, module
        inner = evaluator.tree.module(import_source(binding, module)) if binding.kind == "from" else None
        if inner is None:
            return None
        module, name = inner, binding.value[1]
    return None
