# SPDX-License-Identifier: Apache-2.0
"""Whether a function takes a call, and whether an override takes every call that the overridden method takes."""

from __future__ import annotations

import ast

from .library import Fn, Library

_SIGNATURE_KEEPERS = {
    "staticmethod", "classmethod", "abstractmethod", "abc.abstractmethod", "override", "torch.no_grad()", "property",
    "torch.inference_mode()", "torch.compiler.disable", "functools.lru_cache", "lru_cache", "functools.cache", "cache",
}  # fmt: skip


def is_plain(function: Fn) -> bool:
    """Whether no decorator changes what the function takes."""
    return all(ast.unparse(node).split("(maxsize")[0] in _SIGNATURE_KEEPERS for node in function.node.decorator_list)


def _names(arguments: ast.arguments, bound: bool) -> tuple[list[str], int]:
    """Names of positional parameters, and how many of them have no default."""
    every = [*arguments.posonlyargs, *arguments.args]
    required = len(every) - len(arguments.defaults)
    skip = 1 if bound and every else 0
    return [argument.arg for argument in every[skip:]], max(0, required - skip)


def call_problem(function: Fn, call: ast.Call) -> str:
    """Why the function does not take the call; empty where it does, or where the call does not tell."""
    if not is_plain(function):
        return ""
    arguments = function.node.args
    names, required = _names(arguments, function.bound)
    unpacks = any(isinstance(node, ast.Starred) for node in call.args)
    given = {keyword.arg for keyword in call.keywords}
    if not unpacks and len(call.args) > len(names) and not arguments.vararg:
        return f"takes {len(names)} arguments by position, not {len(call.args)}"
    known = {*names, *(argument.arg for argument in arguments.kwonlyargs)}
    unknown = sorted(given - known - {None})
    if unknown and not arguments.kwarg:
        return f"takes no argument {unknown[0]!r}"
    if unpacks or None in given:
        return ""
    needed = names[len(call.args) : required]
    needed += [arg.arg for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults) if default is None]
    lacking = [name for name in needed if name not in given]
    return f"needs the argument {lacking[0]!r}" if lacking else ""


def override_problem(library: Library, ours: Fn, theirs: Fn) -> str:
    """What callers of the overridden method may pass and the override does not take; empty where it takes all.

    A constructor is an override where it takes what the other one needs: then the class stands in for its base.
    """
    if not (is_plain(ours) and is_plain(theirs)):
        return ""
    mine, their = ours.node.args, theirs.node.args
    names, required = _names(mine, "staticmethod" not in _decorators(ours))
    wanted, needed = _names(their, "staticmethod" not in _decorators(theirs))
    constructor = ours.node.name in ("__init__", "__new__", "__post_init__")
    if constructor and (not needed or names[:needed] != wanted[:needed]):
        return ""
    by_name = {*names, *(argument.arg for argument in mine.kwonlyargs)}
    method = ours.node.name
    for number, name in enumerate(wanted):
        taken = name in by_name or mine.kwarg
        by_position = number < len(names) or mine.vararg
        if not taken and (not by_position or name in library.keywords(method)):
            return f"does not take {name!r}"
        if name in names and names.index(name) != number:
            return f"takes {name!r} in another place"
    for argument in their.kwonlyargs:
        if argument.arg not in by_name and not mine.kwarg:
            return f"does not take {argument.arg!r}"
    if required > len(wanted) and not their.vararg and not constructor:
        return f"needs {names[len(wanted)]!r}, which callers do not pass"
    free = sorted(library.keywords(method) - by_name) if their.kwarg and not mine.kwarg and not constructor else []
    return f"does not take {free[0]!r}, which callers pass" if free else ""


def _decorators(function: Fn) -> set[str]:
    return {ast.unparse(node) for node in function.node.decorator_list}
