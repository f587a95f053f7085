# SPDX-License-Identifier: Apache-2.0
"""Compiling the HSA kernels for cards that are not there, with what a launch would give them."""

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sglang.srt.layers.attention.hsa.ops.common import padded_width
from sglang.srt.layers.attention.hsa.ops.extend.plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.select import decode_kernel, slow_decode
from sglang.srt.layers.attention.hsa.page_repr import KINDS, num_channels
from sglang.srt.layers.attention.hsa.params import LayerCache
from sglang.test.attention.hsa_fixtures import make_params

# Shared memory of a program, by compute capability: A100, L40S and RTX 4090, H100 and H200, B200, RTX PRO 6000.
CARDS = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
HOPPER = 90
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
    """Stands for a kernel: compiles for a card what a launch would compile for the present device."""

    def __init__(self, kernel, card=HOPPER):
        self.kernel, self.card, self.compiled = kernel, card, []

    def __getitem__(self, grid):
        return self._launch

    def _launch(self, *args, **constants):
        options = {
            k: constants.pop(k)
            for k in ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
            if k in constants
        }
        assert options.get("num_warps", 4) <= 32
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
        target = GPUTarget("cuda", self.card, 32)
        compiled = triton.compile(source, target=target, options=options)
        assert compiled.metadata.shared <= CARDS[self.card] << 10
        self.compiled.append(compiled.asm["ptx"])

    @staticmethod
    def _type(value):
        if isinstance(value, torch.Tensor):
            return TYPES[value.dtype]
        return {int: "i32", float: "fp32", type(None): "constexpr"}[type(value)]


@pytest.fixture
def record(monkeypatch):
    def install(module, name, card=HOPPER):
        recorder = Recorder(getattr(module, name), card)
        monkeypatch.setattr(module, name, recorder)
        if hasattr(module, "shared_bytes"):
            monkeypatch.setattr(module, "shared_bytes", lambda _: CARDS[card] << 10)
        return recorder

    return install


B, HQ, HKV = 3, 8, 2


def cache(kind, head_dim, dtype, keys=None):
    """Nine pages of 64 whose keys are in ``keys``, by default ``dtype``, and the kept channels of four layers."""
    entry = KINDS[kind]
    shape = 9, HKV, entry.repr_dim(head_dim, 64)
    kv = torch.empty(640, HKV, head_dim, dtype=keys or dtype)
    versions = torch.zeros(9, dtype=torch.int64)
    kept = torch.zeros(4, num_channels(head_dim), dtype=torch.int32)
    return LayerCache(
        kv,
        kv,
        torch.empty(shape, dtype=entry.storage_dtype(dtype)),
        versions if entry.stored else None,
        versions,
        kept if entry.slow else None,
    )


def params(kind="mean", strategy="group", cap=0.0, masked=False, weights="mass"):
    return make_params(
        0.1, cap, masked, chunk_repr=kind, selection_strategy=strategy, weight_mode=weights
    )  # fmt: skip


TABLE = torch.zeros(2, 80, dtype=torch.int32)


def plan(group, head_dim, strategy="group", kind="mean"):
    config = params(kind, strategy).config
    tiling = choose_tiling(group, head_dim, config)
    return plan_extend([0, 5000], [700, 1], tiling=tiling, config=config, device="cpu")


def select_slow_decode(heads, head_dim, dtype, max_pages, strategy="head"):
    layer = cache("slow_keys", head_dim, dtype)
    if dtype == torch.float16:  # as in the mini engine, which keeps no versions
        layer = layer._replace(stamps=None, versions=None)
    slow_decode.select_slow_pages_decode(
        torch.empty(B, heads, head_dim, dtype=dtype),
        layer,
        torch.zeros(B, padded_width(max_pages), dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.empty(B, HKV, 32, dtype=torch.int32),
        decode_kernel.SelectPagesWorkspace(B, HKV, max_pages, "cpu"),
        torch.zeros(6, dtype=torch.int64),
        params("slow_keys", strategy),
        processors=132,
    )
