# SPDX-License-Identifier: Apache-2.0
"""The modules of a source tree and the names they define, read and never imported."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from overlay_tool.console import OverlayError
from overlay_tool.tree import Snapshot

ROOT = "python/"
UNKNOWN = None  # a value that the source does not tell
_BLOCKS = ("body", "orelse", "finalbody")


class Missing(Exception):
    """A module or a name that is not there; the text says which."""


@dataclass(frozen=True)
class Mod:
    name: str


@dataclass(frozen=True, eq=False)
class Module:
    """A parsed file. `bindings` maps a name to every node that binds it at the top level, in order."""

    name: str
    path: str
    tree: ast.Module
    bindings: dict[str, list[ast.AST]] = field(default_factory=dict)
    stars: list[ast.ImportFrom] = field(default_factory=list)

    @property
    def package(self) -> str:
        return self.name if self.path.endswith("/__init__.py") else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Cls:
    """A class, and by its methods what instances of it have. Two of them are the same if their node is."""

    module: Module
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return self.node.name


@dataclass(frozen=True)
class Inst:
    """An instance of one of some classes."""

    classes: tuple[Cls, ...]


@dataclass(frozen=True)
class Fn:
    """A function; `owner` is the class that it was found in, and `bound` whether its first parameter is given."""

    module: Module
    node: ast.FunctionDef | ast.AsyncFunctionDef
    owner: Cls | None = None
    bound: bool = False


@dataclass(frozen=True)
class Var:
    """A variable of a module, by the statement that sets it."""

    module: Module
    node: ast.Assign | ast.AnnAssign


class Library:
    """The modules of a tree below python/. `own` are the paths of the overlay's files in it."""

    def __init__(self, files: Snapshot, own: Collection[str] = ()):
        self.files = files
        self.own = own
        self._keywords: dict[str, set[str]] = {}
        self._folders = {str(folder) for path in files if path.endswith(".py") for folder in PurePosixPath(path).parents}
        self._modules: dict[str, Module | None] = {}
        self._busy: set[tuple[str, str]] = set()

    def module(self, name: str) -> Module | None:
        if name not in self._modules:
            self._modules[name] = self._parse(name)
        return self._modules[name]

    def exists(self, name: str) -> bool:
        """Whether a module, or a folder of modules, has that name."""
        return self.path(name) is not None or ROOT + name.replace(".", "/") in self._folders

    def path(self, name: str) -> str | None:
        base = ROOT + name.replace(".", "/")
        return next((path for path in (f"{base}/__init__.py", f"{base}.py") if path in self.files), None)

    def _parse(self, name: str) -> Module | None:
        path = self.path(name)
        if path is None:
            return None
        try:
            tree = ast.parse(self.files[path].data)
        except (SyntaxError, ValueError) as error:
            raise OverlayError(f"{path} cannot be parsed ({error})", "use a Python as new as the release needs") from None
        module = Module(name, path, tree)
        for node in statements(tree.body):
            for bound in _bound_names(node):
                module.bindings.setdefault(bound, []).append(node)
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                module.stars.append(node)
        return module

    def symbol(self, module: Module, name: str) -> object:
        """What a name is at the top level of a module; raises Missing where nothing binds it."""
        if name in module.bindings:
            if (module.name, name) in self._busy:
                return UNKNOWN  # modules that import each other
            self._busy.add((module.name, name))
            try:
                found = [self._bound(module, node, name) for node in module.bindings[name]]
            finally:
                self._busy.discard((module.name, name))
            return next((value for value in found if value is not UNKNOWN), UNKNOWN)
        if self.exists(f"{module.name}.{name}"):
            return Mod(f"{module.name}.{name}")
        if name in ("__name__", "__file__", "__doc__", "__path__") or self._computes(module, name):
            return UNKNOWN
        for star in module.stars:
            target = self.absolute(module, star)
            if not self.is_ours(target):
                return UNKNOWN
            source = self.module(target)
            try:
                return self.symbol(source, name) if source else UNKNOWN
            except Missing:
                continue
        raise Missing(f"{module.name} has no {name}")

    @staticmethod
    def _computes(module: Module, name: str) -> bool:
        """Whether the module's __getattr__ may know a name: one that it raises for any other is written in the module."""
        for node in module.bindings.get("__getattr__", ()):
            if not any(isinstance(part, ast.Raise) for part in ast.walk(node)):
                return True
            return any(isinstance(part, ast.Constant) and part.value == name for part in ast.walk(module.tree))
        return False

    def _bound(self, module: Module, node: ast.AST, name: str) -> object:
        if isinstance(node, ast.ClassDef):
            return Cls(module, node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return Fn(module, node)
        try:
            if isinstance(node, ast.Import):
                return self._imported(node, name)
            if isinstance(node, ast.ImportFrom):
                alias = next(alias for alias in node.names if (alias.asname or alias.name) == name)
                return self.imported_from(module, node, alias.name)
        except Missing:
            return UNKNOWN  # upstream's own affair
        if isinstance(node, ast.AnnAssign):
            return Var(module, node)
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            return Var(module, node)
        return UNKNOWN

    def _imported(self, node: ast.Import, name: str) -> object:
        for alias in node.names:
            if (alias.asname or alias.name.split(".")[0]) == name and self.is_ours(alias.name):
                return Mod(alias.name if alias.asname else name)
        return UNKNOWN

    def imported_from(self, module: Module, node: ast.ImportFrom, name: str) -> object:
        """What `from X import name` gives; raises Missing for a module or a name that is not there."""
        target = self.absolute(module, node)
        if not self.is_ours(target):
            return UNKNOWN
        source = self.module(target)
        if source is None:
            if not self.exists(target):
                raise Missing(f"there is no module {target}")
            if not self.exists(f"{target}.{name}"):
                raise Missing(f"{target} has no {name}")
            return Mod(f"{target}.{name}")
        return self.symbol(source, name)

    @staticmethod
    def absolute(module: Module, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = module.package
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        return f"{package}.{node.module}" if node.module else package

    @staticmethod
    def is_ours(name: str) -> bool:
        return name == "sglang" or name.startswith("sglang.")

    def keywords(self, method: str) -> set[str]:
        """Names of the arguments that calls of any method of that name give by name."""
        if method not in self._keywords:
            found = self._keywords[method] = set()
            for path, entry in self.files.items():
                if path.endswith(".py") and "/test/" not in path and f".{method}(".encode() in entry.data:
                    for node in ast.walk(ast.parse(entry.data)):
                        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
                            found |= {keyword.arg for keyword in node.keywords if keyword.arg}
        return self._keywords[method]

    def where(self, name: str) -> str | None:
        """A module of SGLang that defines a class or function of that name, to say where a moved one is now."""
        needles = tuple(f"\n{kind} {name}{end}".encode() for kind in ("class", "def", "async def") for end in ("(", ":"))
        for path, entry in sorted(self.files.items()):
            if path.endswith(".py") and "/test/" not in path and path not in self.own and any(needle in entry.data for needle in needles):
                return path.removeprefix(ROOT).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return None


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block, and of every block in it but functions and classes."""
    for node in body:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        for name in _BLOCKS:
            yield from statements(getattr(node, name, []))
        for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
            yield from statements(part.body)


def _bound_names(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names if alias.name != "*"}
    found: set[str] = set()
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.expr) or isinstance(part, ast.withitem):
            found |= {name.id for name in ast.walk(part) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    return found
