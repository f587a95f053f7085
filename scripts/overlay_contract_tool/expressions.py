# SPDX-License-Identifier: Apache-2.0
"""What expressions of a file are, and which of their attributes and calls do not resolve."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass

from .classes import Types, parameters
from .library import UNKNOWN, Cls, Fn, Inst, Missing, Module
from .signatures import call_problem

IMPORT, ATTRIBUTE, CALL = "import", "attribute", "call"
WIDER = "isinstance"  # key of a scope for what its function asks isinstance about
Scope = dict[str, object]


@dataclass(frozen=True)
class Problem:
    line: int
    kind: str
    uses: str
    missing: str


@dataclass(frozen=True)
class Parent:
    """What super() is in a class."""

    cls: Cls


class Expressions:
    """One file. `heirs` tells which classes derive from one.

    `is_test`: the file may give objects of SGLang attributes of its own. Elsewhere that is setting what nobody reads.
    """

    def __init__(self, types: Types, module: Module, heirs: Callable[[Cls], list[Cls]], is_test: bool = False):
        self.types = types
        self.library = types.library
        self.module = module
        self.heirs = heirs
        self.given = _stored_attributes(module.tree) if is_test else set()
        self.problems: list[Problem] = []
        self.returns: list[object] = []

    def is_overlay(self, module: Module) -> bool:
        return module.path in self.library.own

    def _report(self, node: ast.AST, kind: str, uses: str, missing: str) -> None:
        self.problems.append(Problem(node.lineno, kind, uses, missing))

    # `cls` is the class that the code stands in, for super().

    def _eval(self, node: ast.expr, scope: Scope, cls: Cls | None) -> object:
        if isinstance(node, ast.Name):
            return self._widened(node, self._name(node.id, scope), scope)
        if isinstance(node, ast.Attribute):
            value = self._eval(node.value, scope, cls)
            return self._widened(node, self._attribute(node, value, node.attr), scope)
        if isinstance(node, ast.Call):
            return self._call(node, scope, cls)
        if isinstance(node, ast.IfExp):
            self._eval(node.test, scope, cls)
            truth = self._truth(node.test, scope, cls)
            values = [self._eval(part, scope, cls) for part, when in ((node.body, True), (node.orelse, False)) if truth in (None, when)]
            return values[0] if all(value == values[0] for value in values) else UNKNOWN
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                self._eval(part, scope, cls)
                if self._truth(part, scope, cls) is isinstance(node.op, ast.Or):
                    break
            return UNKNOWN
        inner = dict(scope)
        if isinstance(node, ast.Lambda):
            inner |= {argument.arg: UNKNOWN for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
            self._eval(node.body, inner, cls)
            return UNKNOWN
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            for generator in node.generators:
                self._eval(generator.iter, inner, cls)
                self._bind(generator.target, inner, cls)
                for condition in generator.ifs:
                    self._eval(condition, inner, cls)
        if isinstance(node, ast.NamedExpr):
            value = scope[node.target.id] = self._eval(node.value, scope, cls)
            return value
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.expr):
                self._eval(part, inner, cls)
        return UNKNOWN

    def _name(self, name: str, scope: Scope) -> object:
        if name in scope:
            return scope[name]
        try:
            return self.types.value(self.library.symbol(self.module, name))
        except Missing:
            return UNKNOWN  # a builtin

    def _widened(self, node: ast.expr, value: object, scope: Scope) -> object:
        """A value that the function asks isinstance about may be of those classes too."""
        asked = (scope.get(WIDER) or {}).get(ast.unparse(node)) if scope.get(WIDER) else None
        if asked is None or not isinstance(value, Inst):
            return value
        found = [self.types.static(self.module, part) for part in asked]
        return Inst((*value.classes, *found)) if all(isinstance(part, Cls) for part in found) else UNKNOWN

    def _attribute(self, node: ast.expr, value: object, name: str) -> object:
        try:
            if isinstance(value, Parent):
                return self._inherited(value.cls, name)
            return self.types.attribute(value, name)
        except Missing as missing:
            if name not in self.given and not self._heirs_have(value, name):
                self._report(node, ATTRIBUTE, ast.unparse(node), str(missing))
            return UNKNOWN

    def _heirs_have(self, value: object, name: str) -> bool:
        """An annotation names a base: of the overlay's own, what any heir has will do; of SGLang's, what the overlay adds."""
        for cls in value.classes if isinstance(value, Inst) else ():
            for heir in self.heirs(cls):
                members = self.types.members(heir)
                found = members.nodes.get(name)
                if self.is_overlay(cls.module) and (found or members.open):
                    return True
                if found and self.is_overlay(found[0].module):
                    return True
        return False

    def _inherited(self, cls: Cls, name: str) -> object:
        """`super().name`: from the bases, or from what stands behind a mixin in the classes that use it."""
        bases = [base for user in [cls, *self.heirs(cls)] for base in self.types.bases(user) if base is None or base.node is not cls.node]
        for base in bases:
            if base and (found := self.types.members(base).nodes.get(name)) and found[0].node is not cls.node:
                return self.types.attribute(Inst((base,)), name)
        if not bases or any(base is None or self.types.members(base).open for base in bases) or name.startswith("__"):
            return UNKNOWN
        raise Missing(f"{' or '.join(base.name for base in bases)} has no {name}")

    def _call(self, node: ast.Call, scope: Scope, cls: Cls | None) -> object:
        for part in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self._eval(part.value if isinstance(part, ast.Starred) else part, scope, cls)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "super" and cls and not node.args:
            return Parent(cls)
        if name == "type" and len(node.args) == 1:
            value = self._quietly(node.args[0], scope, cls)
            return value.classes[0] if isinstance(value, Inst) and len(value.classes) == 1 else UNKNOWN
        if name == "cast" and len(node.args) == 2:
            return self.types.annotation(self.module, node.args[0])
        if attribute := _asked_name(node, "getattr", 2):
            return self._attribute(node, self._quietly(node.args[0], scope, cls), attribute)
        function = self._eval(node.func, scope, cls)
        made = function if isinstance(function, Cls) else None
        if made:
            owner, init = self.types.members(made).nodes.get("__init__", (None, None))
            function = Fn(owner.module, init, owner, True) if isinstance(init, ast.FunctionDef) else None
        if isinstance(function, Fn) and not self.is_overlay(function.module):
            problem = call_problem(function, node)
            if problem:
                where = f"{function.module.path}:{function.node.lineno}"
                self._report(node, CALL, f"{ast.unparse(node.func)}()", f"it {problem} ({where})")
        if made:
            return Inst((made,))
        return self.types.result(function)

    def _truth(self, test: ast.expr, scope: Scope, cls: Cls | None) -> bool | None:
        """What a condition is on this release, or None where the sources do not tell."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self._truth(test.operand, scope, cls)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            values = [self._truth(value, scope, cls) for value in test.values]
            decisive = isinstance(test.op, ast.Or)
            return decisive if decisive in values else None if None in values else not decisive
        if isinstance(test, ast.Constant):
            return bool(test.value)
        if isinstance(test, (ast.Name, ast.Attribute)):
            return True if ast.unparse(test).split(".")[-1] == "TYPE_CHECKING" else None
        if isinstance(test, ast.Call):
            name = _asked_name(test, "hasattr", 2)
            if name:
                return self.types.has(self._quietly(test.args[0], scope, cls), name)
            return self._answer(self._quietly(test.func, scope, cls))
        return None

    def _answer(self, function: object) -> bool | None:
        """What a function of the overlay without parameters returns, such as a question in compat.py."""
        if not isinstance(function, Fn) or not self.is_overlay(function.module) or parameters(function.node):
            return None
        other = type(self)(self.types, function.module, self.heirs)
        scope: Scope = {}
        for node in function.node.body:
            if isinstance(node, ast.Return) and node.value:
                return other._truth(node.value, scope, None)
            if other._statement(node, scope, None):
                break
        return None

    def _quietly(self, node: ast.expr, scope: Scope, cls: Cls | None) -> object:
        before, self.problems = self.problems, []
        value = self._eval(node, scope, cls)
        self.problems = before
        return value


def _asked_name(node: ast.Call, function: str, size: int) -> str:
    """The constant name in hasattr(x, "name") or getattr(x, "name")."""
    fits = isinstance(node.func, ast.Name) and node.func.id == function and len(node.args) == size and not node.keywords
    last = node.args[-1] if fits else None
    return last.value if isinstance(last, ast.Constant) and isinstance(last.value, str) else ""


def _stored_attributes(node: ast.AST) -> set[str]:
    return {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)}
