# SPDX-License-Identifier: Apache-2.0
"""What an expression can stand for: every function, class, object or outside name that some branch gives it.

Branches are not decided, the elements of a container are not told apart, and what comes from outside of the tree stays a
name. A value that cannot be found is left out: the map shows less then, never something else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from .classes import Classes
from .strings import written_text
from .symbols import (
    FUNCTION_NODES,
    Binding,
    Bindings,
    Class,
    Compiled,
    Entry,
    External,
    Frame,
    Function,
    Instance,
    Method,
    Package,
    Registered,
    Super,
    Values,
    bindings_of,
    import_source,
    is_callable,
    names_class,
    returns,
    stored_on,
    unique,
)
from .tree import Module, Tree

MAX_DEPTH = 160  # nested evaluations
CONTAINER_CALLS = ("list", "tuple", "dict", "set", "sorted", "reversed", "enumerate", "zip", "next", "iter")
# Of a list of objects, not of the objects in it.
CONTAINER_METHODS = ("append", "clear", "extend", "get", "index", "insert", "items", "keys", "pop", "update", "values")
# Calls that return the function they are given, compiled or with some arguments filled in.
WRAPPERS = ("cutlass", "functools", "torch", "triton")
MAX_BOUND = 4  # a parameter that can be more than this is unknown


class Evaluator(Classes):
    def __init__(self, tree: Tree, registry: tuple[str, str] | None = None):
        super().__init__()
        self.tree = tree
        self.registry = registry  # module and name of the table of backends
        self._tops: dict[Module, Bindings] = {}
        self._nodes: dict[int, Function | Class] = {}
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
        return unique(found)

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

    # Expressions

    def eval(self, node: ast.expr, frame: Frame) -> Values:
        key = (id(node), frame)
        if key in self._memo:
            return self._memo[key]
        if key in self._active or len(self._active) > MAX_DEPTH:
            return self._before.get(key, ())
        self._active.add(key)
        values = unique(self._eval(node, frame))
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
            return _items(self.eval(node.value, frame), node.slice)
        if isinstance(node, ast.Dict):
            return [value for key, part in zip(node.keys, node.values) for value in self._entries(key, part, frame)]
        parts: list[ast.expr] = []
        if isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        elif isinstance(node, ast.BoolOp):
            parts = node.values
        elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            parts = node.elts
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            parts = [node.elt]
        elif isinstance(node, (ast.DictComp, ast.NamedExpr, ast.Starred, ast.Await)):
            parts = [node.value]
        return [value for part in parts for value in self.eval(part, frame)]

    def _entries(self, key: ast.expr | None, part: ast.expr, frame: Frame) -> Iterable:
        """The values that one line of a table gives, which is another table if there is no key (`**other`)."""
        values = self.eval(part, frame)
        return [Entry(key.value, value) for value in values] if isinstance(key, ast.Constant) else values

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
        if isinstance(value, Function):
            found = [self.eval(part, Frame(value.module, value)) for part in stored_on(value).get(name, ())]
            return unique(item for values in found for item in values)
        if isinstance(value, Class):
            if applied := self.forward_applied(value, name):
                return (Method(applied, value),)
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
                compiles = value.root == "cutlass"  # objects, too
                callables = [item for item in inner if is_callable(item) or compiles and isinstance(item, Instance)]
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
        self._memo[key] = unique(found)
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


def _items(values: Values, key: ast.expr) -> Iterable:
    """What a subscript takes out of a container: of a table that is written out, the values under that key."""
    for value in values:
        if not isinstance(value, Entry):
            yield value
        elif not isinstance(key, ast.Constant) or key.value == value.key:
            yield value.value
