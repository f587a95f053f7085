# SPDX-License-Identifier: Apache-2.0
"""The HSA Triton kernels compile for Hopper; needs no GPU. The interpreter accepts code that the compiler does not."""

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sglang.srt.layers.attention.hsa.ops.chunk_repr import kernel as chunk_repr
from sglang.srt.layers.attention.hsa.ops.decode import kernel as decode
from sglang.srt.layers.attention.hsa.ops.page_table import kernel as page_table
from sglang.srt.layers.attention.hsa.ops.select_pages import kernel as select_pages

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
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
            k: constants.pop(k) for k in ("num_warps", "num_stages") if k in constants
        }
        signature, constexprs = {}, {}
        for param, value in zip(self.kernel.params, args):
            signature[param.name] = self._type(value)
            if value is None:
                constexprs[(param.num,)] = None
        for param in self.kernel.params[len(args) :]:
            signature[param.name] = "constexpr"
            constexprs[(param.num,)] = constants[param.name]
        source = ASTSource(self.kernel, signature, constexprs)
        self.compiled.append(
            triton.compile(source, target=HOPPER, options=options).asm["ptx"]
        )

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


B, HQ, HKV = 3, 8, 2


@pytest.mark.parametrize("kind", ["mean", "mean_var", "min_max", "landmark"])
@pytest.mark.parametrize("strategy", ["group", "head"])
@pytest.mark.parametrize("max_pages", [100, 5000])
def test_select_pages(record, kind, strategy, max_pages):
    recorder = record(select_pages, "_select_pages_kernel")
    versions = torch.zeros(9, dtype=torch.int64)
    select_pages.select_pages_decode(
        torch.empty(B, HQ, 64, dtype=torch.bfloat16),
        torch.empty(9, HKV, 128, dtype=torch.bfloat16),
        None if kind == "landmark" else versions,
        versions,
        torch.zeros(B, max_pages, dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.empty(B, HKV, 32, dtype=torch.int32),
        select_pages.SelectPagesWorkspace(B, HKV, max_pages, "cpu"),
        torch.zeros(6, dtype=torch.int64),
        page_size=64,
        window_size=512,
        sink_pages=1,
        kind=kind,
        strategy=strategy,
        sm_scale=0.1,
        programs_per_row=4,
    )
    assert "atom" in recorder.compiled[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim,cap", [(64, 0.0), (80, 30.0), (128, 0.0)])
def test_decode(record, dtype, head_dim, cap):
    recorder = record(decode, "_decode_hsa_kernel")
    cache = torch.empty(640, HKV, head_dim, dtype=dtype)
    decode.decode_hsa(
        torch.empty(B, HQ, head_dim, dtype=dtype),
        cache,
        cache,
        torch.zeros(B, HKV, 32, dtype=torch.int32),
        torch.zeros(B, 100, dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.empty(B, HQ, head_dim, dtype=dtype),
        decode.DecodeWorkspace(B, HQ, HKV, head_dim, "cpu"),
        page_size=64,
        window_size=512,
        sink_pages=1,
        sm_scale=0.1,
        logit_cap=cap,
        splits=8,
    )
    assert dtype == torch.float32 or "mma" in recorder.compiled[0]


@pytest.mark.parametrize("kind", ["mean", "mean_var", "min_max"])
def test_write_previous_page(record, kind):
    recorder = record(chunk_repr, "_write_previous_page_kernel")
    addresses = torch.zeros(4, dtype=torch.uint64)
    versions = torch.zeros(9, dtype=torch.int64)
    chunk_repr.write_previous_page(
        addresses,
        addresses,
        addresses,
        torch.empty(640, HKV, 80, dtype=torch.bfloat16),
        torch.empty(9, HKV, 160, dtype=torch.bfloat16),
        versions,
        versions[:1],
        torch.zeros(B, 100, dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
        page_size=64,
        kind=kind,
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
