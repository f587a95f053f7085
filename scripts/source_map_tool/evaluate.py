# SPDX-License-Identifier: Apache-2.0
"""What an expression can stand for: every function, class, object or outside name that some branch gives it.

Branches are not decided, the elements of a container are not told apart, and what comes from outside of the tree stays a
name. A value that cannot be found is left out: the map shows less then, never something else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from .strings import written_text
from .symbols import (
    FUNCTION_NODES,
    Binding,
    Bindings,
    Class,
    Compiled,
    External,
    Function,
    Instance,
    Method,
    Package,
    Registered,
    Super,
    bindings_of,
    import_source,
    is_callable,
    names_class,
    returns,
    stored,
)
from .tree import Module, Tree

Values = tuple  # of the classes of symbols.py, each once, in the order in which they were found
MAX_DEPTH = 160  # nested evaluations
CONTAINER_CALLS = ("list", "tuple", "dict", "set", "sorted", "reversed", "enumerate", "zip", "next", "iter")
# Of a list of objects, not of the objects in it.
CONTAINER_METHODS = ("append", "clear", "extend", "get", "index", "insert", "items", "keys", "pop", "update", "values")
# Calls that return the function they are given, compiled or with some arguments filled in.
WRAPPERS = ("functools", "torch", "triton")
MAX_BOUND = 4  # a parameter that can be more than this is unknown


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


class Evaluator:
    def __init__(self, tree: Tree, registry: tuple[str, str] | None = None):
        self.tree = tree
        self.registry = registry  # module and name of the table of backends
        self._tops: dict[Module, Bindings] = {}
        self._nodes: dict[int, Function | Class] = {}
        self._mros: dict[Class, list[Class]] = {}
        self._memo: dict[tuple, Values] = {}
        self._active: set[tuple] = set()
        self._before: dict[tuple, Values] = {}

    def again(self) -> None:
        """Forget the answers, but use them where the next ones depend on themselves (`q = q.view(...)`)."""
        self._before, self._memo = self._memo, {}

    # Names and scopes

    def function(self, method: Method | Function, bound: tuple = ()) -> Frame:
        """The frame of a call."""
        if isinstance(method, Method):
            return Frame(method.function.module, method.function, method.cls, bound, method.declared)
        return Frame(method.module, method, method.method_of, bound)

    def in_module(self, module: Module, name: str) -> Values:
        """What a file binds a name to at its top; through its star imports as well."""
        if self.registry == (module.name, name):
            return (Registered(),)
        key = ("module", module.name, name)
        if key in self._active:
            return ()
        if key not in self._memo:
            self._active.add(key)
            bindings = self.top(module)
            values = self._bound_to(bindings.get(name, ()), Frame(module))
            for star in () if values else bindings.get("*", ()):
                values = values or self._imported(star, module, name)
            if not values and module.is_package:
                inner = self.tree.module(f"{module.name}.{name}")
                values = (Package(inner),) if inner else ()
            self._active.discard(key)
            self._memo[key] = values
        return self._memo[key]

    def top(self, module: Module) -> Bindings:
        """What a file binds at its top."""
        if module not in self._tops:
            self._tops[module] = bindings_of(module.ast.body)
        return self._tops[module]

    def _bound_to(self, bindings: Iterable[Binding], frame: Frame) -> Values:
        found: list = []
        for binding in bindings:
            if binding.kind == "import":
                found += self._package(binding.value)
            elif binding.kind == "from":
                found += self._imported(binding, frame.module)
            elif binding.kind == "node":
                found.append(self._symbol(binding.value, frame))
            elif binding.kind == "value":
                found += self.eval(binding.value, frame)
        if not found:  # an annotation says less than a value
            for binding in bindings:
                if binding.kind == "type":
                    found += self.of_type(binding.value, frame)
        return _unique(found)

    def functions(self, module: Module) -> list[Function]:
        """The functions and methods of a file, without those inside functions."""
        found = []
        for bindings in self.top(module).values():
            for binding in bindings:
                if binding.kind == "node":
                    symbol = self._symbol(binding.value, Frame(module))
                    found += symbol.methods.values() if isinstance(symbol, Class) else [symbol]
        return sorted(found, key=lambda function: function.line)

    def classes(self, module: Module) -> list[Class]:
        """The classes at the top of a file."""
        bound = [
            binding.value for bindings in self.top(module).values() for binding in bindings if binding.kind == "node"
        ]
        nodes = [node for node in bound if isinstance(node, ast.ClassDef)]
        return [self._symbol(node, Frame(module)) for node in sorted(nodes, key=lambda node: node.lineno)]

    def _package(self, name: str) -> Values:
        module = self.tree.module(name)
        if module:
            return (Package(module),)
        return () if name.split(".")[0] == "sglang" else (External(name),)

    def _imported(self, binding: Binding, module: Module, star: str = "") -> Values:
        source, name = import_source(binding, module), star or binding.value[1]
        inner = self.tree.module(source)
        if inner:
            values = self.in_module(inner, name)
            submodule = None if values else self.tree.module(f"{source}.{name}")
            return (Package(submodule),) if submodule else values
        if source.split(".")[0] == "sglang":
            submodule = self.tree.module(f"{source}.{name}")
            return (Package(submodule),) if submodule else ()
        return () if star else (External(f"{source}.{name}"),)

    def _symbol(self, node: ast.AST, frame: Frame) -> Function | Class:
        """The one object that stands for a definition."""
        if id(node) not in self._nodes:
            kind = Function if isinstance(node, FUNCTION_NODES) else Class
            self._nodes[id(node)] = kind(frame.module, node, frame.function)
        return self._nodes[id(node)]

    def _name(self, name: str, frame: Frame) -> Values:
        function = frame.function
        while function is not None:
            if function is frame.function and name in dict(frame.bound):
                return dict(frame.bound)[name]
            owner = function.owner if isinstance(function.owner, Class) else None
            if owner is not None and frame.cls is not None and function.params[:1] == [name] and not function.is_static:
                return (frame.cls if function.is_class_method else Instance(frame.cls, frame.declared),)
            bound = frame.bound if function is frame.function else ()
            inner = Frame(function.module, function, frame.cls, bound, frame.declared)
            values = self._bound_to(function.bindings.get(name, ()), inner)
            if not values and name in function.annotations:
                values = self.of_type(function.annotations[name], Frame(function.module))
            if values or name in function.bindings or name in function.params:
                return values
            function = function.owner if isinstance(function.owner, Function) else None
        if frame.function is None and frame.cls is not None and name in frame.cls.bindings:
            return self._bound_to(frame.cls.bindings[name], Frame(frame.module))
        return self.in_module(frame.module, name)

    # Classes

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
        return _unique(found)

    def of_type(self, node: ast.expr | None, frame: Frame) -> Values:
        """Objects that an annotation allows: `X`, `Optional[X]`, `List[X]`, `X | None`, `"X"`."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                node = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                return ()
        if isinstance(node, ast.BinOp):
            return _unique([*self.of_type(node.left, frame), *self.of_type(node.right, frame)])
        if isinstance(node, ast.Subscript):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return _unique([value for item in inner for value in self.of_type(item, frame)])
        if not isinstance(node, (ast.Name, ast.Attribute)):
            return ()
        found: list = []
        for value in self.eval(node, frame):
            if isinstance(value, Class):
                found.append(Instance(value, declared=value.module is not frame.module))
            elif isinstance(value, External) and names_class(value.name) and value.root not in ("typing", "torch"):
                found.append(External(value.name, is_object=True))
        return tuple(found)

    # Expressions

    def eval(self, node: ast.expr, frame: Frame) -> Values:
        key = (id(node), frame)
        if key in self._memo:
            return self._memo[key]
        if key in self._active or len(self._active) > MAX_DEPTH:
            return self._before.get(key, ())
        self._active.add(key)
        values = _unique(self._eval(node, frame))
        self._active.discard(key)
        self._memo[key] = values
        return values

    def _eval(self, node: ast.expr, frame: Frame) -> Iterable:
        if isinstance(node, ast.Name):
            return self._name(node.id, frame)
        if isinstance(node, ast.Attribute):
            return [
                found for value in self.eval(node.value, frame) for found in self.attribute(value, node.attr, frame)
            ]
        if isinstance(node, ast.Call):
            return self._result(node, frame)
        if isinstance(node, ast.Subscript):
            return self.eval(node.value, frame)
        parts: list[ast.expr] = []
        if isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        elif isinstance(node, (ast.BoolOp, ast.Dict)):
            parts = node.values
        elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            parts = node.elts
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            parts = [node.elt]
        elif isinstance(node, (ast.DictComp, ast.NamedExpr, ast.Starred, ast.Await)):
            parts = [node.value]
        return [value for part in parts for value in self.eval(part, frame)]

    def attribute(self, value: object, name: str, frame: Frame) -> Values:
        if isinstance(value, Package):
            inner = self.in_module(value.module, name)
            module = None if inner else self.tree.module(f"{value.module.name}.{name}")
            return (Package(module),) if module else inner
        if isinstance(value, (Instance, Super)):
            method = self.find_method(value.cls, name, value.after if isinstance(value, Super) else None)
            if isinstance(value, Instance) and not value.declared and self._assigns(value.cls, name):
                return self._attribute_of(value.cls, name, False)
            if method is None:
                return () if isinstance(value, Super) else self._attribute_of(value.cls, name, value.declared)
            if method.is_property:
                return self.returned(Frame(method.module, method, value.cls, (), value.declared))
            return (Method(method, value.cls, not method.is_static, value.declared),)
        if isinstance(value, Class):
            method = self.find_method(value, name)
            return (Method(method, value, method.is_class_method),) if method else self._attribute_of(value, name, True)
        if isinstance(value, External):
            if value.of_object or value.is_object and name in CONTAINER_METHODS:
                return ()
            return (External(f"{value.name}.{name}", of_object=value.is_object),)
        if isinstance(value, Compiled):
            return (Compiled(value.files, name),)
        if isinstance(value, Registered) and value.built:
            return (Registered(True, name),)
        return ()

    def _result(self, node: ast.Call, frame: Frame) -> Iterable:
        if isinstance(node.func, ast.Name) and not self._name(node.func.id, frame):
            return self._builtin(node, frame)
        files = [keyword.value for keyword in node.keywords if keyword.arg == "cuda_files"]
        if files:
            parts = files[0].elts if isinstance(files[0], (ast.List, ast.Tuple)) else files
            return [Compiled(tuple(written_text(self, part, frame.module, frame.function) for part in parts))]
        return [found for value in self.eval(node.func, frame) for found in self._called(value, node, frame)]

    def _called(self, value: object, node: ast.Call, frame: Frame) -> Iterable:
        if isinstance(value, Class):
            return [Instance(value)]
        if isinstance(value, (Function, Method)):
            return self.returned(self.function(value, self.arguments(value, node, frame)))
        if isinstance(value, Registered) and not value.method:
            return [Registered(True)]
        if isinstance(value, Instance):
            method = self.find_method(value.cls, "__call__") or self.find_method(value.cls, "forward")
            return self.returned(Frame(method.module, method, value.cls, (), value.declared)) if method else []
        if isinstance(value, External) and not value.is_object:
            if value.root in WRAPPERS and node.args:
                inner = self.eval(node.args[0], frame)
                callables = [item for item in inner if is_callable(item)]
                if callables:
                    return callables
            if names_class(value.name):
                return [External(value.name, is_object=True)]
        return []

    def _builtin(self, node: ast.Call, frame: Frame) -> Iterable:
        name = node.func.id
        if name == "super" and frame.function is not None and frame.cls is not None:
            return [Super(frame.cls, frame.function.method_of, frame.declared)]
        if name == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            found = [self.attribute(value, node.args[1].value, frame) for value in self.eval(node.args[0], frame)]
            return [item for values in found for item in values]
        if name in CONTAINER_CALLS:
            return [value for part in node.args for value in self.eval(part, frame)]
        return []

    def returned(self, frame: Frame) -> Values:
        """What a call can return; by the annotation if no `return` says it."""
        function = frame.function
        key = ("returned", frame)
        if key in self._memo:
            return self._memo[key]
        if key in self._active:
            return self._before.get(key, ())
        self._active.add(key)
        found = [value for node in returns(function.node) for value in self.eval(node.value, frame)]
        found = found or self.of_type(function.node.returns, Frame(function.module))
        self._active.discard(key)
        self._memo[key] = _unique(found)
        return self._memo[key]

    def arguments(self, value: Function | Method, node: ast.Call, frame: Frame) -> tuple:
        """Parameters of a call that are known to be functions or outside objects."""
        function = value.function if isinstance(value, Method) else value
        params = list(function.params)
        if isinstance(value, Method) and value.bound and params:
            params = params[1:]
        given = list(zip(params, node.args))
        given += [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
        found = []
        for name, argument in given:
            if isinstance(argument, (ast.Constant, ast.Starred)):
                continue
            values = tuple(item for item in self.eval(argument, frame) if is_callable(item))
            if values and len(values) <= MAX_BOUND:
                found.append((name, values))
        return tuple(found)


def _unique(values: Iterable) -> Values:
    return tuple(dict.fromkeys(values))
