# SPDX-License-Identifier: Apache-2.0
"""The kernels of the defaults on other cards than Hopper, and at long contexts; needs no GPU."""

import os
import re
import subprocess

import pytest
import torch
import triton

from sglang.srt.layers.attention.hsa.ops.decode import kernel as decode
from sglang.srt.layers.attention.hsa.ops.extend import kernel as extend
from sglang.srt.layers.attention.hsa.ops.extend.plan import choose_tiling
from sglang.srt.layers.attention.hsa.ops.page_repr import kernel as page_repr
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select import (
    extend_kernel,
    slow_decode,
    slow_extend,
)
from sglang.srt.layers.attention.hsa.ops.select.by_kind import check_device
from sglang.test.attention.hsa_compile import (
    HKV,
    TABLE,
    B,
    cache,
    params,
    plan,
    record,
    select_slow_decode,
)

__all__ = ["record"]  # a fixture


@pytest.mark.parametrize("context", [131072, 524288, 1048576])
def test_decode_selection_spills_next_to_no_registers(record, context):
    """None but a few with Triton 3.5 and 3.8. A table is a few slots wider than the context."""
    score = record(slow_decode, "_score_slow_decode_kernel")
    rank = record(slow_decode, "_rank_slow_decode_kernel")
    select_slow_decode(16, 64, torch.bfloat16, triton.cdiv(context + 4, 64))
    for recorder in (score, rank):
        assert spilled(recorder.compiled[0]) <= 16


@pytest.mark.parametrize("max_pages", [40000, 65537])
def test_decode_selection_of_very_long_rows_fits_into_a_program(record, max_pages):
    """With small pages; it may spill."""
    record(slow_decode, "_score_slow_decode_kernel")
    rank = record(slow_decode, "_rank_slow_decode_kernel")
    select_slow_decode(16, 64, torch.bfloat16, max_pages)
    assert ".reqntid 1024" in rank.compiled[0]


def spilled(ptx: str) -> int:
    """Bytes that the card's programs keep in local memory for want of registers."""
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    tool = triton.knobs.nvidia.ptxas  # the one that Triton wrote for
    if int(re.search(r"\d+", arch)[0]) >= 100:
        tool = getattr(triton.knobs.nvidia, "ptxas_blackwell", tool)  # since 3.6
    said = subprocess.run(
        [tool.path, "-v", f"-arch={arch}", "-o", os.devnull, "-"],
        input=ptx, capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    return int(re.search(r"(\d+) bytes spill stores", said)[1])


@pytest.mark.parametrize(
    "card,head_dim",
    [(80, 256), (89, 128), (89, 256), (100, 128), (120, 128), (120, 256)],
)
def test_the_defaults_fit_other_cards(record, card, head_dim):
    """Every kernel of slow_keys compiles, and fits into the card's shared memory."""
    heads = 4 * HKV
    recorders = [
        record(module, name, card)
        for module, name in (
            (slow_decode, "_score_slow_decode_kernel"),
            (slow_decode, "_rank_slow_decode_kernel"),
            (slow_extend, "expand_slow_kernel"),
            (slow_extend, "score_slow_kernel"),
            (slow_extend, "rank_slow_kernel"),
            (extend, "_extend_hsa_kernel"),
            (decode, "_decode_hsa_kernel"),
            (page_repr, "_write_pages_kernel"),
        )
    ]
    layer, settings = cache("slow_keys", head_dim, torch.bfloat16), params("slow_keys")
    p = plan(heads // HKV, head_dim, "head", "slow_keys")
    q, scratch = torch.empty(p.rows, heads, head_dim, dtype=torch.bfloat16), Scratch(
        "cpu"
    )
    lists = extend_kernel.PageLists.empty(p, HKV, 32, scratch)
    counters = torch.zeros(6, dtype=torch.int64)
    page_repr.write_pages(layer, TABLE, p.pages, counters, settings)
    workspace = slow_extend.SlowSelectWorkspace(p, HKV, 32, 4, scratch)
    slow_extend.select_slow_pages_extend(
        q, layer, TABLE, p, lists, workspace, counters, params("slow_keys", "head")
    )
    extend.extend_hsa(q, layer, lists, TABLE, p, torch.empty_like(q), settings)
    select_slow_decode(heads, head_dim, torch.bfloat16, 2049)
    decode.decode_hsa(
        q[:B],
        layer,
        torch.zeros(B, HKV, 32, dtype=torch.int32),
        torch.zeros(B, 100, dtype=torch.int32),
        torch.ones(B, dtype=torch.int64),
        torch.empty(B, heads, head_dim, dtype=torch.bfloat16),
        decode.DecodeWorkspace(
            B, B * HKV * decode.MAX_SPLITS, heads, HKV, head_dim, "cpu"
        ),
        settings,
        num_splits=8,
    )
    assert all(recorder.compiled for recorder in recorders)


def test_a_card_without_room_for_the_features_is_refused():
    """Of linear kinds; it gets fewer pages in a step first."""
    assert extend_kernel.pages_per_step(64, 128, 227 << 10) == (128, False)
    assert extend_kernel.pages_per_step(64, 64, 99 << 10) == (128, False)
    assert extend_kernel.pages_per_step(64, 128, 140 << 10) == (64, False)
    config = params("mean_std", "head").config
    tiling = choose_tiling(4, 256, config)
    with pytest.raises(ValueError, match="99 KB that this device has; use slow_keys"):
        check_device(config, tiling, 4, 256, 99 << 10)
    check_device(params("slow_keys", "head").config, tiling, 4, 256, 99 << 10)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
