# SPDX-License-Identifier: Apache-2.0
"""Where the engine calls backends: each call of the contract, and those of one decode step in their order."""

from __future__ import annotations

import ast

from .evaluate import Evaluator
from .model import Place
from .symbols import Class, Function
from .tree import Tree

RUNNERS = "/model_executor/"
# The runner that replays the graphs of decode, and what holds these graphs for it, as far as a release has them.
GRAPH_RUNNERS = ("CudaGraphRunner", "DecodeCudaGraphRunner", "FullCudaGraphBackend")
BEFORE_A_REPLAY = ("init_forward_metadata_replay_cuda_graph", "init_forward_metadata_out_graph")


def contract(evaluator: Evaluator, tree: Tree) -> list[Place]:
    """The methods of the base class of backends."""
    base = class_named(evaluator, tree, "AttentionBackend")
    methods = base.methods.values() if base else ()
    return [Place(part.qualname, part.module.path, part.line, part.summary, part.end) for part in methods]


def runner_calls(evaluator: Evaluator, tree: Tree) -> list[Place]:
    """Calls of what a backend has for metadata and CUDA graphs, other than by backends; the note is as below."""
    names = [place.name.split(".")[-1] for place in contract(evaluator, tree)]
    names = [name for name in names if "metadata" in name or "graph" in name]
    found = []
    for module in tree.containing(*(f".{name}(" for name in names)):
        for function in evaluator.functions(module):
            cls = function.method_of
            if cls is None or evaluator.find_method(cls, "init_forward_metadata") is None:
                for name in names:
                    found += _calls(function, name, "backend")
    return sorted(found, key=lambda place: (place.path, int(place.note.split()[0])))


def decode_step(evaluator: Evaluator, tree: Tree) -> list[Place]:
    """From the runners to a backend's forward_decode; the note is the line of the call that leads on, and its text."""
    found: list[Place] = []
    for module in tree.containing(".init_forward_metadata("):
        for function in evaluator.functions(module) if RUNNERS in module.path else ():
            plans, runs = _calls(function, "init_forward_metadata", "attn_backend"), _calls(function, "forward", "model")
            if "decode" in function.name and plans and runs:
                found += plans + runs
    for name in GRAPH_RUNNERS:
        cls = class_named(evaluator, tree, name)
        for function in cls.methods.values() if cls else ():
            for prepare in BEFORE_A_REPLAY:
                found += _calls(function, prepare, "attn_backend", besides="in_capture")
            found += _calls(function, "replay", "graph") or _calls(function, "replay", "backend")
    for name, method, called, of in (
        ("RadixAttention", "forward", "forward", "attn_backend"),
        ("AttentionBackend", "forward", "forward_decode", "self"),
        ("AttentionBackend", "forward", "forward_extend", "self"),
    ):
        cls = class_named(evaluator, tree, name)
        function = evaluator.find_method(cls, method) if cls else None
        found += _calls(function, called, of) if function else []
    return found


def class_named(evaluator: Evaluator, tree: Tree, name: str) -> Class | None:
    for module in tree.containing(f"class {name}(", f"class {name}:"):
        for cls in evaluator.classes(module):
            if cls.name == name:
                return cls
    return None


def _calls(function: Function, name: str, of: str, besides: str = "") -> list[Place]:
    """Calls of a method of that name on something that is called so, without those that have another argument."""
    return [
        Place(function.qualname, function.module.path, function.line, f"{node.lineno} {text}")
        for node in _call_nodes(function)
        if isinstance(node.func, ast.Attribute) and node.func.attr == name
        and of in (text := function.module.text_of(node.func)).removesuffix(name)
        and besides not in [keyword.arg for keyword in node.keywords]
    ]


def _call_nodes(function: Function) -> list[ast.Call]:
    calls = [node for node in ast.walk(function.node) if isinstance(node, ast.Call)]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))
