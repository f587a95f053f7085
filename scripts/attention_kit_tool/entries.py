# SPDX-License-Identifier: Apache-2.0
"""What the kit can run, read from its source, and for each of it whether HSA is judged by it, or why not."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

KIT = "sglang.test.kits.attention_unittest"

# Functions of the kit that run a case, as module.function, and what drives them here.
DRIVEN = (
    "dense_attention.run_dense_attention_case",
    "cuda_graph_decode_runner.run_dense_cuda_graph_decode_case",
    "speculative_target_verify_runner.run_dense_spec_verify_case",
    "speculative_target_verify_runner.run_dense_spec_verify_cuda_graph_case",
    "speculative_draft_extend_runner.run_dense_draft_extend_v2_cuda_graph_case",
    "speculative_draft_extend_runner.run_dense_eagle_draft_extend_v2_cuda_graph_runner_case",
    "speculative_draft_runner.run_dense_eagle_draft_cuda_graph_runner_case",
)
ATTENTION, GRAPH_DECODE, VERIFY, VERIFY_GRAPH, DRAFT_EXTEND, DRAFT_EXTEND_RUNNER, DRAFT_RUNNER = DRIVEN
SPLIT_OP = "split_op_runner.run_dense_split_op_extend_case"
FROZEN_KV_DRAFT = "speculative_draft_runner.run_dense_frozen_kv_mtp_cuda_graph_runner_case"
# They write cached tokens a second time, request by request in the order of their slots, so the slots must have that order.
REWRITES_PREFIX = (VERIFY_GRAPH, DRAFT_RUNNER)

# Other attention than that of heads with keys of their own, by the prefix of the kit's functions.
METHODS = {
    "mla": "MLA caches one latent vector for all heads; HSA represents the keys of each KV head",
    "dsa": "it is MLA with a selection of its own",
    "dsv4": "it is MLA over compressed keys with a selection of its own",
    "dual_chunk": "it turns queries and keys by other positions inside and outside a chunk; HSA reads keys as cached",
    "gdn": "linear attention has a state and no keys to select",
    "kda": "linear attention has a state and no keys to select",
    "lightning": "linear attention has a state and no keys to select",
    "mamba2": "a state-space layer has no keys to select",
}
# What the functions of each method call.
INNER = {
    "speculative_cuda_graph_runner.run_speculative_cuda_graph_case": (VERIFY_GRAPH, DRAFT_EXTEND),
    "speculative_target_verify_runner.run_dense_eagle_verify_case": (VERIFY,),
    "speculative_draft_extend_runner.run_eagle_draft_extend_cuda_graph_runner_case": (DRAFT_EXTEND_RUNNER,),
    "speculative_draft_runner.run_eagle_draft_cuda_graph_runner_case": (DRAFT_RUNNER,),
    "speculative_draft_runner.run_frozen_kv_mtp_cuda_graph_runner_case": (FROZEN_KV_DRAFT,),
}


def kit_folder() -> Path | None:
    """The kit of the SGLang that would be imported, if it has one; SGLang is not imported."""
    found = find_spec("sglang")
    if found is None:
        return None
    folder = Path(found.submodule_search_locations[0], *KIT.split(".")[1:])
    return folder if folder.is_dir() else None


def entries(folder: Path) -> list[str]:
    """Functions of the kit that run a case, as module.function, read from the source, so that none is missing."""
    found = []
    for file in sorted(folder.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and re.fullmatch(r"run_\w+_case", node.name):
                found.append(f"{file.stem}.{node.name}")
    return found


def method_of(entry: str) -> str | None:
    """The method of METHODS that a function of the kit runs."""
    name = entry.partition(".run_")[2]
    return next((method for method in METHODS if name.startswith(method + "_")), None)


def is_accounted_for(entry: str, in_cases: set[str]) -> bool:
    """Whether a function of the kit is one that a case names, is behind one, or runs another method.

    Args:
        in_cases: functions that a case names, be it run or not applicable.
    """
    return entry in in_cases or method_of(entry) is not None or in_cases.issuperset(INNER.get(entry, {entry}))
