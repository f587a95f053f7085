# SPDX-License-Identifier: Apache-2.0
"""The kernels of checkpoints that were trained for HSA compile for every card, with the shapes of their models; needs no GPU."""

import pytest
import torch

from sglang.srt.layers.attention.hsa.landmark_rows import LandmarkRows
from sglang.srt.layers.attention.hsa.ops.common import padded_width
from sglang.srt.layers.attention.hsa.ops.decode import kernel as decode
from sglang.srt.layers.attention.hsa.ops.extend import kernel as extend
from sglang.srt.layers.attention.hsa.ops.extend.plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.page_repr import landmark_kernel
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select import (
    page_lists,
    prior_decode,
    prior_extend,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_kernel import (
    SelectPagesWorkspace,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache
from sglang.test.attention.hsa_compile import HOPPER, TABLE, Recorder, record
from sglang.test.attention.hsa_fixtures import make_params
from sglang.test.attention.test_hsa_kernels_cards import spilled

__all__ = ["record"]  # a fixture

PAGES = 9
# Query heads, KV heads, head dimension: of the 345M, 1B and 7B models, each on one rank.
SHAPES = {"345M": (16, 2, 64), "1B": (32, 4, 64), "7B": (32, 32, 128)}


def landmark_params(**more):
    config = make_params(
        page_size=63, window_size=512, topk=32, sink_pages=0, chunk_repr="prior",
        selection_strategy="softmax_head", weight_mode="score",
    ).config  # fmt: skip
    return AttentionParams(config, 0.1, mask_last_slot=True, **more)


def make_cache(model):
    heads, kv_heads, head_dim = SHAPES[model]
    group = heads // kv_heads
    keys = torch.empty(PAGES * 63, kv_heads, head_dim, dtype=torch.bfloat16)
    versions = torch.zeros(PAGES, dtype=torch.int64)
    return LayerCache(
        keys,
        keys,
        torch.empty(PAGES, kv_heads, group * head_dim, dtype=torch.bfloat16),
        versions,
        versions,
        biases=torch.empty(PAGES, kv_heads, group),
    )


@pytest.mark.parametrize(
    "card,model",
    [(HOPPER, model) for model in SHAPES] + [(80, "7B"), (89, "7B"), (100, "345M"), (120, "345M")],
)  # fmt: skip
def test_kernels_fit_the_card(record, card, model):
    """Registers spill next to nothing."""
    heads, kv_heads, head_dim = SHAPES[model]
    select = record(prior_extend, "_select_prior_pages_kernel", card)
    attend = record(extend, "_extend_hsa_kernel", card)
    write = record(landmark_kernel, "_write_landmark_pages_kernel", card)
    params, group = landmark_params(sink_logits=torch.zeros(heads)), heads // kv_heads
    tiling = choose_tiling(group, head_dim, params.config)
    cache = make_cache(model)
    counters = torch.zeros(8, dtype=torch.int64)
    plan = plan_extend(
        [0, 5000], [700, 1], tiling=tiling, config=params.config, device="cpu"
    )
    scratch = Scratch("cpu")
    q = torch.empty(plan.rows, heads, head_dim, dtype=torch.bfloat16)
    lists = page_lists.PageLists.empty(plan, kv_heads, 32, scratch)
    workspace = page_lists.ExtendSelectWorkspace(plan, kv_heads, 32, 4, scratch)
    lse = torch.empty(plan.rows, heads) if group > 1 else None
    prior_extend.select_prior_pages_extend(
        q, cache, TABLE, plan, lists, workspace, counters, params, lse
    )
    out = torch.empty_like(q)
    extend.extend_hsa(q, cache, lists, TABLE, plan, out, params, select_q=q)
    if lse is not None:
        extend.extend_hsa(q, cache, None, TABLE, plan, out, params, lse)
    window = landmark_params(exact_window=512)
    extend.extend_hsa(q, cache, None, TABLE, plan, out, window)
    one = torch.zeros(1, dtype=torch.int64)
    rows = LandmarkRows(one, one, one, one)
    landmark_kernel.write_landmark_pages(q, cache, rows, one, counters, params)
    assert len(select.compiled) == len(write.compiled) == 1
    assert len(attend.compiled) == (3 if group > 1 else 2)
    if card == HOPPER:
        for recorder in (select, attend, write):
            assert max(map(spilled, recorder.compiled)) <= 128


@pytest.mark.parametrize(
    "card,model,pages",
    [
        *((HOPPER, model, 8000) for model in SHAPES),
        (HOPPER, "345M", 16000),
        (80, "7B", 1000),
        (120, "345M", 1000),
    ],
)
def test_decode_kernels_fit_the_card(record, card, model, pages):
    """Next to no registers spill, and few in contexts of more than 512K places."""
    heads, kv_heads, head_dim = SHAPES[model]
    select = record(prior_decode, "_select_prior_decode_kernel", card)
    attend = record(decode, "_decode_hsa_kernel", card)
    params, cache = landmark_params(sink_logits=torch.zeros(heads)), make_cache(model)
    rows = prior_decode.ROWS_PER_SEQUENCE
    q = torch.empty(rows, heads, head_dim, dtype=torch.bfloat16)
    lengths = torch.zeros(rows, dtype=torch.int32)
    selected = torch.zeros(rows, kv_heads, 32, dtype=torch.int32)
    workspace = SelectPagesWorkspace(
        rows, kv_heads, pages, "cpu", heads // kv_heads, 64 * kv_heads
    )
    table = torch.zeros(1, padded_width(pages), dtype=torch.int32)
    prior_decode.select_prior_pages_decode(
        q, cache, table, lengths, selected, workspace, torch.zeros(8, dtype=torch.int64), params, 132, q
    )  # fmt: skip
    scratch = decode.DecodeWorkspace(
        rows, rows * kv_heads * decode.MAX_SPLITS, heads, kv_heads, head_dim, "cpu"
    )
    for chosen, some in (
        (selected, params),
        (selected[:, :, :0], landmark_params(exact_window=512)),
    ):
        decode.decode_hsa(
            q,
            cache,
            chosen,
            table,
            lengths,
            torch.empty_like(q),
            scratch,
            some,
            select_q=q,
        )
    assert len(select.compiled) == 1 and len(attend.compiled) == 2
    if card == HOPPER:
        assert max(map(spilled, attend.compiled)) == 0
        assert spilled(select.compiled[0]) <= (16 if pages < 8192 else 512)


def test_prompts_get_pages_of_63_tokens():
    """The patched kernel of SGLang; a range of a page's slots is what Triton compiles for powers of two alone."""
    try:  # since 0.5.16
        from sglang.kernels.ops.memory.allocator import alloc_extend_kernel as kernel
    except ModuleNotFoundError:
        from sglang.srt.mem_cache.allocator import alloc_extend_kernel as kernel
    numbers = torch.zeros(8, dtype=torch.int64)
    recorder = Recorder(kernel)
    recorder[(1,)](*[numbers] * 5, bs_upper=8, page_size=63)
    assert len(recorder.compiled) == 1


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
