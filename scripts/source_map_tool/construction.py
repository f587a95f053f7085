# SPDX-License-Identifier: Apache-2.0
"""What a backend has once it is built: the functions, helpers and workspaces that `__init__` stores."""

from __future__ import annotations

import ast

from .calls import HOST_PACKAGES, LANGUAGES, TORCH_SPACES
from .evaluate import Evaluator
from .model import Held
from .symbols import Class, Compiled, Entry, External, Frame, Function, Instance, Method, Registered, stored


def held_by(evaluator: Evaluator, cls: Class, root: Class | None) -> list[Held]:
    """Attributes that hold something that runs, or an object of a class of its own, in the order of the source."""
    found: dict[tuple, Held] = {}
    for init in _constructors(evaluator, cls, root):
        frame = Frame(init.module, init, cls)
        for name, expressions in stored(init).items():
            for expression in expressions:
                for value in evaluator.eval(expression, frame) if _builds(expression) else ():
                    held = _held(name, value, init, expression.lineno)
                    if held:
                        found.setdefault((name, held.what), held)
    return list(found.values())


def _constructors(evaluator: Evaluator, cls: Class, root: Class | None) -> list[Function]:
    """The `__init__` of the class, and those that it calls of its bases."""
    found: list[Function] = []
    todo = [evaluator.find_method(cls, "__init__")]
    while todo:
        init = todo.pop(0)
        if init is None or init in found or init.owner is root:
            continue
        found.append(init)
        for node in ast.walk(init.node):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "__init__":
                values = evaluator.eval(node.func, Frame(init.module, init, cls))
                todo += [value.function for value in values if isinstance(value, Method)]
    return found


def _builds(expression: ast.expr) -> bool:
    """Whether the value is made or chosen here, and not a part of what the engine hands in."""
    if isinstance(expression, ast.Attribute):
        return _builds(expression.value) and not isinstance(expression.value, ast.Name)
    return not isinstance(expression, ast.Constant)


def _held(name: str, value: object, init: Function, line: int) -> Held | None:
    if isinstance(value, Entry):
        value = value.value
    if isinstance(value, Method):
        value = value.function
    if isinstance(value, Function):
        return Held(name, value.qualname, value.module.path, value.line, value.end, "function")
    if isinstance(value, Instance) and not value.declared:
        cls = value.cls
        return Held(name, cls.name, cls.module.path, cls.line, cls.end, "object")
    path = init.module.path
    if isinstance(value, Registered) and value.built and not value.method:
        return Held(name, "another backend", path, line, line, "object")
    if isinstance(value, Compiled):
        return Held(name, ", ".join(value.files), path, line, line, "CUDA, compiled at run time")
    if isinstance(value, External) and not value.of_object and _runs(value):
        return Held(name, value.name, path, line, line, "object" if value.is_object else "function")
    return None


def _runs(value: External) -> bool:
    """Whether an outside name can have a part in attention: no dtype, logger or path."""
    if value.root == "torch":
        return value.name.startswith(TORCH_SPACES)
    return "." in value.name and value.root not in HOST_PACKAGES | LANGUAGES
