# SPDX-License-Identifier: Apache-2.0
"""From a method to the kernels it launches: the calls on the way, and nothing else."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field

from .evaluate import Evaluator
from .symbols import FUNCTION_NODES, Class, Compiled, External, Frame, Function, Instance, Method, Registered
from .tree import Module

MAX_DEPTH = 16
# Packages whose functions are no kernels: the interpreter's, and those that build, convert, log or measure.
HOST_PACKAGES = frozenset(sys.stdlib_module_names) | frozenset(
    "einops huggingface_hub kernels msgspec numpy orjson packaging PIL prometheus_client psutil pydantic requests tqdm "
    "transformers typing_extensions zbal zmq".split()
)
# Languages that kernels are written in: what they decorate is a kernel, what it calls of them is not.
LANGUAGES = frozenset("cutlass quack tilelang triton tvm_ffi".split())
# Of torch the fused operators and the products and rankings that a plain implementation of attention is made of.
TORCH_SPACES = ("torch.nn.functional.scaled_dot_product_attention", "torch.nn.attention.", "torch.ops.")
TORCH_OPERATORS = frozenset(f"torch.{name}" for name in "baddbmm bmm einsum logsumexp matmul softmax topk".split())
JIT_NAMES = ("jit", "autotune", "heuristics", "kernel", "prim_func")


@dataclass(frozen=True)
class Kernel:
    """What is launched in the end.

    Attributes:
        name: function, with its package if it is not in the tree.
        kind: what compiles or provides it, for people.
        path, line: its definition, or the call if it is defined elsewhere.
        external: whether path and line are those of the call.
        end: last line of the definition.
        call: source of the call if it is external.
    """

    name: str
    kind: str
    path: str
    line: int
    external: bool
    end: int = 0
    call: str = ""


@dataclass
class Step:
    """A function on the way to a kernel, and what it calls, in the order of the source."""

    name: str
    path: str
    line: int
    condition: str = ""  # under which its caller calls it
    kernel: Kernel | None = None
    calls: list[Step] = field(default_factory=list)

    def kernels(self) -> list[Kernel]:
        found = [self.kernel] if self.kernel else []
        return list(dict.fromkeys(found + [kernel for step in self.calls for kernel in step.kernels()]))


class CallGraph:
    def __init__(self, evaluator: Evaluator):
        self.evaluator = evaluator
        self._steps: dict[Frame, list[Step]] = {}
        self._active: set[tuple] = set()
        self._cuts = 0

    def path(self, function: Function, cls: Class) -> Step:
        """The way from a method to its kernels; ``calls`` is empty if it launches none."""
        frame = Frame(function.module, function, cls)
        return Step(function.qualname, function.module.path, function.line, "", None, self._calls(frame, 0))

    def _calls(self, frame: Frame, depth: int) -> list[Step]:
        known = self._steps.get(frame)
        if known is not None:
            return known
        if depth > MAX_DEPTH or (frame.function, frame.cls) in self._active:
            self._cuts += 1
            return []
        self._active.add((frame.function, frame.cls))
        before = self._cuts
        found: dict[tuple, Step] = {}
        for call, condition in self._call_sites(frame.function):
            for value in self.evaluator.eval(call.func, frame):
                step = self._step(value, call, frame, depth)
                if step is None:
                    continue
                step.condition = condition
                known = found.setdefault((step.name, step.path, step.kernel), step)
                if known is not step:
                    known.condition = known.condition if known.condition == condition else ""
                    have = {(inner.name, inner.path, inner.kernel) for inner in known.calls}
                    known.calls += [inner for inner in step.calls if (inner.name, inner.path, inner.kernel) not in have]
        self._active.discard((frame.function, frame.cls))
        steps = list(found.values())
        if before == self._cuts or not self._active:  # what a cycle cut short is not the whole answer
            self._steps[frame] = steps
        return steps

    def _step(self, value: object, call: ast.Call, frame: Frame, depth: int) -> Step | None:
        """The call of one value as a step, or None if it leads to no kernel."""
        path, line = frame.module.path, call.lineno
        if any(keyword.arg == "cuda_files" for keyword in call.keywords):
            return None  # compiles a kernel; the launch is a call of what it returns
        if isinstance(value, Instance):
            method = self.evaluator.find_method(value.cls, "__call__") or self.evaluator.find_method(
                value.cls, "forward"
            )
            value = Method(method, value.cls, True, value.declared) if method else None
        elif isinstance(value, Class):
            method = self.evaluator.find_method(value, "__init__")
            value = Method(method, value) if method else None
        if isinstance(value, (Function, Method)):
            function = value.function if isinstance(value, Method) else value
            if _is_inside(function, frame.function):
                return None  # its body is read with that of the function around it
            kind = self._jit(function.node, function.module)
            if kind:
                name = function.qualname if function.name == "__call__" else function.name
                kernel = Kernel(name, kind, function.module.path, function.line, False, function.end)
                return Step(name, kernel.path, kernel.line, kernel=kernel)
            bound = self.evaluator.arguments(value, call, frame)
            steps = self._calls(self.evaluator.function(value, bound), depth + 1)
            if steps:
                name = function.name if isinstance(value, Function) else f"{_owner(function)}.{function.name}"
                return Step(name, function.module.path, function.line, calls=steps)
            return None
        if isinstance(value, Compiled) and value.function:
            kernel = Kernel(
                f"{value.function} ({', '.join(value.files)})", "CUDA, compiled at run time", path, line, True
            )
        elif isinstance(value, Registered) and value.method:
            kernel = Kernel(f"another backend's {value.method}", "registry", path, line, True)
        elif isinstance(value, External) and _is_kernel(value) and value.root in self.evaluator.tree.device_packages:
            kernel = Kernel(value.name, _kind(value.name), path, line, True, call=frame.module.call_text(call))
        else:
            return None
        return Step(kernel.name, path, line, kernel=kernel)

    def _jit(self, node: ast.FunctionDef, module: Module) -> str:
        """The compiler of a decorated kernel, or nothing."""
        for decorator in node.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            for value in self.evaluator.eval(target, Frame(module)):
                if isinstance(value, External) and value.name.rsplit(".", 1)[-1] in JIT_NAMES:
                    if value.root not in ("torch", "numba", "jax"):
                        return {"triton": "Triton", "tilelang": "TileLang", "cutlass": "CuTe"}.get(
                            value.root, value.root
                        )
        return ""

    def _call_sites(self, function: Function) -> list[tuple[ast.Call, str]]:
        """Calls in the order of the source, each with the innermost condition that it stands under.

        Those of functions inside of it are its own, unless these are kernels.
        """
        module, found = function.module, []

        def visit(node: ast.AST, condition: str) -> None:
            if isinstance(node, ast.If):
                visit(node.test, condition)
                test = module.text_of(node.test)
                for part in node.body:
                    visit(part, f"if {test}")
                for part in node.orelse:
                    visit(part, f"unless {test}")
                return
            if isinstance(node, FUNCTION_NODES) and self._jit(node, module):
                return
            if isinstance(node, ast.Call):
                found.append((node, condition))
            for child in ast.iter_child_nodes(node):
                visit(child, condition)

        for statement in function.node.body:
            visit(statement, "")
        return sorted(found, key=lambda item: (item[0].lineno, item[0].col_offset))


def _is_inside(function: Function, around: Function) -> bool:
    owner = function.owner
    while isinstance(owner, Function):
        if owner is around:
            return True
        owner = owner.owner
    return False


def _owner(function: Function) -> str:
    return function.owner.name if function.owner is not None else ""


def _is_kernel(value: External) -> bool:
    if "." not in value.name or value.root in HOST_PACKAGES | LANGUAGES:
        return False
    if value.root == "torch":
        return value.name in TORCH_OPERATORS or value.name.startswith(TORCH_SPACES)
    return not value.name.rsplit(".", 1)[-1][:1].isupper()


def _kind(name: str) -> str:
    package = name.split(".")[0]
    family = {"trtllm": "TensorRT-LLM", "flash_mla": "FlashMLA", "cutlass": "CUTLASS"}
    found = next((text for word, text in family.items() if word in name), "")
    return f"{found} through {package}" if found else package
