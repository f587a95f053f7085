# SPDX-License-Identifier: Apache-2.0
"""Metadata of NSA's draft steps before a replay: the release's precompute and N copies against the fused kernel.

    PYTHONPATH=sglang/python python benchmarks/bench_fused_metadata.py
    PYTHONPATH=sglang/python compute-sanitizer python benchmarks/bench_fused_metadata.py --steps --fuzz 50

Both contestants are ``NativeSparseAttnMultiStepBackend.init_forward_metadata_replay_cuda_graph`` of the patched tree, with
its switch off and on, over the same N sets of buffers. Checks first that they write the same, and the kernel against the torch
reference. Launches are nodes of a captured graph. Eager times are wall-clock, the host's work included; graph times are the
device's, per call of a graph of ten. Needs torch, tvm-ffi, nvcc and the tree; no model, and none of SGLang's other packages:
what the release's code imports beyond these is replaced below. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import statistics
import sys
import time
import types
from pathlib import Path

import cuda_only
import numpy as np
import torch

TREE = next((p for p in map(Path, sys.path) if (p / "sglang" / "jit_kernel").is_dir()), None)
if TREE is None:
    raise SystemExit("bench_fused_metadata: no patched tree; run scripts/apply_overlay.sh and set PYTHONPATH=sglang/python")
NSA = "sglang.srt.layers.attention.nsa"
PER_GRAPH, DRAFT_TOKENS, PAGE = 10, 4, 64


def stand_in(name: str, **names) -> types.ModuleType:
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(names)
    return module


def load(name: str) -> types.ModuleType:
    """A module of the tree by its path, without the packages around it."""
    spec = importlib.util.spec_from_file_location(name, TREE / f"{name.replace('.', '/')}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_of(path: str, name: str, namespace: dict, of_class: str | None = None):
    """One function of a file that cannot be imported here, compiled as it stands."""
    nodes = ast.parse((TREE / path).read_text()).body
    if of_class:
        nodes = next(n for n in nodes if isinstance(n, ast.ClassDef) and n.name == of_class).body
    node = next(n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == name)
    future = ast.ImportFrom(module="__future__", names=[ast.alias("annotations")], level=0)
    module = ast.fix_missing_locations(ast.Module(body=[future, node], type_ignores=[]))
    scope = dict(namespace)
    exec(compile(module, path, "exec"), scope)
    return scope[name]


if not (TREE / "sglang/srt/layers/attention/nsa/nsa_mtp_fused.py").exists():
    print(f"{Path(__file__).name}: error: this compares with the drafts of NSA, which the tree of v0.5.10rc0 has", file=sys.stderr)
    raise SystemExit(2)
stand_in("sglang").__path__ = [str(TREE / "sglang")]
stand_in("sglang.utils", is_in_ci=lambda: False)
stand_in(f"{NSA}.utils", compute_nsa_seqlens=function_of("sglang/srt/layers/attention/nsa/utils.py", "compute_nsa_seqlens", {}))
precompute = load(f"{NSA}.nsa_backend_mtp_precompute")
replay_draft_metadata = load(f"{NSA}.nsa_mtp_fused").replay_draft_metadata

from sglang.jit_kernel import fused_metadata_copy  # noqa: E402, the stand-ins come first
from sglang.jit_kernel import fused_metadata_precompute_and_broadcast as op  # noqa: E402
from sglang.test.fused_metadata_cases import POISON, capture, differences, draw  # noqa: E402


def refuse(message: str) -> None:
    """In place of the release's print: it reports that way that a kernel failed, and goes on without."""
    raise SystemExit(f"bench_fused_metadata: the baseline did not run as it should: {message}")


BACKEND = "sglang/srt/layers/attention/nsa_backend.py"
DECODE = types.SimpleNamespace(is_decode_or_idle=lambda: True)
GLOBALS = dict(
    torch=torch,
    envs=types.SimpleNamespace(SGLANG_NSA_ENABLE_MTP_PRECOMPUTE_METADATA=types.SimpleNamespace(get=lambda: True)),
    ForwardMode=types.SimpleNamespace(DECODE=DECODE),
    _USE_FUSED_METADATA_COPY=True,
    replay_draft_metadata=replay_draft_metadata,
    print=refuse,
)


