# SPDX-License-Identifier: Apache-2.0
"""HSA's decode kernels alone, in a CUDA graph: microseconds per layer, launches, and share of the measured copy bandwidth.

Warm, each launch finds the caches as the one before left them; cold, a model's other kernels and a large copy ran in between,
as they do in a decode step. First checks each shape against the torch references. Ends in one JSON line.

    python benchmarks/bench_decode_kernels.py --lengths 8192 65536 --batches 1 16
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics

import cuda_only
import torch

from representations import represent
from sglang.srt.layers.attention.hsa.config import SELECTION_STRATEGIES, HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.ops.common import num_processors, programs_per_row
from sglang.srt.layers.attention.hsa.ops.decode.kernel import MAX_SPLITS, DecodeWorkspace, decode_hsa
from sglang.srt.layers.attention.hsa.ops.decode.reference import decode_hsa_fwd, decode_local_fwd
from sglang.srt.layers.attention.hsa.ops.merge.reference import merge_state
from sglang.srt.layers.attention.hsa.ops.select.by_kind import decode_op
from sglang.srt.layers.attention.hsa.ops.select.decode_kernel import MAX_PROGRAMS_PER_ROW, SelectPagesWorkspace
from sglang.srt.layers.attention.hsa.page_repr import KINDS
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache
from sglang.srt.layers.attention.hsa.selector import HSASelector

PAGE, WINDOW, SINKS = 64, 512, 1
COLD_NAMES = {
    "_select_pages_kernel": "select_cold_us",
    "_score_slow_decode_kernel": "select_cold_us",
    "_rank_slow_decode_kernel": "rank_cold_us",
    "_decode_hsa_kernel": "attend_cold_us",
}


def captured(run, times: int) -> torch.cuda.CUDAGraph:
    """A graph of so many runs; what they need is compiled before."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            run()
    return graph


def microseconds(launch, repeats: int = 20, inner: int = 20) -> tuple[float, float]:
    """Median and spread of one launch sequence, replayed ``inner`` times from a graph."""
    ms, spread = cuda_only.milliseconds(captured(launch, inner).replay, repeats)
    return ms * 1e3 / inner, spread * 1e3 / inner


def cold_microseconds(launch, others, repeats: int = 40) -> dict[str, float]:
    """Median time of each HSA kernel in a launch sequence that ``others()`` runs before, by COLD_NAMES."""

    def run():
        others()
        launch()

    graph = captured(run, repeats)
    graph.replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        graph.replay()
        torch.cuda.synchronize()
    times = {name: [event.device_time for event in profile.events() if event.name == name] for name in COLD_NAMES}
    return {column: round(statistics.median(times[name]), 2) for name, column in COLD_NAMES.items() if times[name]}


def other_kernels():
    """A call that runs a dozen kernels of other kinds and writes more than the L2 cache holds."""
    large = torch.zeros(1 << 26, device="cuda")
    rows = torch.randn(8, 4096, device="cuda")
    hidden = torch.randn(1, 1024, device="cuda", dtype=torch.bfloat16)
    weights = [torch.randn(1024, n, device="cuda", dtype=torch.bfloat16) for n in (1024, 1280, 4096, 8192)]

    def run():
        for weight in weights:
            hidden @ weight
        torch.softmax(rows, -1)
        torch.nn.functional.layer_norm(rows, rows.shape[-1:])
        torch.nn.functional.silu(rows)
        torch.cumsum(rows, -1)
        torch.topk(rows, 16)
        torch.argmax(rows, -1)
        torch.sort(rows, -1)
        large.add_(1)

    return run


def copy_bandwidth() -> float:
    """Bytes per second of a large device copy, read plus written."""
    x = torch.randn(1 << 28, device="cuda")
    y = torch.empty_like(x)
    us, _ = microseconds(lambda: y.copy_(x), inner=4)
    return 2 * x.numel() * 4 / us * 1e6


