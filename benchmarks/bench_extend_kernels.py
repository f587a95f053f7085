# SPDX-License-Identifier: Apache-2.0
"""HSA's extend kernels alone: milliseconds per layer of one prefill chunk, launches, what neighbouring queries share, and
the attention's share of the matrix products that a large one was measured to reach.

Checks selection and output of some rows against the torch references first. Ends in one JSON line.

    python benchmarks/bench_extend_kernels.py --prefixes 0 57344 --agreement 0 0.9
    python benchmarks/bench_extend_kernels.py --prefixes 65536 --sequences 32 --new 130
"""

from __future__ import annotations

import argparse
import json
import statistics

import cuda_only
import torch

from peaks import measure_peaks
from representations import empty_representations, kept_channels
from sglang.srt.layers.attention.hsa.config import SELECTION_STRATEGIES, HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.ops.common import num_processors
from sglang.srt.layers.attention.hsa.ops.extend.kernel import extend_hsa
from sglang.srt.layers.attention.hsa.ops.extend.plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.extend.reference import extend_hsa_fwd, extend_local_fwd
from sglang.srt.layers.attention.hsa.ops.merge.reference import merge_state
from sglang.srt.layers.attention.hsa.ops.page_repr.kernel import write_pages
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select.by_kind import extend_op, extend_workspace
from sglang.srt.layers.attention.hsa.ops.select.page_lists import PageLists
from sglang.srt.layers.attention.hsa.page_repr import KINDS
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache
from sglang.srt.layers.attention.hsa.selector import HSASelector

PAGE, WINDOW, SINKS, TOPK = 64, 512, 1, 32
LAYOUT = dict(page_size=PAGE, window_size=WINDOW, sink_pages=SINKS)
CHECKED_ROWS = 16
SHAPES = ((16, 2, 64), (32, 8, 128), (16, 16, 64))


def shape_of(text: str) -> tuple[int, int, int]:
    heads, kv_heads, dim = map(int, text.split(","))
    return heads, kv_heads, dim


def rows_of(lists: PageLists, row: int, kv_heads: int) -> torch.Tensor:
    """Physical pages of one packed query of the first sequence ``[H_kv, TOPK]`` int32, -1 padded."""
    runs = lists.lengths.shape[2]
    tile, inside = divmod(row, runs * lists.list_rows)
    run, bit = divmod(inside, lists.list_rows)
    out = torch.full((kv_heads, TOPK), -1, dtype=torch.int32, device="cuda")
    for g in range(kv_heads):
        n = int(lists.lengths[tile, g, run])
        chosen = lists.pages[tile, g, run, :n][((lists.rows[tile, g, run, :n] >> bit) & 1).bool()]
        out[g, : len(chosen)] = chosen
    return out


def check(q, cache, table, lists, out, prefix, new, params) -> tuple[float, float]:
    """(largest relative error of the output, share of equal selections) of some rows of the first sequence."""
    k, v, cu_seqlens_q = cache.keys, cache.values, torch.tensor([0, 1])
    table = table[:1]
    errors, equal = [], []
    valid = torch.ones_like(table, dtype=torch.bool)
    selector = HSASelector(params, cache.channels)
    for row in torch.linspace(0, new - 1, CHECKED_ROWS).long().tolist():
        length = torch.tensor([prefix + row + 1], device="cuda")
        one = q[row : row + 1]
        local = extend_local_fwd(one, k, v, table, cu_seqlens_q, length, params)
        expected, _ = selector.select(one, cache.reprs, valid, table, cu_seqlens_q, length, local[1])
        chosen = rows_of(lists, row, k.shape[1])
        width = expected.shape[-1]
        equal.append(float((chosen[:, :width] == expected[0]).all(-1).float().mean()))
        far = extend_hsa_fwd(one, k, v, chosen[None], cu_seqlens_q, length, params)
        reference, _ = merge_state(*local, *far)
        errors.append(float((out[row].float() - reference[0]).norm() / reference.norm()))
    return max(errors), statistics.mean(equal)


