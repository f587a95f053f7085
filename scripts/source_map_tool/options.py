# SPDX-License-Identifier: Apache-2.0
"""Which backend an option gets that the user has not set, and where."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from .conditions import grouped, statements
from .evaluate import Evaluator
from .model import Place, Setting
from .symbols import Function, Method
from .tree import Tree

OPTIONS = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
MODELS = "/models/"  # these have attributes of the same names
# How an option is set: in an attribute, in a table of overrides, or as an argument of what declares them.
FORMS = (".{} = ", '"{}"', " {}=", "({}=")


def settings_and_defaults(evaluator: Evaluator, tree: Tree) -> tuple[list[Setting], list[Place]]:
    """Where the options get a value by themselves, and what the functions that choose a default return."""
    settings: dict[tuple, Setting] = {}
    choosers: dict[Function, bool] = {}
    for module in tree.containing(*(form.format(option) for form in FORMS for option in OPTIONS)):
        for function in evaluator.functions(module) if MODELS not in module.path else ():
            for node, conditions in statements(function.node.body, module, ()):
                for option, value, is_own in _set_by(node):
                    for part, condition in _decided(function, option, value, conditions[-1:], is_own):
                        text = f"{option} = {module.text_of(part)}"
                        made = Setting(text, "".join(condition), function.qualname, module.path, part.lineno)
                        settings[(text, module.path, part.lineno)] = made
                        for call in ast.walk(part):
                            if isinstance(call, ast.Call):
                                choosers.update(dict.fromkeys(_called(evaluator, tree, function, call), True))
    return sorted(settings.values(), key=lambda made: (made.path, made.line)), _defaults(choosers)


def _set_by(node: ast.stmt) -> Iterator[tuple[str, ast.expr, bool]]:
    """Option, value, and whether the statement does nothing else, so that whatever the value is, it is set."""
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    if isinstance(target, ast.Attribute) and target.attr in OPTIONS:
        yield target.attr, node.value, True
    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant) and target.slice.value in OPTIONS:
        yield target.slice.value, node.value, True
    for part in _expressions(node):
        if isinstance(part, ast.Dict):
            for key, value in zip(part.keys, part.values):
                if isinstance(key, ast.Constant) and key.value in OPTIONS:
                    yield key.value, value, False
        elif isinstance(part, ast.Call):
            for keyword in part.keywords:
                if keyword.arg in OPTIONS:
                    yield keyword.arg, keyword.value, False


def _expressions(node: ast.AST) -> Iterator[ast.AST]:
    """What is in a statement, other statements left out."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield child
            yield from _expressions(child)


def _decided(
    function: Function, option: str, value: ast.expr, condition: tuple[str, ...], is_own: bool
) -> Iterator[tuple[ast.expr, tuple[str, ...]]]:
    """The values with their conditions, a variable's where it gets them; not what only hands on what was decided."""
    if isinstance(value, ast.Name):
        given = [
            (node.value, conditions[-1:])
            for node, conditions in statements(function.node.body, function.module, ())
            if isinstance(node, ast.Assign) and [getattr(part, "id", "") for part in node.targets] == [value.id]
        ]
        for part, when in given:
            if not isinstance(part, ast.Name):
                yield from _decided(function, option, part, when, is_own)
        if is_own and not given:
            yield value, condition
    elif isinstance(value, ast.Attribute):
        if value.attr in OPTIONS and value.attr != option:
            yield value, condition
    elif is_own or isinstance(value, ast.Call) or any(_is_name(part) for part in ast.walk(value)):
        if not (isinstance(value, ast.Constant) and value.value is None):
            yield value, condition


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _called(evaluator: Evaluator, tree: Tree, function: Function, call: ast.Call) -> list[Function]:
    """Functions of the tree; of a method of an unknown object the only one that is called so."""
    values = evaluator.eval(call.func, evaluator.function(function))
    found = [value.function if isinstance(value, Method) else value for value in values]
    if not values and isinstance(call.func, ast.Attribute):
        name = call.func.attr
        modules = tree.containing(f"def {name}(")
        named = [other for module in modules for other in evaluator.functions(module) if other.name == name]
        found = named if len(named) == 1 else []
    return [value for value in found if isinstance(value, Function)]


def _defaults(choosers: dict[Function, bool]) -> list[Place]:
    found = []
    for function in choosers:
        for node, conditions in statements(function.node.body, function.module, ()):
            if isinstance(node, ast.Return) and node.value is not None and _is_name(node.value):
                when = " and ".join(map(grouped, conditions))
                found.append(Place(node.value.value, function.module.path, node.lineno, when))
    return found
