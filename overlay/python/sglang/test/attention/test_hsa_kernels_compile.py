# SPDX-License-Identifier: Apache-2.0
"""The HSA Triton kernels compile for Hopper; needs no GPU. The interpreter accepts code that the compiler does not."""

import ast
import re
from pathlib import Path

import pytest
import torch

from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.ops.decode import kernel as decode
from sglang.srt.layers.attention.hsa.ops.extend import kernel as extend
from sglang.srt.layers.attention.hsa.ops.extend.plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.page_repr import kernel as page_repr
from sglang.srt.layers.attention.hsa.ops.page_table import kernel as page_table
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select import (
    decode_kernel,
    extend_kernel,
    slow_decode,
    slow_extend,
)
from sglang.srt.layers.attention.hsa.passes.decode_attention import DecodeSize
from sglang.srt.layers.attention.hsa.passes.split_decode import SplitDecode
from sglang.srt.layers.attention.hsa.passes.tile_attention import TileAttention
from sglang.test.attention.hsa_compile import (
    HKV,
    HQ,
    TABLE,
    B,
    cache,
    params,
    plan,
    record,
    select_slow_decode,
)

__all__ = ["record"]  # a fixture


def test_kernels_call_nothing_of_the_host():
    """Where ``triton.next_power_of_2`` is a plain function, a kernel that calls it does not compile."""
    ops, found = Path(decode.__file__).parents[1], []
    kernels = 0
    for path in sorted(ops.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            if "triton.jit" in " ".join(map(ast.unparse, node.decorator_list)):
                kernels += 1
                names = (n for part in node.body for n in ast.walk(part))
                found += [
                    f"{path.name}:{n.lineno}"
                    for n in names
                    if isinstance(n, ast.Name) and n.id in ("triton", "torch")
                ]
    assert kernels > 20 and not found


@pytest.mark.parametrize(
    "kind,strategy,max_pages",
    [
        ("mean", "group", 100),
        ("mean_std", "group", 5000),
        ("mean_std", "head", 100),
        ("landmark", "head", 5000),
        ("mean_std", "softmax_head", 1024),
    ],
)
def test_select_pages_decode(record, kind, strategy, max_pages):
    recorder = record(decode_kernel, "_select_pages_kernel")
    decode_kernel.select_pages_decode(
        torch.empty(B, HQ, 64, dtype=torch.bfloat16),
        cache(kind, 64, torch.bfloat16),
        torch.zeros(B, max_pages, dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.empty(B, HKV, 32, dtype=torch.int32),
        decode_kernel.SelectPagesWorkspace(
            B, HKV, max_pages, "cpu", group=HQ // HKV, max_programs=4 * B * HKV
        ),
        torch.zeros(6, dtype=torch.int64),
        params(kind, strategy),
        processors=4 * B * HKV,
    )
    assert "atom" in recorder.compiled[0]


@pytest.mark.parametrize(
    "strategy,dtype,heads,head_dim,max_pages",
    [
        ("head", torch.bfloat16, 16, 64, 5000),
        ("group", torch.float16, 6, 80, 100),
        ("head", torch.float32, 2, 256, 100),
    ],
)
def test_select_slow_pages_decode(record, strategy, dtype, heads, head_dim, max_pages):
    score = record(slow_decode, "_score_slow_decode_kernel")
    rank = record(slow_decode, "_rank_slow_decode_kernel")
    select_slow_decode(heads, head_dim, dtype, max_pages, strategy)
    assert dtype == torch.float32 or "mma" in score.compiled[0]
    # Counts are added without a fence, which would wait for memory in each program.
    assert "relaxed" in rank.compiled[0] and "acq_rel" not in rank.compiled[0]


@pytest.mark.parametrize(
    "dtype,head_dim,cap,masked",
    [
        (torch.float16, 64, 0.0, False),
        (torch.bfloat16, 128, 0.0, False),
        (torch.bfloat16, 128, 0.0, True),
        (torch.float32, 64, 0.0, False),
        (torch.float8_e4m3fn, 80, 30.0, False),
    ],
)
def test_decode(record, dtype, head_dim, cap, masked):
    recorder = record(decode, "_decode_hsa_kernel")
    wide = torch.bfloat16 if dtype.itemsize == 1 else dtype
    decode.decode_hsa(
        torch.empty(B, HQ, head_dim, dtype=wide),
        cache("mean", head_dim, wide, keys=dtype),
        torch.zeros(B, HKV, 32, dtype=torch.int32),
        torch.zeros(B, 100, dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.empty(B, HQ, head_dim, dtype=wide),
        decode.DecodeWorkspace(
            B, B * HKV * decode.MAX_SPLITS, HQ, HKV, head_dim, "cpu"
        ),
        params(cap=cap, masked=masked),
        num_splits=8,
    )
    assert dtype == torch.float32 or "mma" in recorder.compiled[0]


def test_batches_of_any_size_share_their_variants(record):
    """However many programs share a row: start-up compiles one by one what it captures in graphs."""
    attend = record(decode, "_decode_hsa_kernel")
    select = record(decode_kernel, "_select_pages_kernel")
    q = torch.empty(B, HQ, 64, dtype=torch.bfloat16)
    some = cache("mean_std", 64, torch.bfloat16)
    table = torch.zeros(B, 100, dtype=torch.int32)
    lengths = torch.ones(B, dtype=torch.int64)
    selected = torch.zeros(B, HKV, 32, dtype=torch.int32)
    for splits in (1, 2, 8, decode.MAX_SPLITS):
        scratch = decode.DecodeWorkspace(B, B * HKV * splits, HQ, HKV, 64, "cpu")
        decode.decode_hsa(
            q, some, selected, table, lengths, torch.empty_like(q), scratch, params("mean_std"), splits
        )  # fmt: skip
        programs = decode_kernel.SelectPagesWorkspace(
            B, HKV, 100, "cpu", group=HQ // HKV, max_programs=32 * B * HKV
        )
        decode_kernel.select_pages_decode(
            q, some, table, lengths, selected, programs, torch.zeros(6, dtype=torch.int64),
            params("mean_std", "softmax_head"), processors=splits * B * HKV,
        )  # fmt: skip
    assert len(set(attend.compiled)) == 2 and len(set(select.compiled)) == 1


@pytest.mark.parametrize("kind,strategy", [("slow_keys", "head"), ("landmark", "softmax_head")])  # fmt: skip
def test_deterministic_batches_share_one_variant(record, kind, strategy):
    """Of every kernel, whatever the rows of a step, the lengths of prompts, and whether a page can be selected.

    Other code for the same sum might round it in another way.
    """
    recorders = [
        record(module, name)
        for module, name in (
            (decode, "_decode_hsa_kernel"),
            (decode_kernel, "_select_pages_kernel"),
            (slow_decode, "_score_slow_decode_kernel"),
            (slow_decode, "_rank_slow_decode_kernel"),
        )
    ]
    some, options = cache(kind, 64, torch.bfloat16), params(kind, strategy)
    size = DecodeSize(200, 100, HQ, HKV, 64, batch_invariant=True)
    step = SplitDecode(options.config, HSACounters("cpu"), size, torch.device("cpu"))
    for rows in (1, 2, 7, 200):
        q = torch.empty(rows, HQ, 64, dtype=torch.bfloat16)
        table = torch.zeros(rows, 112, dtype=torch.int32)
        step.launch(q, some, table, torch.ones(rows, dtype=torch.int64), options)
    assert all(len(set(recorder.compiled)) <= 1 for recorder in recorders)
    assert recorders[0].compiled

    attend = record(extend, "_extend_hsa_kernel")
    for name in ("expand_slow_kernel", "score_slow_kernel", "rank_slow_kernel"):
        record(slow_extend, name)
    record(extend_kernel, "_select_pages_extend_kernel")
    tiling = choose_tiling(HQ // HKV, 64, options.config)
    for prefixes, news in (([0], [1]), ([0, 5000], [700, 1]), ([64], [300])):
        some_plan = plan_extend(
            prefixes, news, tiling=tiling._replace(batch_invariant=True), config=options.config, device="cpu"
        )  # fmt: skip
        tiles = TileAttention.of(
            some_plan, HKV, options.config, HSACounters("cpu"), Scratch("cpu")
        )
        q = torch.empty(some_plan.rows, HQ, 64, dtype=torch.bfloat16)
        tiles.launch(q, some, TABLE, options)
    # The log-sum-exp of window and sinks is a variant of its own.
    variants = 2 if strategy == "softmax_head" else 1
    assert len(set(attend.compiled)) == variants


@pytest.mark.parametrize(
    "kind,strategy,dtype,heads,head_dim",
    [
        ("mean_std", "group", torch.bfloat16, 16, 64),
        ("mean_std", "group", torch.bfloat16, 8, 256),
        ("mean", "group", torch.float16, 2, 128),
        ("mean_std", "head", torch.bfloat16, 6, 80),
        ("mean_std", "head", torch.bfloat16, 8, 256),
        ("mean_std", "softmax_head", torch.bfloat16, 32, 128),
        ("landmark", "group", torch.float8_e4m3fn, 8, 64),
    ],
)
def test_select_pages_extend(record, kind, strategy, dtype, heads, head_dim):
    recorder = record(extend_kernel, "_select_pages_extend_kernel")
    p = plan(heads // HKV, head_dim, strategy, kind)
    extend_kernel.select_pages_extend(
        torch.empty(p.rows, heads, head_dim, dtype=torch.bfloat16),
        cache(kind, head_dim, dtype),
        TABLE,
        p,
        extend_kernel.PageLists.empty(p, HKV, 32, Scratch("cpu")),
        extend_kernel.ExtendSelectWorkspace(p, HKV, 32, 4, Scratch("cpu")),
        torch.zeros(6, dtype=torch.int64),
        params(kind, strategy),
        local_lse=torch.empty(p.rows, heads) if strategy == "softmax_head" else None,
    )
    assert "mma" in recorder.compiled[0]


@pytest.mark.parametrize(
    "strategy,dtype,heads,head_dim",
    [
        ("head", torch.bfloat16, 16, 64),
        ("head", torch.float16, 6, 80),
        ("group", torch.bfloat16, 2, 256),
    ],
)
def test_select_slow_pages_extend(record, strategy, dtype, heads, head_dim):
    expand = record(slow_extend, "expand_slow_kernel")
    score = record(slow_extend, "score_slow_kernel")
    rank = record(slow_extend, "rank_slow_kernel")
    p = plan(heads // HKV, head_dim, strategy, "slow_keys")
    slow_extend.select_slow_pages_extend(
        torch.empty(p.rows, heads, head_dim, dtype=dtype),
        cache("slow_keys", head_dim, dtype),
        TABLE,
        p,
        extend_kernel.PageLists.empty(p, HKV, 32, Scratch("cpu")),
        slow_extend.SlowSelectWorkspace(p, HKV, 32, 4, Scratch("cpu")),
        torch.zeros(6, dtype=torch.int64),
        params("slow_keys", strategy),
    )
    assert "wgmma" in score.compiled[0] and "atom" in rank.compiled[0]
    assert (dtype == torch.bfloat16) == ("fma.rn.bf16x2" in expand.compiled[0])


@pytest.mark.parametrize("by_score", [False, True])
@pytest.mark.parametrize(
    "dtype,head_dim,heads,cap,masked",
    [
        (torch.bfloat16, 64, 16, 0.0, False),
        (torch.bfloat16, 64, 16, 0.0, True),
        (torch.float16, 80, 2, 30.0, False),
        (torch.float8_e4m3fn, 128, 8, 0.0, False),
        (torch.bfloat16, 256, 8, 0.0, False),
    ],
)
def test_extend(record, dtype, head_dim, heads, cap, masked, by_score):
    recorder = record(extend, "_extend_hsa_kernel")
    p = plan(heads // HKV, head_dim)
    wide = torch.float16 if dtype == torch.float16 else torch.bfloat16
    q = torch.empty(p.rows, heads, head_dim, dtype=wide)
    weights = "score" if by_score else "mass"
    extend.extend_hsa(
        q,
        cache("mean_std", head_dim, wide, keys=dtype),
        extend_kernel.PageLists.empty(p, HKV, 32, Scratch("cpu")),
        TABLE,
        p,
        torch.empty_like(q),
        params("mean_std", cap=cap, masked=masked, weights=weights),
    )
    assert "mma" in recorder.compiled[0]


@pytest.mark.parametrize("kind", ["mean", "mean_std", "slow_keys"])
def test_write_pages(record, kind):
    recorder = record(page_repr, "_write_pages_kernel")
    layer = cache(kind, 80, torch.bfloat16)
    page_repr.write_pages(
        layer,
        TABLE,
        plan(4, 64).pages,
        torch.zeros(6, dtype=torch.int64),
        params(kind),
    )
    assert "atom" in recorder.compiled[0]


@pytest.mark.parametrize("head_dim", [64, 128])
def test_codes_of_slow_keys_are_written_by_lanes_of_channels(record, head_dim):
    """With a scale that is no power of two keys are rounded before they are compared; bounds go through few lanes."""
    recorder = record(page_repr, "_write_pages_kernel")
    layer = cache("slow_keys", head_dim, torch.bfloat16, keys=torch.float8_e4m3fn)
    counters = torch.zeros(6, dtype=torch.int64)
    page_repr.write_pages(
        layer, TABLE, plan(4, 64).pages, counters, params("slow_keys")
    )
    ptx = recorder.compiled[0]
    assert "fma.rn.f32" not in ptx
    divisions = re.findall(r"div\.rn(?:\.ftz)?\.f32", ptx)
    assert 0 < len(divisions) <= 8 and ptx.count("shfl.sync") <= 16


@pytest.mark.parametrize(
    "kind,dtype,new_lens",
    [
        ("mean", torch.bfloat16, 1),
        ("mean_std", torch.float8_e4m3fn, 0),
        ("mean_std", torch.float8_e5m2, torch.ones(B, dtype=torch.int32)),
        ("slow_keys", torch.bfloat16, 1),
    ],
)
def test_write_committed_pages(record, kind, dtype, new_lens):
    recorder = record(page_repr, "_write_committed_pages_kernel")
    layer = cache(kind, 80, torch.bfloat16, keys=dtype)
    addresses = torch.zeros(4, dtype=torch.uint64)
    page_repr.write_committed_pages(
        page_repr.AllLayers(
            addresses, addresses, addresses, torch.ones(4), layer.channels, layer
        ),
        layer.versions,
        torch.zeros(4, 640, dtype=torch.int32),
        torch.zeros(B, dtype=torch.int64),
        torch.ones(B, dtype=torch.int64),
        new_lens,
        torch.zeros(B, dtype=torch.int64),
        torch.zeros(6, dtype=torch.int64),
        params(kind),
        recent=4,
    )
    assert recorder.compiled


def test_page_table(record):
    recorder = record(page_table, "_page_table_kernel")
    page_table.build_page_table(
        torch.zeros(4, 640, dtype=torch.int32),
        torch.zeros(B, dtype=torch.int64),
        torch.ones(B, dtype=torch.int64),
        torch.zeros(B, 10, dtype=torch.int32),
        64,
    )
    assert recorder.compiled


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
