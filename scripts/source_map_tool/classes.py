# SPDX-License-Identifier: Apache-2.0
"""What the classes of a tree have: their bases, methods and attributes, and the objects that annotations allow."""

from __future__ import annotations

import ast

from .symbols import (
    Class,
    External,
    Frame,
    Function,
    Instance,
    Values,
    names_class,
    stored,
    unique,
)

AUTOGRAD = "torch.autograd.Function"


class Classes:
    """The part of the evaluator that knows classes; `eval` and `_bound_to` are those of the whole."""

    def __init__(self):
        self._mros: dict[Class, list[Class]] = {}

    def mro(self, cls: Class) -> list[Class]:
        """The class and its bases within the tree, nearest first."""
        if cls not in self._mros:
            self._mros[cls] = [cls]
            owner = cls.owner if isinstance(cls.owner, Function) else None
            for base in cls.node.bases:
                for value in self.eval(base, Frame(cls.module, owner)):
                    if isinstance(value, Class) and value is not cls:
                        self._mros[cls] += self.mro(value)
            self._mros[cls] = list(dict.fromkeys(self._mros[cls]))
        return self._mros[cls]

    def find_method(self, cls: Class, name: str, after: Class | None = None) -> Function | None:
        mro = self.mro(cls)
        if after in mro:
            mro = mro[mro.index(after) + 1 :]
        return next((part.methods[name] for part in mro if name in part.methods), None)

    def forward_applied(self, cls: Class, name: str) -> Function | None:
        """`forward` for `apply` of an autograd function, which calls it with a context before its own arguments."""
        bases = [value for part in self.mro(cls) for base in part.node.bases for value in self.eval(base, Frame(part.module))]
        return self.find_method(cls, "forward") if name == "apply" and External(AUTOGRAD) in bases else None

    def _assigns(self, cls: Class, name: str) -> bool:
        """Whether an object of the class has an attribute of this name, which would hide a method."""
        return any(name in stored(method) for part in self.mro(cls) for method in part.methods.values())

    def _attribute_of(self, cls: Class, name: str, declared: bool) -> Values:
        """What the methods of a class store in ``self.name``, or what the class declares."""
        found: list = []
        for part in () if declared else self.mro(cls):
            for method in part.methods.values():
                for value in stored(method).get(name, ()):
                    found += self.eval(value, Frame(part.module, method, cls))
        for part in self.mro(cls):
            if not found and name in part.bindings:
                found += self._bound_to(part.bindings[name], Frame(part.module))
            if not found and name in part.fields:
                found += self.of_type(part.fields[name], Frame(part.module))
        return unique(found)

    def of_type(self, node: ast.expr | None, frame: Frame) -> Values:
        """Objects that an annotation allows: `X`, `Optional[X]`, `List[X]`, `X | None`, `"X"`."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                node = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                return ()
        if isinstance(node, ast.BinOp):
            return unique([*self.of_type(node.left, frame), *self.of_type(node.right, frame)])
        if isinstance(node, ast.Subscript):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return unique([value for item in inner for value in self.of_type(item, frame)])
        if not isinstance(node, (ast.Name, ast.Attribute)):
            return ()
        found: list = []
        for value in self.eval(node, frame):
            if isinstance(value, Class):
                found.append(Instance(value, declared=value.module is not frame.module))
            elif isinstance(value, External) and names_class(value.name) and value.root not in ("typing", "torch"):
                found.append(External(value.name, is_object=True))
        return tuple(found)
