# SPDX-License-Identifier: Apache-2.0
"""The facts of the map: how a backend is chosen, what the registry holds, what each backend consists of."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from overlay_tool.console import OverlayError

from .calls import CallGraph
from .conditions import grouped, leaves, negated
from .construction import held_by
from .evaluate import Evaluator
from .model import Backend, Built, ClassFacts, Map, Outcomes, Place
from .options import settings_and_defaults
from .runners import contract, decode_step, runner_calls
from .symbols import Class, Function, Instance, Method, Registered
from .tree import Module, Tree

DECORATOR = "register_attention_backend"
MAX_CALLERS = 6


def read_map(tree: Tree) -> Map:
    """All facts of a tree; raises OverlayError if it has no registry of attention backends."""
    module, table = _find_registry(tree)
    evaluator = Evaluator(tree, (module.name, table.name))
    _read(evaluator, tree, table)
    evaluator.again()
    return _read(evaluator, tree, table)


def _read(evaluator: Evaluator, tree: Tree, table: Place) -> Map:
    graph = CallGraph(evaluator)
    backends = _backends(evaluator, tree)
    lookups = _lookups(evaluator, tree, table.name)
    chain = _callers(evaluator, tree, lookups)
    wrapper = _wrapper(evaluator, chain)
    wrapped = _outcomes(evaluator, wrapper) if wrapper else Outcomes((), ())
    classes: dict[Class, ClassFacts] = {}
    for backend in backends:
        for built in backend.outcomes.built:
            facts = classes.get(built.cls) or classes.setdefault(built.cls, _class_facts(evaluator, graph, built.cls))
            if backend.name not in facts.backends:
                facts.backends.append(backend.name)
    settings, defaults = settings_and_defaults(evaluator, tree)
    return Map(
        tree.label,
        table,
        [_place(function, "") for function in lookups],
        [_place(function, function.summary) for function in chain],
        _helpers(evaluator, chain, wrapper),
        settings,
        defaults,
        _place(wrapper, wrapper.summary) if wrapper else None,
        wrapped,
        decode_step(evaluator, tree),
        runner_calls(evaluator, tree),
        contract(evaluator, tree),
        backends,
        sorted(classes.values(), key=lambda facts: (facts.backends[0], facts.place.path, facts.place.line)),
    )


def _place(symbol: Function | Class, note: str = "") -> Place:
    return Place(symbol.qualname, symbol.module.path, symbol.line, note, symbol.end)


def _find_registry(tree: Tree) -> tuple[Module, Place]:
    """The file that defines the decorator, and the table that the decorator fills."""
    for module in tree.containing(f"def {DECORATOR}"):
        for node in module.ast.body:
            if isinstance(node, ast.FunctionDef) and node.name == DECORATOR:
                for part in ast.walk(node):
                    if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Subscript):
                        name = part.targets[0].value.id
                        line = next(item.lineno for item in module.ast.body if _assigns(item, name))
                        return module, Place(name, module.path, line)
    raise OverlayError(
        f"{tree.label} has no {DECORATOR}", "give a release of SGLang that has a registry of attention backends"
    )


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _backends(evaluator: Evaluator, tree: Tree) -> list[Backend]:
    found = []
    for module in tree.containing(f"@{DECORATOR}"):
        for function in evaluator.functions(module):
            for decorator in function.node.decorator_list:
                if isinstance(decorator, ast.Call) and _last_name(decorator.func) == DECORATOR and decorator.args:
                    name = ast.literal_eval(decorator.args[0])
                    found.append(Backend(name, _place(function), _outcomes(evaluator, function)))
    return sorted(found, key=lambda backend: backend.name)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _outcomes(evaluator: Evaluator, function: Function) -> Outcomes:
    built: list[Built] = []
    refuses: list[tuple[str, str]] = []
    frame = evaluator.function(function)

    def walk(body: list[ast.stmt], conditions: tuple[str, ...]) -> None:
        for node in body:
            if isinstance(node, ast.If):
                test = function.module.text_of(node.test)
                walk(node.body, (*conditions, grouped(test)))
                walk(node.orelse, (*conditions, negated(test)))
                if not node.orelse and leaves(node.body) and not isinstance(node.body[-1], ast.Raise):
                    conditions = (*conditions, negated(test))
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                refuses.append((" and ".join(conditions) or "always", _message(function, node.exc.args)))
            elif isinstance(node, ast.Assert):
                test = negated(function.module.text_of(node.test))
                condition = " and ".join((*conditions, test))
                refuses.append((condition, _message(function, [node.msg] if node.msg else [])))
            elif isinstance(node, ast.Return) and node.value is not None:
                for value in evaluator.eval(node.value, frame):
                    if isinstance(value, Instance):
                        built.append(Built(value.cls, function.module.text_of(node.value), conditions))
            else:
                for name in ("body", "handlers", "orelse", "finalbody"):
                    for part in getattr(node, name, []):
                        walk([part] if isinstance(part, ast.stmt) else part.body, conditions)

    walk(function.node.body, ())
    return Outcomes(tuple(built), tuple(refuses))


def _message(function: Function, args: list[ast.expr]) -> str:
    """The constant parts of an error's text."""
    parts = [
        part.value
        for arg in args
        for part in ast.walk(arg)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    return " ".join(" ".join(parts).split())


def _lookups(evaluator: Evaluator, tree: Tree, table: str) -> list[Function]:
    """Functions that take a factory from the table by a name that is not written there."""
    found = []
    for module in tree.containing(table):
        for function in evaluator.functions(module):
            for node in ast.walk(function.node):
                if (
                    isinstance(node, ast.Subscript)
                    and isinstance(node.ctx, ast.Load)
                    and not isinstance(node.slice, ast.Constant)
                ):
                    if _last_name(node.value) == table and Registered() in evaluator.eval(
                        node, evaluator.function(function)
                    ):
                        found.append(function)
                        break
    return found


def _callers(evaluator: Evaluator, tree: Tree, lookups: list[Function]) -> list[Function]:
    """The functions from the lookup outwards, nearest caller first, turned round: the first is called first."""
    found = [function for function in lookups if not _is_of_a_backend(evaluator, function)]
    todo = list(found)
    while todo and len(found) < MAX_CALLERS:
        wanted = todo.pop(0)
        for module in tree.containing(wanted.name):
            for function in evaluator.functions(module):
                if function not in found and len(found) < MAX_CALLERS and _mentions(evaluator, function, wanted):
                    found.append(function)
                    if "backend" in function.name:  # beyond that it is the engine's start-up
                        todo.append(function)
    return found[::-1]


def _is_of_a_backend(evaluator: Evaluator, function: Function) -> bool:
    """Whether a function is a method of a backend, one that builds a second backend for its own use."""
    cls = function.method_of
    return cls is not None and evaluator.find_method(cls, "init_forward_metadata") is not None


def _mentions(evaluator: Evaluator, function: Function, wanted: Function) -> bool:
    for node in ast.walk(function.node):
        if isinstance(node, (ast.Name, ast.Attribute)) and _last_name(node) == wanted.name:
            for value in evaluator.eval(node, evaluator.function(function)):
                if value is wanted or isinstance(value, Method) and value.function is wanted:
                    return True
    return False


def _called_functions(evaluator: Evaluator, function: Function) -> Iterator[tuple[ast.Call, Function | Class]]:
    calls = [node for node in ast.walk(function.node) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        for value in evaluator.eval(call.func, evaluator.function(function)):
            if isinstance(value, (Function, Class, Method)):
                yield call, value.function if isinstance(value, Method) else value


def _wrapper(evaluator: Evaluator, chain: list[Function]) -> Function | None:
    """The function of the chain's calls that is given the backend just built."""
    for function in reversed(chain):
        for call, target in _called_functions(evaluator, function):
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
            values = [value for part in given for value in evaluator.eval(part, evaluator.function(function))]
            if isinstance(target, Function) and target not in chain and Registered(True) in values:
                return target
    return None


def _helpers(evaluator: Evaluator, chain: list[Function], wrapper: Function | None) -> list[Place]:
    """What the chain calls besides itself to decide: everything whose name speaks of a backend."""
    found: dict[tuple, Place] = {}
    for function in chain:
        for _, target in _called_functions(evaluator, function):
            if (
                target not in chain
                and target is not wrapper
                and any(word in target.name.lower() for word in ("backend", "attn"))
            ):
                found.setdefault((target.module.path, target.line), _place(target, target.summary))
    return list(found.values())


def _class_facts(evaluator: Evaluator, graph: CallGraph, cls: Class) -> ClassFacts:
    mro = evaluator.mro(cls)
    root = next(
        (part for part in mro[1:] if "init_forward_metadata" in part.methods and not evaluator.mro(part)[1:]), None
    )
    facts = ClassFacts(cls, _place(cls, cls.summary), [base.name for base in mro[1:]])
    names = dict.fromkeys(name for part in mro if part is not root for name in part.methods)
    for name in names:
        method = evaluator.find_method(cls, name)
        kind = _kind(name, root)
        if kind and method.owner is not root:
            facts.methods.setdefault(kind, []).append(_place(method, method.summary))
            if kind != "construction":
                path = graph.path(method, cls)
                if path.calls:
                    facts.paths.append(path)
        elif method.owner is cls:
            facts.others.append(Place(name, cls.module.path, method.line, end=method.end))
    facts.held = held_by(evaluator, cls, root)
    for places in facts.methods.values():
        places.sort(key=lambda place: (place.path != cls.module.path, place.path, place.line))
    order = ["forward", "metadata", "CUDA graph", "other"]
    facts.paths.sort(key=lambda path: (order.index(_kind(path.name.rsplit(".", 1)[-1], root)), path.path, path.line))
    facts.neighbours = [_place(other, other.summary) for other in evaluator.classes(cls.module) if other is not cls]
    return facts


def _kind(name: str, root: Class | None) -> str:
    """Chapter of a method; none for what is neither part of the interface nor named like it."""
    if name == "__init__":
        return "construction"
    if name.startswith("_"):
        return ""
    if "graph" in name:
        return "CUDA graph"
    if "metadata" in name:
        return "metadata"
    if name.startswith("forward"):
        return "forward"
    return "other" if root is not None and name in root.methods else ""