class Backend(precompute.NativeSparseAttnBackendMTPPrecomputeMixin):
    real_page_size, nsa_index_topk, nsa_decode_impl, device = PAGE, 2048, "flashmla_sparse", "cuda"
    _transform_table_1_to_real = function_of(BACKEND, "_transform_table_1_to_real", GLOBALS, "NativeSparseAttnBackend")
    init_forward_metadata_replay_cuda_graph_from_precomputed = function_of(
        BACKEND, "init_forward_metadata_replay_cuda_graph_from_precomputed", GLOBALS, "NativeSparseAttnBackend"
    )

    def __init__(self, req_to_token, bs, context):
        self.req_to_token = req_to_token
        shapes = dict(
            cache_seqlens_int32=(bs,), cu_seqlens_k=(bs + 1,), page_table_1=(bs, context + DRAFT_TOKENS),
            nsa_cache_seqlens_int32=(bs,), nsa_cu_seqlens_k=(bs + 1,),
            real_page_table=(bs, -(-(context + DRAFT_TOKENS) // PAGE)),
        )  # fmt: skip
        made = {name: torch.zeros(shape, dtype=torch.int32, device="cuda") for name, shape in shapes.items()}
        metadata = types.SimpleNamespace(**made, nsa_seqlens_expanded=made["cache_seqlens_int32"], flashmla_metadata=None)
        self.decode_cuda_graph_metadata = {bs: metadata}

    def set_nsa_prefill_impl(self, forward_batch):
        """The same work for both contestants, of the host alone."""


class MultiStep:
    replay = function_of(BACKEND, "init_forward_metadata_replay_cuda_graph", GLOBALS, "NativeSparseAttnMultiStepBackend")

    def __init__(self, steps, bs, length, context):
        rng = np.random.default_rng(bs)
        lengths = rng.integers(length // 2, length + 1, bs)
        lengths[0] = length
        slots = rng.integers(0, 1 << 24, (bs + 1, context + DRAFT_TOKENS), dtype=np.int32)
        req_to_token = torch.from_numpy(slots).cuda()
        self.speculative_num_steps = steps + 1
        self.attn_backends = [Backend(req_to_token, bs, context) for _ in range(steps)]
        self.bs = bs
        self.batch = types.SimpleNamespace(
            seq_lens=torch.from_numpy(lengths).cuda(), seq_lens_cpu=torch.from_numpy(lengths), spec_info=None,
            req_pool_indices=torch.from_numpy(rng.permutation(bs + 1)[:bs]).cuda(),
        )  # fmt: skip

    def run(self, fused: bool) -> None:
        self.fuse_draft_metadata = fused
        self.replay(self.batch, self.bs)

    def written(self, fused: bool):
        """All destinations after a call, from poison; element 0 of the sums is 0 from the start, as after a capture."""
        metadata = [vars(b.decode_cuda_graph_metadata[self.bs]) for b in self.attn_backends]
        tensors = {f"{i}.{n}": t for i, m in enumerate(metadata) for n, t in m.items() if isinstance(t, torch.Tensor)}
        for name, tensor in tensors.items():
            tensor.fill_(POISON)
            if "cu_seqlens" in name:
                tensor[0] = 0
        self.run(fused)
        return {name: tensor.clone() for name, tensor in tensors.items()}


def check_kernel(cases: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(cases):
        case = draw(rng, budget=1 << 24)
        got, expected = case.buffers("cuda"), case.buffers("cuda")
        op.fused_metadata_precompute_and_broadcast_cuda(**case.arguments(got, "cuda"))
        op.fused_metadata_precompute_and_broadcast_reference(**case.arguments(expected, "cuda"))
        found = differences(got, expected)
        if found:
            raise SystemExit(f"bench_fused_metadata: the kernel differs from the reference: {case}: {found}")


def eager_us(function, repeats: int, calls: int = 10) -> float:
    times = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / calls * 1e6)
    return statistics.median(times[2:])


def bench(steps: int, bs: int, length: int, context: int, repeats: int) -> dict:
    world = MultiStep(steps, bs, length, context)
    today, fused = world.written(False), world.written(True)
    wrong = [name for name in today if not torch.equal(today[name], fused[name])]
    if wrong:
        raise SystemExit(f"bench_fused_metadata: {steps=} {bs=}: both paths differ in {wrong}")
    row = dict(steps=steps, batch=bs, max_len=length)
    for name, on in (("today", False), ("fused", True)):
        _, launches = capture(lambda: world.run(on))
        graph, nodes = capture(lambda: [world.run(on) for _ in range(PER_GRAPH)])
        assert nodes == PER_GRAPH * launches
        row[f"{name}_launches"] = launches
        row[f"{name}_eager_us"] = round(eager_us(lambda: world.run(on), repeats), 1)
        graph_ms, _ = cuda_only.milliseconds(graph.replay, repeats)
        row[f"{name}_graph_us"] = round(graph_ms * 1e3 / PER_GRAPH, 2)
    for kind in ("eager", "graph"):
        row[f"{kind}_speedup"] = round(row[f"today_{kind}_us"] / row[f"fused_{kind}_us"], 2)
    if row["fused_launches"] != 1:
        raise SystemExit(f"bench_fused_metadata: the fused path took {row['fused_launches']} launches")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", nargs="*", type=int, default=[1, 3, 5, 8])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64, 256, 512])
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096], help="longest sequence; others from half of it")
    parser.add_argument("--context", type=int, default=32768, help="columns of the page tables")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--fuzz", type=int, default=20, help="random calls to compare with the reference first")
    args = cuda_only.parse_args(parser)
    begin = time.perf_counter()
    for build in (
        op._jit_fused_metadata_module,
        lambda: fused_metadata_copy._jit_fused_metadata_copy_module(0, True, False),
        lambda: fused_metadata_copy._jit_fused_metadata_copy_multi_module(True, False),
    ):
        build()
    compile_s = round(time.perf_counter() - begin, 1)
    check_kernel(args.fuzz)
    rows = []
    for length in args.lengths:
        for steps in args.steps:
            for bs in args.batches:
                rows.append(bench(steps, bs, length, max(args.context, length), args.repeats))
                print(rows[-1], flush=True)
    worst = {
        f"{kind}_least_speedup_n{n}": min((r[f"{kind}_speedup"] for r in rows if r["steps"] == n), default=None)
        for kind in ("eager", "graph")
        for n in (1, 3)
    }
    print(json.dumps(dict(
        bench="fused_metadata", gpu=torch.cuda.get_device_name(), torch=torch.__version__, cuda=torch.version.cuda,
        page_size=PAGE, context=args.context, repeats=args.repeats, fuzz=args.fuzz, compile_s=compile_s,
        seconds=round(time.perf_counter() - begin, 1), **worst, rows=rows,
    )))  # fmt: skip


if __name__ == "__main__":
    main()
