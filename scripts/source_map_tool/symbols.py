# SPDX-License-Identifier: Apache-2.0
"""What a name can stand for, and the scopes that bind names."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .tree import Module

FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef)


class Function:
    """A function of the tree; ``owner`` is the class or function it stands in."""

    def __init__(self, module: Module, node: ast.FunctionDef, owner: Class | Function | None):
        self.module, self.node, self.owner = module, node, owner
        self.name = node.name
        self.qualname = node.name if owner is None else f"{owner.qualname}.{node.name}"
        self.line, self.end = node.lineno, node.end_lineno
        self.params = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
        self.annotations = {
            arg.arg: arg.annotation
            for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            if arg.annotation is not None
        }
        self.bindings = bindings_of(node.body, inside=True)
        self.is_static = any(_last(decorator) == "staticmethod" for decorator in node.decorator_list)
        self.is_class_method = any(_last(decorator) == "classmethod" for decorator in node.decorator_list)
        self.is_property = any("property" in _last(decorator) for decorator in node.decorator_list)

    @property
    def method_of(self) -> Class | None:
        """The class whose `self` this function sees, also from a function inside a method."""
        owner = self.owner
        while isinstance(owner, Function):
            owner = owner.owner
        return owner

    @property
    def summary(self) -> str:
        return _summary(self.node)


class Class:
    """A class of the tree. ``bases`` and ``mro`` are filled in by the evaluator."""

    def __init__(self, module: Module, node: ast.ClassDef, owner: Class | Function | None):
        self.module, self.node, self.owner = module, node, owner
        self.name = self.qualname = node.name
        self.line, self.end = node.lineno, node.end_lineno
        self.methods = {
            item.name: Function(module, item, self) for item in _nested(node.body) if isinstance(item, FUNCTION_NODES)
        }
        self.fields = {
            item.target.id: item.annotation
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        self.bindings = bindings_of(node.body)

    @property
    def summary(self) -> str:
        return _summary(self.node)


@dataclass(frozen=True)
class Method:
    """A function seen through a class; ``bound`` if the call does not pass its first argument."""

    function: Function
    cls: Class
    bound: bool = True
    declared: bool = False


@dataclass(frozen=True)
class Instance:
    """An object of a class. Of one that is only ``declared``, by an annotation of another file, the declaration counts:
    its methods and typed fields. What the engine stores in it elsewhere would lead through the whole engine."""

    cls: Class
    declared: bool = False


@dataclass(frozen=True)
class Super:
    """`super()` in a method of ``after``, for an object of ``cls``."""

    cls: Class
    after: Class
    declared: bool = False


@dataclass(frozen=True)
class Package:
    """A module of the tree as a value."""

    module: Module


@dataclass(frozen=True)
class External:
    """A name from another package: a module, a class or a function; with ``is_object`` an instance of the class of that name,
    and with ``of_object`` a method of one."""

    name: str
    is_object: bool = False
    of_object: bool = False

    @property
    def root(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Entry:
    """A value of a table written out as `{key: value}`, under a key that is written out as well."""

    key: object
    value: object


@dataclass(frozen=True)
class Compiled:
    """A module that is compiled from these CUDA files at run time, or one of its functions."""

    files: tuple[str, ...]
    function: str = ""


@dataclass(frozen=True)
class Registered:
    """Whatever the table of backends holds: the factory (``built`` false) or the backend; ``method`` once one is taken."""

    built: bool = False
    method: str = ""


@dataclass(frozen=True)
class Binding:
    """One way in which a scope binds a name."""

    kind: str  # import, from, node, value, type
    value: object  # dotted name, (module, name, level), AST node, expression


Bindings = dict[str, list[Binding]]
Values = tuple  # of the classes of this file, each once, in the order in which they were found


@dataclass(frozen=True)
class Frame:
    """Where an expression is evaluated.

    Attributes:
        module: the file.
        function: the function that holds the expression; None at the top of a file or class.
        cls: the class of `self`, which may be derived from the one that defines the function.
        bound: what is known of the arguments, as pairs of a parameter and its values.
        declared: whether `self` is only declared to be of that class.
    """

    module: Module
    function: Function | None = None
    cls: Class | None = None
    bound: tuple = ()
    declared: bool = False


def is_callable(value: object) -> bool:
    """Whether a value is worth following through an argument."""
    if isinstance(value, Entry):
        return is_callable(value.value)
    if isinstance(value, External):
        if value.root == "torch":  # not its dtypes
            return value.name.startswith(("torch.nn.", "torch.ops."))
        return value.is_object or "." in value.name and value.root != "typing"
    return isinstance(value, (Function, Method, Compiled, Registered))


def names_class(name: str) -> bool:
    """Whether an outside name is that of a class, by the way it is written."""
    last = name.rsplit(".", 1)[-1].lstrip("_")
    return last[:1].isupper() and not last.isupper()


def bindings_of(body: Iterable[ast.stmt], inside: bool = False) -> Bindings:
    """What the statements bind, branches included; with ``inside`` also the functions nested in a function."""
    found: Bindings = {}

    def bind(name: str, kind: str, value: object) -> None:
        found.setdefault(name, []).append(Binding(kind, value))

    def target(node: ast.expr, value: ast.expr) -> None:
        if isinstance(node, ast.Name):
            bind(node.id, "value", value)
        elif isinstance(node, (ast.Tuple, ast.List)):
            same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(node.elts)
            for number, item in enumerate(node.elts):
                target(item.value if isinstance(item, ast.Starred) else item, value.elts[number] if same else value)

    for node in _nested(body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    bind(alias.asname, "import", alias.name)
                else:
                    bind(alias.name.split(".")[0], "import", alias.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                bind(alias.asname or alias.name, "from", (node.module or "", alias.name, node.level))
        elif isinstance(node, (*FUNCTION_NODES, ast.ClassDef)):
            bind(node.name, "node", node)
            if inside and isinstance(node, FUNCTION_NODES):
                for name, more in bindings_of(node.body, inside=True).items():
                    found.setdefault(name, []).extend(more)
        elif isinstance(node, ast.Assign):
            for item in node.targets:
                target(item, node.value)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                target(node.target, node.value)
            if isinstance(node.target, ast.Name):
                bind(node.target.id, "type", node.annotation)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            target(node.target, node.iter)
        if inside and not isinstance(node, (*FUNCTION_NODES, ast.ClassDef)):
            for part in _expressions(node):
                if isinstance(part, ast.comprehension):
                    target(part.target, part.iter)
                elif isinstance(part, ast.NamedExpr):
                    target(part.target, part.value)
                elif isinstance(part, ast.withitem) and part.optional_vars is not None:
                    target(part.optional_vars, part.context_expr)
    return found


def import_source(binding: Binding, module: Module) -> str:
    """The module that a `from` import names, absolutely."""
    source, _, level = binding.value
    if level:
        parts = module.name.split(".")
        parts = parts[: len(parts) - level + (1 if module.is_package else 0)]
        source = ".".join([*parts, source] if source else parts)
    return source


def returns(node: ast.FunctionDef) -> list[ast.Return]:
    """The `return` statements of a function itself, those of the functions in it left out."""
    found, todo = [], list(node.body)
    while todo:
        part = todo.pop(0)
        if isinstance(part, ast.Return) and part.value is not None:
            found.append(part)
        if not isinstance(part, (*FUNCTION_NODES, ast.ClassDef, ast.Lambda)):
            todo[:0] = list(ast.iter_child_nodes(part))
    return found


def stored(method: Function) -> dict[str, list[ast.expr]]:
    """Expressions that a method stores in attributes of its first parameter, also by append, extend and subscript."""
    if not hasattr(method, "stored"):
        method.stored = _stores([method.node], method.params[0] if method.params else "")
    return method.stored


def stored_on(function: Function) -> dict[str, list[ast.expr]]:
    """Expressions that a function, or its file at the top, stores in attributes of the function itself."""
    if not hasattr(function, "stored_on"):
        outside = [node for node in function.module.ast.body if isinstance(node, ast.Assign)]
        function.stored_on = _stores([function.node, *outside], function.name)
    return function.stored_on


def _stores(nodes: list[ast.AST], own: str) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}

    def store(target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
            for number, item in enumerate(target.elts):
                store(item, value.elts[number] if same else value)
            return
        while isinstance(target, ast.Subscript):
            target = target.value
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == own:
            found.setdefault(target.attr, []).append(value)

    for node in (part for outer in nodes for part in ast.walk(outer)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                store(target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            store(node.target, node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr in ("append", "extend"):
                store(node.func.value, node.args[0])
    return found


def unique(values: Iterable) -> Values:
    return tuple(dict.fromkeys(values))


def _nested(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements in order, those in branches, loops and handlers included, not those in functions and classes."""
    for node in body:
        yield node
        if isinstance(node, (*FUNCTION_NODES, ast.ClassDef)):
            continue
        for field in ("body", "handlers", "orelse", "finalbody", "cases"):
            for part in getattr(node, field, []):
                yield from _nested([part] if isinstance(part, ast.stmt) else part.body)


def _expressions(node: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of one statement, without the statements inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield from ast.walk(child)


def _last(decorator: ast.expr) -> str:
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")


def _summary(node: ast.AST) -> str:
    """First sentence of the docstring on one line, or nothing."""
    paragraph = (ast.get_docstring(node) or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".")
