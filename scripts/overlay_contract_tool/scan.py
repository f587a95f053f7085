# SPDX-License-Identifier: Apache-2.0
"""Walks one file of the overlay and checks each use of SGLang: imports, attributes, calls, base classes and overrides.

Branches that the sources decide are decided: of `try: import` with `except ImportError`, and of `if hasattr(x, "name")`
where the type of x is told, only the branch that would run must resolve.
"""

from __future__ import annotations

import ast

from .classes import parameters
from .expressions import ATTRIBUTE, CALL, IMPORT, WIDER, Expressions, Problem, Scope
from .library import UNKNOWN, Cls, Fn, Inst, Missing, Mod
from .signatures import override_problem

_CAUGHT = {
    "ImportError": {IMPORT}, "ModuleNotFoundError": {IMPORT}, "AttributeError": {ATTRIBUTE},
    "Exception": {IMPORT, ATTRIBUTE}, "BaseException": {IMPORT, ATTRIBUTE}, "": {IMPORT, ATTRIBUTE},
}  # fmt: skip


class Scan(Expressions):
    """One file, statement by statement."""

    def run(self) -> list[Problem]:
        self._block(self.module.tree.body, {}, None)
        return sorted(set(self.problems), key=lambda problem: (problem.line, problem.uses))

    def returned(self, function: Fn) -> object:
        """What a function without parameters returns on this release, such as a seam that chooses a class."""
        if not parameters(function.node):
            self._block(function.node.body, {}, None)
        return self.returns[0] if len(set(map(id, self.returns))) == 1 else UNKNOWN

    def _block(self, body: list[ast.stmt], scope: Scope, cls: Cls | None) -> bool:
        """Runs the statements that would run; True where the block leaves its function or loop."""
        return any(self._statement(node, scope, cls) for node in body)

    def _statement(self, node: ast.stmt, scope: Scope, cls: Cls | None) -> bool:
        if isinstance(node, ast.Import):
            self._import(node, scope)
        elif isinstance(node, ast.ImportFrom):
            self._import_from(node, scope)
        elif isinstance(node, ast.Try):
            return self._try(node, scope, cls)
        elif isinstance(node, ast.If):
            return self._if(node, scope, cls)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._function(node, scope, cls)
        elif isinstance(node, ast.ClassDef):
            self._class(node, scope)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            self._assign(node, scope, cls)
        elif isinstance(node, ast.Return):
            self.returns.append(self._eval(node.value, scope, cls) if node.value else UNKNOWN)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith)):
            self._compound(node, scope, cls)
        else:
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.expr):
                    self._eval(part, scope, cls)
                elif isinstance(part, ast.match_case):
                    self._block(part.body, dict(scope), cls)
        return isinstance(node, (ast.Return, ast.Raise, ast.Continue, ast.Break))

    def _import(self, node: ast.Import, scope: Scope) -> None:
        for alias in node.names:
            if not self.library.is_ours(alias.name):
                continue
            if not self.library.exists(alias.name):
                self._report(node, IMPORT, f"import {alias.name}", f"there is no module {alias.name}")
            scope[alias.asname or "sglang"] = Mod(alias.name if alias.asname else "sglang")

    def _import_from(self, node: ast.ImportFrom, scope: Scope) -> None:
        target = self.library.absolute(self.module, node)
        for alias in node.names:
            try:
                if alias.name == "*":
                    if self.library.is_ours(target) and not self.library.exists(target):
                        raise Missing(f"there is no module {target}")
                    continue
                found = self.library.imported_from(self.module, node, alias.name)
                scope[alias.asname or alias.name] = self.types.value(found)
            except Missing as missing:
                where = self.library.where(alias.name)
                hint = f"; {where} has it" if where and where != target else ""
                self._report(node, IMPORT, f"from {target} import {alias.name}", f"{missing}{hint}")
                scope[alias.asname or alias.name] = UNKNOWN

    def _try(self, node: ast.Try, scope: Scope, cls: Cls | None) -> bool:
        caught = {kind for handler in node.handlers for name in _handled(handler) for kind in _CAUGHT.get(name, ())}
        before, self.problems = self.problems, []
        inner = dict(scope)
        ended = self._block(node.body, inner, cls)
        tried, self.problems = self.problems, before
        forgiven = [problem for problem in tried if problem.kind in caught]
        self.problems += [problem for problem in tried if problem.kind not in caught]
        if not forgiven:
            scope.update(inner)
            decided = caught & {IMPORT} and any(isinstance(part, (ast.Import, ast.ImportFrom)) for part in node.body)
            for handler in [] if decided else node.handlers:
                self._block(handler.body, dict(scope), cls)
            ended = ended or self._block(node.orelse, scope, cls)
            return self._block(node.finalbody, scope, cls) or (ended and bool(decided))
        self.problems = []
        ended = all([self._block(handler.body, scope, cls) for handler in node.handlers])
        tried, self.problems = self.problems, before
        if tried or all(isinstance(handler.body[-1], ast.Raise) for handler in node.handlers):
            self.problems += forgiven + tried
        return self._block(node.finalbody, scope, cls) or ended

    def _if(self, node: ast.If, scope: Scope, cls: Cls | None) -> bool:
        self._eval(node.test, scope, cls)
        truth = self._truth(node.test, scope, cls)
        if truth is not None:
            return self._block(node.body if truth else node.orelse, scope, cls)
        one, other = dict(scope), dict(scope)
        ended = [self._block(node.body, one, cls), self._block(node.orelse, other, cls)]
        for name in one.keys() | other.keys():
            values = [found.get(name) for found, end in zip((one, other), ended) if not end]
            scope[name] = values[0] if values and all(value == values[0] for value in values) else UNKNOWN
        return all(ended)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope, cls: Cls | None, method: bool = False) -> None:
        for part in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self._eval(part, scope, cls)
        inner = dict(scope)
        inner[WIDER] = {**(scope.get(WIDER) or {}), **_isinstance_questions(node)}
        for argument in parameters(node):
            inner[argument.arg] = self.types.annotation(self.module, argument.annotation)
        for argument in filter(None, (node.args.vararg, node.args.kwarg)):
            inner[argument.arg] = UNKNOWN
        decorators = {ast.unparse(part) for part in node.decorator_list}
        if method and cls and node.args.args and "staticmethod" not in decorators:
            own = node.args.args[0].arg
            inner[own] = cls if "classmethod" in decorators else Inst((cls, *self.heirs(cls)))
        self._block(node.body, inner, cls)
        if not method and scope.get(WIDER) is not None:
            scope[node.name] = UNKNOWN  # a function in a function; those of the module are looked up in the library

    def _class(self, node: ast.ClassDef, scope: Scope) -> None:
        cls = Cls(self.module, node)
        for part in [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]:
            self._eval(part, scope, None)
        for part in node.body:
            if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._function(part, scope, cls, method=True)
                self._check_override(cls, part)
            else:
                self._statement(part, dict(scope), cls)
        if not self.heirs(cls):
            self._check_abstract(cls)

    def _check_override(self, cls: Cls, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """A mixin overrides what stands behind it in the classes that use it, so those count too."""
        for user in [cls, *self.heirs(cls)]:
            for base in self.types.lineage(user)[1:]:
                theirs = next((part for part in base.node.body if getattr(part, "name", "") == node.name), None)
                if base.node is cls.node or self.is_overlay(base.module) or not isinstance(theirs, ast.FunctionDef):
                    continue
                problem = override_problem(self.library, Fn(self.module, node, cls), Fn(base.module, theirs, base))
                if problem:
                    what = f"{problem}, a parameter of {base.name}.{node.name}" if problem.startswith("does not") else problem
                    self._report(node, CALL, f"{cls.name}.{node.name}", f"it {what} ({base.module.path}:{theirs.lineno})")
                    return
                break

    def _check_abstract(self, cls: Cls) -> None:
        for name, (owner, part) in sorted(self.types.members(cls).nodes.items()):
            decorators = [ast.unparse(decorator) for decorator in getattr(part, "decorator_list", [])]
            if not self.is_overlay(owner.module) and any(text.endswith("abstractmethod") for text in decorators):
                self._report(cls.node, CALL, f"class {cls.name}", f"it does not define {owner.name}.{name}, which is abstract")

    def _assign(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign, scope: Scope, cls: Cls | None) -> None:
        value = self._eval(node.value, scope, cls) if node.value else UNKNOWN
        if isinstance(node, ast.AnnAssign):
            value = self.types.annotation(self.module, node.annotation)
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                scope[target.id] = UNKNOWN if isinstance(node, ast.AugAssign) else value
            else:
                self._bind(target, scope, cls)

    def _bind(self, target: ast.expr, scope: Scope, cls: Cls | None) -> None:
        for part in ast.walk(target):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                scope[part.id] = UNKNOWN
        if not isinstance(target, ast.Name):
            self._eval(target, scope, cls)

    def _compound(self, node: ast.stmt, scope: Scope, cls: Cls | None) -> None:
        for item in getattr(node, "items", []):
            self._eval(item.context_expr, scope, cls)
            if item.optional_vars:
                self._bind(item.optional_vars, scope, cls)
        for name in ("iter", "test"):
            if isinstance(getattr(node, name, None), ast.expr):
                self._eval(getattr(node, name), scope, cls)
        if isinstance(node, (ast.For, ast.AsyncFor)):
            self._bind(node.target, scope, cls)
        self._block(node.body, scope, cls)
        self._block(getattr(node, "orelse", []), scope, cls)


def _handled(handler: ast.ExceptHandler) -> list[str]:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return [ast.unparse(kind) if kind else "" for kind in kinds]


def _isinstance_questions(node: ast.AST) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in ("isinstance", "issubclass") and len(part.args) == 2:
            kinds = part.args[1].elts if isinstance(part.args[1], ast.Tuple) else [part.args[1]]
            found.setdefault(ast.unparse(part.args[0]), []).extend(kinds)
    return found
