# SPDX-License-Identifier: Apache-2.0
"""The HSA Triton kernels compile for Hopper; needs no GPU. The interpreter accepts code that the compiler does not."""

import ast
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sglang.srt.layers.attention.hsa.chunk_repr import KINDS, num_channels
from sglang.srt.layers.attention.hsa.extend_plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.chunk_repr import kernel as chunk_repr
from sglang.srt.layers.attention.hsa.ops.decode import kernel as decode
from sglang.srt.layers.attention.hsa.ops.extend import kernel as extend
from sglang.srt.layers.attention.hsa.ops.page_table import kernel as page_table
from sglang.srt.layers.attention.hsa.ops.select_pages import (
    decode_kernel,
    extend_kernel,
    slow_decode,
    slow_extend,
)

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 * 1024  # of a program on Hopper
TYPES = {
    torch.uint8: "*u8",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint32: "*u32",
    torch.uint64: "*u64",
}


class Recorder:
    """Stands for a kernel: compiles for Hopper what a launch would compile for the present device."""

    def __init__(self, kernel):
        self.kernel, self.compiled = kernel, []

    def __getitem__(self, grid):
        return self._launch

    def _launch(self, *args, **constants):
        options = {
            k: constants.pop(k)
            for k in ("num_warps", "num_stages", "maxnreg")
            if k in constants
        }
        signature, constexprs, attrs = {}, {}, {}
        for param, value in zip(self.kernel.params, args):
            signature[param.name] = self._type(value)
            if value is None:
                constexprs[(param.num,)] = None
            elif isinstance(value, torch.Tensor) or (
                isinstance(value, int)
                and value % 16 == 0
                and not param.do_not_specialize
            ):
                attrs[(param.num,)] = [["tt.divisibility", 16]]
        for param in self.kernel.params[len(args) :]:
            signature[param.name] = "constexpr"
            constexprs[(param.num,)] = constants[param.name]
        source = ASTSource(self.kernel, signature, constexprs, attrs)
        compiled = triton.compile(source, target=HOPPER, options=options)
        assert compiled.metadata.shared <= SHARED_BYTES
        self.compiled.append(compiled.asm["ptx"])

    @staticmethod
    def _type(value):
        if isinstance(value, torch.Tensor):
            return TYPES[value.dtype]
        return {int: "i32", float: "fp32", type(None): "constexpr"}[type(value)]


@pytest.fixture
def record(monkeypatch):
    def install(module, name):
        recorder = Recorder(getattr(module, name))
        monkeypatch.setattr(module, name, recorder)
        return recorder

    return install


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


B, HQ, HKV = 3, 8, 2


