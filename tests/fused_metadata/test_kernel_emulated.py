# SPDX-License-Identifier: Apache-2.0
"""The kernel's own source on a CPU, and the torch reference, against plain loops: every byte in and around the destinations."""

import numpy as np
import pytest
import torch
from emulated import KERNEL, emulated_module

from sglang.jit_kernel import fused_metadata_precompute_and_broadcast as op
from sglang.jit_kernel.fused_metadata_checks import DECODE, DRAFT_EXTEND, TARGET_VERIFY
from sglang.test.fused_metadata_cases import FIELDS, POISON, Case, differences, draw

REFERENCE = op.fused_metadata_precompute_and_broadcast_reference
TABLES = ("page_indices_list", "real_page_table_list")


@pytest.fixture
def kernel(monkeypatch):
    """The public function, made to launch the emulated kernel for CPU tensors."""
    module = emulated_module()
    monkeypatch.setattr(op, "_jit_fused_metadata_module", lambda: module)
    monkeypatch.setattr(op, "run_reference", op.launch)
    module["set_order"](0)
    return op.fused_metadata_precompute_and_broadcast_cuda


def launches():
    return emulated_module()["count_launches"]()


def check(case, *functions):
    expected = case.expected()
    for function in functions:
        found = differences(case.run(function), expected)
        assert not found, (case, found)


@pytest.mark.parametrize("seed", range(24))
def test_fuzz(kernel, seed):
    """Sizes, modes, dtypes, alignments, missing lists and offsets, threads and blocks in any order."""
    rng = np.random.default_rng(seed)
    for order in range(4):
        emulated_module()["set_order"](order and seed + 1)
        check(draw(rng, max_batch=600, budget=1 << 18), kernel, REFERENCE)


@pytest.mark.parametrize("batch", (0, 1, 2, 31, 32, 33, 255, 256, 257, 1024, 3000))
@pytest.mark.parametrize("mode", (DECODE, TARGET_VERIFY, DRAFT_EXTEND))
def test_batches_around_warps_and_blocks(kernel, batch, mode):
    rng = np.random.default_rng(batch)
    tokens = 1 if mode == DECODE else 3
    extend = rng.integers(0, tokens + 1, batch) if mode == DRAFT_EXTEND else None
    case = Case(batch, 2, rng.integers(1, 200, batch), mode, tokens, extend, offsets=[0, 5], topk=77)
    check(case, kernel, REFERENCE)


@pytest.mark.parametrize("page_size", (1, 3, 32, 64, 2048))
@pytest.mark.parametrize("length", (1, 63, 64, 65, 1000, 1023, 1024, 1025, 4096, 131072))
def test_lengths_around_tiles_and_pages(kernel, length, page_size):
    for dtype in (torch.int32, torch.int64) if length < 131072 else (torch.int32,):
        case = Case(2, 2, np.array([length, 1]), page_size=page_size, pitch=4, dtypes=(dtype,) * 4)
        check(case, kernel, REFERENCE)


@pytest.mark.parametrize("pitch, shift", ((4, 4), (4, 1), (5, 4), (1, 3)))
def test_rows_that_are_not_aligned(kernel, pitch, shift):
    check(Case(5, 3, np.arange(1, 6) * 300, pitch=pitch, shift=shift, max_len=1500), kernel, REFERENCE)


@pytest.mark.parametrize("steps, expected", ((1, 1), (16, 1), (32, 1), (33, 2), (70, 3)))
def test_one_launch_per_32_steps(kernel, steps, expected):
    before = launches()
    case = Case(3, steps, np.array([9, 130, 64]), offsets=list(range(steps)))
    check(case, kernel)
    assert launches() - before == expected