def bench(
    prefix: int,
    sequences: int,
    new: int,
    heads: int,
    kv_heads: int,
    dim: int,
    agreement: float,
    kind: str,
    strategy: str,
    repeats: int,
    peak: float,
) -> dict:
    torch.manual_seed(0)
    bf16 = dict(device="cuda", dtype=torch.bfloat16)
    shared, own = prefix // PAGE, -(-(prefix % PAGE + new) // PAGE)
    pages = shared + sequences * own
    k, v = (torch.randn((pages + 1) * PAGE, kv_heads, dim, **bf16) for _ in range(2))
    order = (torch.randperm(pages, device="cuda") + 1).int()
    # The sequences share the pages of their prefix.
    table = torch.cat([order[:shared].expand(sequences, -1), order[shared:].view(sequences, own)], dim=1)
    config = HSAConfig(topk=TOPK, chunk_repr=kind, selection_strategy=strategy, **LAYOUT)
    params = AttentionParams(config, dim**-0.5)
    rows = sequences * new
    version = torch.ones(pages + 1, dtype=torch.int64, device="cuda")
    cache = LayerCache(
        k, v, empty_representations(k, params), torch.zeros_like(version), version, kept_channels(params, dim)
    )
    # Queries that share a direction with their neighbours choose alike; agreement 0 is independent noise.
    alike = torch.randn(-(-rows // PAGE), heads, dim, device="cuda").repeat_interleave(PAGE, 0)[:rows]
    noise = torch.randn(rows, heads, dim, device="cuda")
    q = (agreement * alike + (1 - agreement**2) ** 0.5 * noise).mul(4).to(torch.bfloat16)
    counters = HSACounters("cuda")
    group, op = heads // kv_heads, extend_op(config)
    tiling = choose_tiling(group, dim, config)
    plan = plan_extend([prefix] * sequences, [new] * sequences, tiling=tiling, config=config, device="cuda")
    scratch = Scratch("cuda")
    lists = PageLists.empty(plan, kv_heads, TOPK, scratch)
    workspace = extend_workspace(config)(plan, kv_heads, TOPK, num_processors("cuda"), scratch)
    out = torch.empty_like(q)
    local_lse = q.new_empty(q.shape[:2], dtype=torch.float32) if strategy == "softmax_head" else None

    def write():
        write_pages(cache, table, plan.pages, counters.values, params)

    def select():
        extra = {}
        if local_lse is not None:  # the normaliser's share of sinks and window
            extra["local_lse"] = local_lse
            extend_hsa(q, cache, None, table, plan, out, params, local_lse)
        op(q, cache, table, plan, lists, workspace, counters.values, params, **extra)

    def attend():
        extend_hsa(q, cache, lists, table, plan, out, params)

    def layer():
        write()
        select()
        attend()

    layer()
    error, equal = check(q, cache, table, lists, out, prefix, new, params)
    if not (error < 2e-2 and equal > 0.9 and counters.snapshot()["pages_selected"]):
        raise SystemExit(f"bench_extend_kernels: wrong result at {prefix=} {sequences=} {new=}: {error=} {equal=}")
    snapshot = counters.snapshot()
    write_ms, _ = cuda_only.milliseconds(write, repeats)
    select_ms, select_spread = cuda_only.milliseconds(select, repeats)
    attend_ms, attend_spread = cuda_only.milliseconds(attend, repeats)
    chosen = snapshot["pages_selected"]
    listed = int(lists.lengths.sum())
    flops = 4 * group * dim * (chosen * PAGE + rows * kv_heads * (WINDOW + 2 * PAGE))
    return dict(
        prefix=prefix, sequences=sequences, new=new, heads=heads, kv_heads=kv_heads, dim=dim, agreement=agreement, kind=kind,
        strategy=strategy,
        error=round(error, 5), equal=round(equal, 3), rows_sparse=snapshot["rows_sparse"], pages_selected=chosen,
        listed_per_selected=round(listed / max(chosen, 1), 3), write_ms=round(write_ms, 4), select_ms=round(select_ms, 4),
        select_spread_ms=round(select_spread, 4), attend_ms=round(attend_ms, 4),
        attend_spread_ms=round(attend_spread, 4), attend_tflops=round(flops / attend_ms / 1e9, 1),
        attend_share=round(flops / attend_ms * 1e3 / peak, 3), launches=cuda_only.launches(layer),
    )  # fmt: skip


def main() -> None:
    import triton

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefixes", nargs="+", type=int, default=[0, 24576, 57344, 122880, 516096])
    parser.add_argument("--sequences", type=int, default=1, help="that share the prefix (default: %(default)s)")
    parser.add_argument("--new", type=int, default=8192, help="tokens of each sequence (default: %(default)s)")
    parser.add_argument("--agreement", nargs="+", type=float, default=[0.0, 0.9])
    parser.add_argument("--kinds", nargs="+", default=[HSAConfig.chunk_repr], choices=KINDS)
    parser.add_argument("--strategy", default=HSAConfig.selection_strategy, choices=SELECTION_STRATEGIES)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=SHAPES, help="query heads,KV heads,dimensions")
    args = cuda_only.parse_args(parser)
    peak = measure_peaks(torch.device("cuda"), torch.bfloat16)["flops"]
    rows = []
    for heads, kv_heads, dim in args.shapes:
        for prefix in args.prefixes:
            for agreement in args.agreement:
                for kind in args.kinds:
                    shape = prefix, args.sequences, args.new, heads, kv_heads, dim, agreement
                    rows.append(bench(*shape, kind, args.strategy, args.repeats, peak))
                    print(rows[-1], flush=True)
    provenance = dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__, triton=triton.__version__)
    print(json.dumps(dict(provenance, product_tflops=round(peak / 1e12), rows=rows)))


if __name__ == "__main__":
    main()