def bench(
    length: int, batch: int, heads: int, kv_heads: int, dim: int, kind: str, strategy: str, topk: int,
    bandwidth: float, others,
) -> dict:
    torch.manual_seed(0)
    pages = length // PAGE
    num_pages = batch * pages + 1
    k, v = (torch.randn(num_pages * PAGE, kv_heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    table = (torch.randperm(num_pages - 1, device="cuda") + 1).view(batch, pages).int()
    config = HSAConfig(
        topk=topk, page_size=PAGE, window_size=WINDOW, sink_pages=SINKS, chunk_repr=kind, selection_strategy=strategy
    )
    params = AttentionParams(config, dim**-0.5)
    reprs, channels = represent(k, params)
    version = torch.ones(num_pages, dtype=torch.int64, device="cuda")
    lens = torch.full((batch,), length, dtype=torch.int64, device="cuda")
    q = torch.randn(batch, heads, dim, device="cuda", dtype=torch.bfloat16)
    selected = torch.empty(batch, kv_heads, topk, dtype=torch.int32, device="cuda")
    out = torch.empty_like(q)
    counters = HSACounters("cuda")
    programs = batch * kv_heads * MAX_PROGRAMS_PER_ROW
    select_workspace = SelectPagesWorkspace(batch, kv_heads, pages, "cuda", heads // kv_heads, programs)
    decode_workspace = DecodeWorkspace(batch, batch * kv_heads * MAX_SPLITS, heads, kv_heads, dim, "cuda")
    cache = LayerCache(k, v, reprs, version, version, channels)
    processors, op = num_processors("cuda"), decode_op(config)
    splits = programs_per_row(processors, batch * kv_heads, MAX_SPLITS)

    def select():
        op(q, cache, table, lens, selected, select_workspace, counters.values, params, processors)

    def attend():
        decode_hsa(q, cache, selected, table, lens, out, decode_workspace, params, splits)

    def both():
        select()
        attend()

    both()
    local = decode_local_fwd(q, k, v, table, lens, params)
    expected, _ = merge_state(*local, *decode_hsa_fwd(q, k, v, selected, table, lens, params))
    error = float((out.float() - expected).norm() / expected.norm())
    one = slice(0, 1)  # the references take long for more
    valid = torch.ones_like(table[one], dtype=torch.bool)
    wanted, _ = HSASelector(params, channels).select(
        q[one], reprs, valid, table[one], torch.tensor([0, 1]), lens[one], local[1][one]
    )
    equal = float((selected[one] == wanted).float().mean())
    if not (error < 1e-2 and equal > 0.9):
        raise SystemExit(f"bench_decode_kernels: wrong result at {length=} {batch=}: relative error {error}, {equal=}")

    attended = SINKS + topk + WINDOW // PAGE + 1
    attend_bytes = batch * kv_heads * attended * PAGE * dim * 2 * 2
    select_bytes = batch * pages * reprs[0].numel() * reprs.element_size()
    select_us, _ = microseconds(select)
    attend_us, _ = microseconds(attend)
    both_us, spread = microseconds(both)
    cold = cold_microseconds(both, others)
    return dict(
        length=length, batch=batch, heads=heads, kv_heads=kv_heads, dim=dim, kind=kind, strategy=strategy, topk=topk,
        error=round(error, 5), equal=round(equal, 3),
        select_us=round(select_us, 2), attend_us=round(attend_us, 2), both_us=round(both_us, 2),
        spread_us=round(spread, 2), **cold, launches=cuda_only.launches(both),
        select_share=round(select_bytes / select_us * 1e6 / bandwidth, 3),
        attend_share=round(attend_bytes / attend_us * 1e6 / bandwidth, 3),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[8192, 32768, 65536, 131072, 524288])
    parser.add_argument("--kinds", nargs="+", default=[HSAConfig.chunk_repr], choices=KINDS)
    parser.add_argument("--strategy", default=HSAConfig.selection_strategy, choices=SELECTION_STRATEGIES)
    parser.add_argument("--topk", nargs="+", type=int, default=[HSAConfig.topk])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    args = cuda_only.parse_args(parser)
    bandwidth, others = copy_bandwidth(), other_kernels()
    rows = []
    for heads, kv_heads, dim in ((16, 2, 64), (32, 8, 128)):
        for batch in args.batches:
            for length in args.lengths:
                if batch * length * kv_heads * dim > 1 << 32:
                    continue
                for kind, topk in itertools.product(args.kinds, args.topk):
                    rows.append(bench(length, batch, heads, kv_heads, dim, kind, args.strategy, topk, bandwidth, others))
                    print(rows[-1], flush=True)
    print(json.dumps(dict(gpu=torch.cuda.get_device_name(), copy_tb_s=round(bandwidth / 1e12, 2), rows=rows)))


if __name__ == "__main__":
    main()