def test_pages_alone_as_hsa_needs_them(kernel):
    """Each draft step is one token longer; no slots, nothing of NSA."""
    fields = ("cache_seqlens_list", "cu_seqlens_k_list", "real_page_table_list")
    case = Case(3, 4, np.array([64, 1, 70000]), offsets=[1, 2, 3, 4], ragged=True, topk=None, fields=fields)
    check(case, kernel, REFERENCE)
    got = case.run(kernel)
    assert [b[case.shift].item() for b in got["cache_seqlens_list"]] == [65, 66, 67, 68]


def test_nothing_but_lengths(kernel):
    check(Case(9, 2, np.arange(1, 10), fields=tuple(n for n in FIELDS if n not in TABLES)), kernel, REFERENCE)


def test_ragged_rows_leave_unused_columns_alone(kernel):
    case = Case(2, 1, np.array([3, 5000]), max_len=6000, ragged=True)
    check(case, kernel, REFERENCE)
    case_all = Case(2, 1, np.array([3, 5000]), max_len=6000)
    ragged, full = case.run(kernel), case_all.run(kernel)
    written = {n: [int((b[n][0] != POISON).sum()) for b in (ragged, full)] for n in TABLES}
    assert written == {"page_indices_list": [5003, 12000], "real_page_table_list": [80, 188]}


def test_slots_below_zero_round_down_as_in_torch(kernel):
    case = Case(1, 1, np.array([200]))
    case.slots[:, 64] = -1
    case.slots[:, 128] = -64
    check(case, kernel, REFERENCE)


def test_sums_wrap_as_in_torch(kernel):
    case = Case(3, 1, np.array([2**31 - 1] * 3), max_len=10, fields=("cache_seqlens_list", "cu_seqlens_k_list"))
    got, expected = case.run(kernel), case.run(REFERENCE)
    assert not differences(got, expected)
    assert (got["cu_seqlens_k_list"][0] < 0).sum() > 2 * case.shift


@pytest.mark.parametrize("what, value, message", (
    ("requests", [0, 5, 1], "trap"),
    ("requests", [0, -1, 1], "trap"),
    ("extend", [1, 4, 0], "trap"),
    ("extend", [1, -1, 0], "trap"),
))  # fmt: skip
def test_indices_out_of_range_stop_the_kernel(kernel, what, value, message):
    case = Case(3, 1, np.array([5, 6, 7]), DRAFT_EXTEND, 3, np.array([1, 2, 3]))
    case.slots = case.slots[:4]
    case.requests = np.array([2, 0, 3])
    check(case, kernel, REFERENCE)
    setattr(case, what, np.array(value))
    with pytest.raises(RuntimeError, match=message):
        case.run(kernel)
    with pytest.raises(ValueError, match="must be from 0 to"):
        case.run(REFERENCE)


DAMAGES = {
    "nsa_cu_seqlens": ("  __syncthreads();\n#pragma unroll\n", "#pragma unroll\n"),
    "real_page_table": (" - (slot % page_size < 0)", ""),
    "page_indices": ("if (column + v < limit) target", "target"),
}


def test_a_damaged_kernel_is_found(tmp_path, monkeypatch):
    """The comparison sees what it is there for: a barrier, a rounding, a bound taken out of the source."""
    source = KERNEL.read_text()
    for before, after in DAMAGES.values():
        assert source.count(before) == 1
        source = source.replace(before, after)
    (tmp_path / KERNEL.name).write_text(source)
    module = emulated_module(tmp_path / KERNEL.name)
    monkeypatch.setattr(op, "_jit_fused_metadata_module", lambda: module)
    monkeypatch.setattr(op, "run_reference", op.launch)
    case = Case(70, 2, np.arange(1, 71) * 21, offsets=[0, 5])
    case.slots[:, 64] = -1
    found = []
    for order in range(8):
        module["set_order"](order)
        found += differences(case.run(op.fused_metadata_precompute_and_broadcast_cuda), case.expected())
    for wrong in DAMAGES:
        assert any(line.startswith(wrong) for line in found), (wrong, found[:9])
