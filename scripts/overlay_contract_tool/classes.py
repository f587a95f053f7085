# SPDX-License-Identifier: Apache-2.0
"""What classes have: members through their bases, the types that annotations tell, and which calls they accept."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .library import UNKNOWN, Cls, Fn, Inst, Library, Missing, Mod, Module, Var, statements

_EMPTY_BASES = {"object", "ABC", "Protocol", "Generic", "Struct"}
_ENUMS = {"Enum", "IntEnum", "Flag", "IntFlag", "StrEnum"}
_PLAIN_DECORATORS = {
    "dataclass", "dataclasses", "total_ordering", "abstractmethod", "staticmethod", "classmethod", "no_grad", "override",
    "runtime_checkable", "final", "inference_mode", "torch", "abc", "functools", "typing", "auto_doc",
}  # fmt: skip
_WRAPPERS = {"Optional", "Annotated", "A", "Final", "ClassVar", "Union", "Required", "NotRequired"}
_FIELD = re.compile(rb"^ {4}(\w+): [^\n]*[^,\n]$", re.MULTILINE)  # a parameter on a line of its own ends in a comma
_PROPERTIES = {"property", "cached_property", "functools.cached_property", "abc.abstractproperty"}


@dataclass
class Members:
    """Nodes by name, each with the class that it stands in. `open`: there may be others, as a base is not to be read."""

    nodes: dict[str, tuple[Cls, ast.AST | None]] = field(default_factory=dict)
    open: bool = False
    assembled: bool = False  # a decorator or a second definition of the name adds what is not to be read here


class Types:
    """Answers about the classes of a library. `extra` maps a class name to members that patches of ours add."""

    def __init__(self, library: Library, extra: dict[str, set[str]] | None = None):
        self.library = library
        self.extra = extra or {}
        self._members: dict[int, Members] = {}
        self._fields: set[str] | None = None
        self._inferring: list[ast.AST] = []
        self.infer: Callable[[Fn], object] = lambda function: UNKNOWN

    def bases(self, cls: Cls) -> list[Cls | None]:
        """The base classes; UNKNOWN for one that is not in the library."""
        found: list[Cls | None] = []
        for base in cls.node.bases:
            value = self.static(cls.module, base.value if isinstance(base, ast.Subscript) else base)
            if isinstance(value, Cls):
                found.append(value)
            elif _last_name(base) not in _EMPTY_BASES | _ENUMS:
                found.append(UNKNOWN)
        return found

    def lineage(self, cls: Cls) -> list[Cls]:
        """The class and its bases in the library, the nearest first."""
        found = [cls]
        for base in self.bases(cls):
            found += [other for other in (self.lineage(base) if base else []) if other not in found]
        return found

    def members(self, cls: Cls) -> Members:
        known = self._members.get(id(cls.node))
        if known is None:
            known = self._members[id(cls.node)] = Members()  # first, against classes that name each other
            known.nodes |= {name: (cls, node) for name, node in _own_members(cls.node)}
            known.open = _sets_any_attribute(cls.node)
            known.assembled = self._is_assembled(cls)
            for name in self.extra.get(cls.name, ()):
                known.nodes.setdefault(name, (cls, cls.node))
            if any(_last_name(base) in _ENUMS for base in cls.node.bases):
                known.nodes |= {name: (cls, cls.node) for name in ("name", "value")}
            for base in self.bases(cls):
                if base is UNKNOWN:
                    known.open = True
                    continue
                inherited = self.members(base)
                known.open |= inherited.open
                known.assembled |= inherited.assembled
                known.nodes = {**inherited.nodes, **known.nodes}
        return known

    def _is_assembled(self, cls: Cls) -> bool:
        twice = len(cls.module.bindings.get(cls.name, [cls.node])) > 1
        return twice or any(_first_name(decorator) not in _PLAIN_DECORATORS for decorator in cls.node.decorator_list)

    def attribute(self, value: object, name: str) -> object:
        """What `value.name` is; raises Missing where it is told that there is no such attribute."""
        if isinstance(value, Mod):
            module = self.library.module(value.name)
            if module:
                return self.value(self.library.symbol(module, name))
            if name.startswith("__"):
                return UNKNOWN
            if not self.library.exists(f"{value.name}.{name}"):
                raise Missing(f"{value.name} has no {name}")
            return Mod(f"{value.name}.{name}")
        classes = value.classes if isinstance(value, Inst) else (value,) if isinstance(value, Cls) else ()
        for cls in classes:
            found = self.members(cls).nodes.get(name)
            if found:
                return self._member(found[0], found[1], name, isinstance(value, Inst))
        if not classes or (name.startswith("__") and name.endswith("__")) or any(self.members(cls).open for cls in classes):
            return UNKNOWN
        if any(self.members(cls).assembled for cls in classes) and self.is_field(name):
            return UNKNOWN
        raise Missing(f"{_either(classes)} has no {name}")

    def has(self, value: object, name: str) -> bool | None:
        """hasattr(value, name), or None where the sources do not tell."""
        try:
            found = self.attribute(value, name)
        except Missing:
            return False
        if isinstance(value, Mod) or found is not UNKNOWN:
            return True
        classes = value.classes if isinstance(value, Inst) else (value,) if isinstance(value, Cls) else ()
        return True if classes and all(name in self.members(cls).nodes for cls in classes) else None

    def is_field(self, name: str) -> bool:
        """Whether any class of the tree declares a field of that name: all that can be told of an assembled class."""
        if self._fields is None:
            sources = (entry.data for path, entry in self.library.files.items() if path.endswith(".py"))
            self._fields = {found.decode() for data in sources for found in _FIELD.findall(data)}
        return name in self._fields

    def _member(self, owner: Cls, node: ast.AST | None, name: str, of_instance: bool) -> object:
        module = owner.module
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if decorators & _PROPERTIES:
                return self.annotation(module, node.returns) if of_instance else UNKNOWN
            bound = of_instance and "staticmethod" not in decorators or "classmethod" in decorators
            return Fn(module, node, owner, bound)
        if isinstance(node, ast.AnnAssign):
            return self.annotation(module, node.annotation)
        if isinstance(node, ast.Assign):
            if any(_last_name(base) in _ENUMS for base in owner.node.bases):
                return Inst((owner,))
            return self._assigned(owner, node)
        return Cls(module, node) if isinstance(node, ast.ClassDef) and node is not owner.node else UNKNOWN

    def _assigned(self, owner: Cls, node: ast.Assign) -> object:
        """The type of `self.x = parameter` or `x = Class(...)`."""
        if isinstance(node.value, ast.Name):
            for method in owner.node.body:
                if isinstance(method, ast.FunctionDef) and node in list(ast.walk(method)):
                    given = [arg for arg in parameters(method) if arg.arg == node.value.id]
                    return self.annotation(owner.module, given[0].annotation) if given else UNKNOWN
        if isinstance(node.value, ast.Call):
            value = self.static(owner.module, node.value.func)
            return Inst((value,)) if isinstance(value, Cls) else UNKNOWN
        return UNKNOWN

    def static(self, module: Module, node: ast.expr | None) -> object:
        """What a dotted name is at the top level of a module."""
        try:
            if isinstance(node, ast.Name):
                return self.value(self.library.symbol(module, node.id))
            if isinstance(node, ast.Attribute):
                return self.attribute(self.static(module, node.value), node.attr)
        except Missing:
            return UNKNOWN
        return UNKNOWN

    def value(self, found: object) -> object:
        """What a module's variable holds; anything else is what it is."""
        if not isinstance(found, Var):
            return found
        if isinstance(found.node, ast.AnnAssign):
            return self.annotation(found.module, found.node.annotation)
        if isinstance(found.node.value, ast.Call):
            made = self.static(found.module, found.node.value.func)
            return Inst((made,)) if isinstance(made, Cls) else self.result(made)
        return self.static(found.module, found.node.value)

    def result(self, function: object) -> object:
        """What a call of a function gives: by its annotation, or of the overlay's own by what it returns."""
        if not isinstance(function, Fn) or not isinstance(function.node, ast.FunctionDef):
            return UNKNOWN
        told = self.annotation(function.module, function.node.returns)
        if told is UNKNOWN and function.module.path in self.library.own and function.node not in self._inferring:
            self._inferring.append(function.node)
            told = self.infer(function)
            self._inferring.pop()
        return told

    def annotation(self, module: Module, node: ast.expr | None) -> object:
        """An instance of what an annotation names, as far as it names classes of the library."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                node = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                return UNKNOWN
        if isinstance(node, (ast.Name, ast.Attribute)):
            value = self.static(module, node)
            return Inst((value,)) if isinstance(value, Cls) else UNKNOWN
        if isinstance(node, ast.Subscript):
            name, inner = _last_name(node.value), node.slice
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if name in ("Type", "type"):
                value = self.annotation(module, parts[0])
                return value.classes[0] if isinstance(value, Inst) and len(value.classes) == 1 else UNKNOWN
            if name in _WRAPPERS:
                return self._union(module, parts if name == "Union" else parts[:1])
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self._union(module, [node.left, node.right])
        return UNKNOWN

    def _union(self, module: Module, parts: list[ast.expr]) -> object:
        found = [self.annotation(module, part) for part in parts if not (isinstance(part, ast.Constant) and part.value is None)]
        if not found or not all(isinstance(value, Inst) for value in found):
            return UNKNOWN
        return Inst(tuple(cls for value in found for cls in value.classes))


def _either(classes: Sequence[Cls]) -> str:
    return " or ".join(cls.name for cls in classes)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """All but *args and **kwargs."""
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _own_members(node: ast.ClassDef) -> list[tuple[str, ast.AST | None]]:
    """Names of a class body, and attributes that its methods set on self; a body's name goes before."""
    found: list[tuple[str, ast.AST | None]] = []
    for part in statements(node.body):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found += [(name, target) for name, target in _set_on_self(part)]
    for part in statements(node.body):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append((part.name, part))
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.append((part.target.id, part))
        elif isinstance(part, (ast.Assign, ast.For)):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            found += [(name.id, part) for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return found


def _set_on_self(method: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, ast.AST | None]]:
    arguments = [*method.args.posonlyargs, *method.args.args]
    if not arguments:
        return []
    found: list[tuple[str, ast.AST | None]] = []
    for part in ast.walk(method):
        targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
        for target in targets:
            for place in ast.walk(target) if isinstance(target, ast.expr) else ():
                on_self = isinstance(place, ast.Attribute) and isinstance(place.value, ast.Name)
                if on_self and isinstance(place.ctx, ast.Store) and place.value.id == arguments[0].arg:
                    simple = isinstance(part, (ast.Assign, ast.AnnAssign)) and place is target
                    found.append((place.attr, part if simple else None))
    # A later assignment of None says less than the first one that tells a type.
    return sorted(found, key=lambda item: (item[1] is not None, isinstance(item[1], ast.AnnAssign)))


def _sets_any_attribute(node: ast.ClassDef) -> bool:
    """Whether attributes come from elsewhere: __getattr__, or setattr with computed names when an instance is made."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            if part.name in ("__getattr__", "__getattribute__"):
                return True
            if part.name in ("__init__", "__post_init__", "__new__"):
                text = ast.unparse(part)
                if "self.__dict__" in text or "setattr(self," in text:
                    return True
    return False


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _first_name(node: ast.expr) -> str:
    while not isinstance(node, ast.Name):
        inner = getattr(node, "func", getattr(node, "value", None))
        if not isinstance(inner, ast.expr):
            return ""
        node = inner
    return node.id