def reprs(kind, head_dim, dtype):
    """(representations of nine pages of 64, kept channels of four layers)."""
    entry = KINDS[kind]
    shape = 9, HKV, entry.repr_dim(head_dim, 64)
    kept = torch.zeros(4, num_channels(head_dim), dtype=torch.int32)
    buffer = torch.empty(shape, dtype=entry.storage_dtype(dtype))
    return buffer, kept if entry.slow else None


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
    buffer, _ = reprs(kind, 64, torch.bfloat16)
    versions = torch.zeros(9, dtype=torch.int64)
    decode_kernel.select_pages_decode(
        torch.empty(B, HQ, 64, dtype=torch.bfloat16),
        buffer,
        None if kind == "landmark" else versions,
        versions,
        torch.zeros(B, max_pages, dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.empty(B, HKV, 32, dtype=torch.int32),
        decode_kernel.SelectPagesWorkspace(
            B, HKV, max_pages, "cpu", group=HQ // HKV, max_programs=4 * B * HKV
        ),
        torch.zeros(6, dtype=torch.int64),
        page_size=64,
        window_size=512,
        sink_pages=1,
        kind=kind,
        strategy=strategy,
        sm_scale=0.1,
        programs_per_row=4,
        keys=torch.empty(640, HKV, 64, dtype=torch.bfloat16),
        key_scale=0.1,
        logit_cap=0.0,
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
    buffer, channels = reprs("slow_keys", head_dim, dtype)
    versions = torch.zeros(9, dtype=torch.int64)
    slow_decode.select_slow_pages_decode(
        torch.empty(B, heads, head_dim, dtype=dtype),
        buffer,
        versions,
        versions,
        torch.zeros(B, max_pages, dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.empty(B, HKV, 32, dtype=torch.int32),
        decode_kernel.SelectPagesWorkspace(B, HKV, max_pages, "cpu"),
        torch.zeros(6, dtype=torch.int64),
        page_size=64,
        window_size=512,
        sink_pages=1,
        strategy=strategy,
        sm_scale=0.1,
        channels=channels[0],
        processors=132,
    )
    assert dtype == torch.float32 or "mma" in score.compiled[0]
    assert "atom" in rank.compiled[0]


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
    cache = torch.empty(640, HKV, head_dim, dtype=dtype)
    wide = torch.bfloat16 if dtype.itemsize == 1 else dtype
    decode.decode_hsa(
        torch.empty(B, HQ, head_dim, dtype=wide),
        cache,
        cache,
        torch.zeros(B, HKV, 32, dtype=torch.int32),
        torch.zeros(B, 100, dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.empty(B, HQ, head_dim, dtype=wide),
        decode.DecodeWorkspace(
            B, B * HKV * decode.MAX_SPLITS, HQ, HKV, head_dim, "cpu"
        ),
        page_size=64,
        window_size=512,
        sink_pages=1,
        sm_scale=0.1,
        logit_cap=cap,
        splits=8,
        mask_last_slot=masked,
    )
    assert dtype == torch.float32 or "mma" in recorder.compiled[0]


def plan(group, head_dim, strategy="group", kind="mean"):
    return plan_extend(
        [0, 5000], [700, 1], tiling=choose_tiling(group, head_dim, strategy, kind), page_size=64, window_size=512, sink_pages=1, device="cpu"
    )  # fmt: skip


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
    versions = torch.zeros(9, dtype=torch.int64)
    p = plan(heads // HKV, head_dim, strategy, kind)
    buffer, _ = reprs(kind, head_dim, dtype)
    extend_kernel.select_pages_extend(
        torch.empty(p.rows, heads, head_dim, dtype=torch.bfloat16),
        buffer,
        None if kind == "landmark" else versions,
        versions,
        torch.zeros(2, 80, dtype=torch.int32),
        p,
        extend_kernel.PageLists.empty(p, HKV, 32),
        extend_kernel.ExtendSelectWorkspace(p, HKV, 32, 4),
        torch.zeros(6, dtype=torch.int64),
        page_size=64,
        window_size=512,
        sink_pages=1,
        topk=32,
        kind=kind,
        strategy=strategy,
        sm_scale=0.1,
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
    expand = record(slow_extend, "_expand_slow_kernel")
    score = record(slow_extend, "_score_slow_kernel")
    rank = record(slow_extend, "_rank_slow_kernel")
    versions = torch.zeros(9, dtype=torch.int64)
    p = plan(heads // HKV, head_dim, strategy, "slow_keys")
    buffer, channels = reprs("slow_keys", head_dim, dtype)
    slow_extend.select_slow_pages_extend(
        torch.empty(p.rows, heads, head_dim, dtype=dtype),
        buffer,
        versions,
        versions,
        torch.zeros(2, 80, dtype=torch.int32),
        p,
        extend_kernel.PageLists.empty(p, HKV, 32),
        slow_extend.SlowSelectWorkspace(p, HKV, 32, 4),
        torch.zeros(6, dtype=torch.int64),
        page_size=64,
        window_size=512,
        sink_pages=1,
        topk=32,
        strategy=strategy,
        sm_scale=0.1,
        channels=channels[0],
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
    cache = torch.empty(640, HKV, head_dim, dtype=dtype)
    wide = torch.float16 if dtype == torch.float16 else torch.bfloat16
    q = torch.empty(p.rows, heads, head_dim, dtype=wide)
    extend.extend_hsa(
        q,
        cache,
        cache,
        extend_kernel.PageLists.empty(p, HKV, 32),
        torch.zeros(2, 80, dtype=torch.int32),
        p,
        torch.empty_like(q),
        page_size=64,
        window_size=512,
        sink_pages=1,
        sm_scale=0.1,
        logit_cap=cap,
        repr_buffer=torch.empty(9, HKV, head_dim * 2, dtype=wide) if by_score else None,
        kind="mean_std",
        mask_last_slot=masked,
    )
    assert "mma" in recorder.compiled[0]


@pytest.mark.parametrize("kind", ["mean", "mean_std", "slow_keys"])
def test_write_pages(record, kind):
    recorder = record(chunk_repr, "_write_pages_kernel")
    buffer, channels = reprs(kind, 80, torch.bfloat16)
    versions = torch.zeros(9, dtype=torch.int64)
    chunk_repr.write_pages(
        torch.empty(640, HKV, 80, dtype=torch.bfloat16),
        buffer,
        versions,
        versions,
        versions[:1],
        torch.zeros(2, 80, dtype=torch.int32),
        plan(4, 64).pages,
        torch.zeros(6, dtype=torch.int64),
        page_size=64,
        kind=kind,
        channels=channels,
    )
    assert "atom" in recorder.compiled[0]


@pytest.mark.parametrize(
    "kind,dtype,new_lens",
    [
        ("mean", torch.bfloat16, 1),
        ("mean_std", torch.float8_e4m3fn, 0),
        ("mean_std", torch.float8_e5m2, torch.ones(B, dtype=torch.int32)),
        ("slow_keys", torch.bfloat16, 1),
    ],
)
def test_write_committed_page(record, kind, dtype, new_lens):
    recorder = record(chunk_repr, "_write_committed_page_kernel")
    buffer, channels = reprs(kind, 80, torch.bfloat16)
    addresses = torch.zeros(4, dtype=torch.uint64)
    versions = torch.zeros(9, dtype=torch.int64)
    chunk_repr.write_committed_page(
        addresses,
        addresses,
        addresses,
        torch.empty(640, HKV, 80, dtype=dtype),
        buffer,
        versions,
        versions[:1],
        torch.zeros(4, 640, dtype=torch.int32),
        torch.zeros(B, dtype=torch.int64),
        torch.ones(B, dtype=torch.int64),
        new_lens,
        torch.ones(4),
        torch.zeros(1, dtype=torch.int64),
        recent=4,
        page_size=64,
        kind=kind,
        channels=channels,
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
