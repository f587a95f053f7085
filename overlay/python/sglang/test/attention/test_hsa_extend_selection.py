# SPDX-License-Identifier: Apache-2.0
"""Selection of extend against the oracle and the reference: on a CUDA device, or under TRITON_INTERPRET=1."""

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.ops.extend.plan import (
    SLOW_ROWS,
    choose_tiling,
    plan_extend,
)
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.ops.select import extend_kernel, slow_extend
from sglang.srt.layers.attention.hsa.params import LayerCache
from sglang.srt.layers.attention.hsa.selector import HSASelector
from sglang.test.attention import hsa_oracle
from sglang.test.attention.hsa_device import DEVICE, ON_GPU, needs_kernels
from sglang.test.attention.hsa_fixtures import make_batch, make_params, rotary_channels
from sglang.test.attention.hsa_harness import Harness

pytestmark = needs_kernels


def test_kernel_and_reference_select_the_same_pages():
    h = Harness(device=DEVICE, extend_kernels=True, num_pages=128, topk=7)
    sequences = [h.new_sequence() for _ in range(2)]
    h.prepare(sequences, [500, 130])
    new = [5, 37]
    q, _ = h.step(sequences, new)
    lists = h.backend.forward_pass.tiles.lists
    row = 0
    for s, count in zip(sequences, new):
        table = h.pages_of(s).tolist()
        for i in range(s.length - count, s.length):
            chosen, _ = hsa_oracle.select(
                q[row].double().numpy(), np.stack(s.k), i, h.oracle
            )
            for g in range(2):
                pages = pages_of_row(lists, h.backend.forward_pass.plan, row, g)
                assert [table.index(page) for page in pages] == chosen[g]
            row += 1


def pages_of_row(lists, plan, row, g):
    """Physical pages that one packed query selected, from the lists of its run."""
    for tile, (_, first, rows, _) in enumerate(plan.tiles.tolist()):
        if first <= row < first + rows:
            run, bit = divmod(row - first, lists.list_rows)
            n = lists.lengths[tile, g, run]
            chosen = (lists.rows[tile, g, run, :n].cpu() >> bit) & 1
            return lists.pages[tile, g, run, :n].cpu()[chosen.bool()].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("topk", [6, 32])
def test_selection_among_many_pages(topk, dtype):
    """More pages than a program ranks in registers, most of them with few distinct scores."""
    if dtype == torch.bfloat16 and not ON_GPU:
        pytest.skip("the interpreter has no bfloat16")
    torch.manual_seed(topk)
    pages, heads, dim = 2500, 2, 16
    params = make_params(
        page_size=16, window_size=16, topk=topk, chunk_repr="mean", selection_strategy="group"
    )  # fmt: skip
    new = 3
    plan = plan_extend(
        [16 * pages],
        [new],
        tiling=choose_tiling(1, 16, params.config),
        config=params.config,
        device=DEVICE,
    )
    # Small multiples of powers of two: every order of summation gives the same scores, so equal pages are ties.
    q = torch.randint(-8, 9, (new, heads, dim), device=DEVICE) / 4
    # Page 0 is unused; the first head's pages repeat 50 representations, the second's hardly any.
    shape = pages + 2, heads, dim
    repr_buffer = torch.randint(-64, 65, shape, device=DEVICE) / 16
    repr_buffer[:, 0] = repr_buffer[torch.randint(1, 51, (pages + 2,)), 0]
    repr_buffer = repr_buffer.to(dtype)
    version = torch.ones(pages + 2, dtype=torch.int64, device=DEVICE)
    stamp = version.clone()
    stamp[torch.randint(1, pages, (100,))] = 0
    table = (torch.randperm(pages + 1) + 1).int().to(DEVICE).view(1, -1)
    lists = extend_kernel.PageLists.empty(plan, heads, topk, Scratch(DEVICE))
    counters = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    workspace = extend_kernel.ExtendSelectWorkspace(
        plan, heads, topk, 1, Scratch(DEVICE)
    )
    cache = LayerCache(q, q, repr_buffer, stamp, version)
    extend_kernel.select_pages_extend(
        q, cache, table, plan, lists, workspace, counters, params
    )
    valid = (stamp == version)[table.long()]
    expected, _ = HSASelector(params).select(
        q.cpu(), repr_buffer.cpu(), valid.cpu(), table.cpu(), torch.tensor([0, new]), torch.tensor([16 * pages + new])
    )  # fmt: skip
    for row in range(new):
        for g in range(heads):
            assert pages_of_row(lists, plan, row, g) == expected[row, g].tolist()


@pytest.mark.parametrize(
    "strategy,items,expanded,groups",
    [
        ("group", 1, 10**6, 1),
        ("head", 1, 1, 4),
        ("head", 5, 60, 3),
        ("group", 10**6, 60, 3),
    ],
)
def test_slow_selection_in_turns(strategy, items, expanded, groups, monkeypatch):
    """Tiles that share little scratch, sequences with and without candidates, and pages without a valid stamp."""
    width = slow_extend.LANES.value
    monkeypatch.setattr(
        slow_extend, "SCRATCH_BYTES", items * SLOW_ROWS // 4 * width * 4
    )
    monkeypatch.setattr(slow_extend, "EXPANDED_PAGES", expanded)
    torch.manual_seed(0)
    page, heads, kv_heads, dim, topk = 16, 6, 2, 16, 3
    params = make_params(
        page_size=page, window_size=20, topk=topk, selection_strategy=strategy
    )
    # Of the 17 candidates of the first sequence the last is alone in its step, and selected since it has no stamp.
    prefixes, news = [307, 400, 0, 100], [1, 70, 9, 1]
    lens = [p + n for p, n in zip(prefixes, news)]
    batch = make_batch(lens, page_size=page, num_kv_heads=kv_heads, head_dim=dim)
    channels = rotary_channels(dim)
    num_pages = len(batch.k_buffer) // page
    every = torch.arange(num_pages)
    reprs = page_repr_fwd(batch.k_buffer, every, params, channels)
    version = torch.ones(num_pages, dtype=torch.int64)
    # Fewer pages without a valid stamp than are selected, or scores would decide nothing.
    stamp = version.clone()
    stamp[batch.page_table[[0, 1, 1, 3], [17, 5, 17, 2]].long()] = 0
    q = torch.randn(sum(news), heads, dim)
    config = params.config
    tiling = choose_tiling(heads // kv_heads, dim, config)
    plan = plan_extend(prefixes, news, tiling=tiling, config=config, device=DEVICE)
    lists = extend_kernel.PageLists.empty(plan, kv_heads, topk, Scratch(DEVICE))
    workspace = slow_extend.SlowSelectWorkspace(
        plan, kv_heads, topk, 1, Scratch(DEVICE)
    )
    every = len(plan.tiles) * kv_heads
    assert workspace.items == min(items, every)
    assert len(workspace.groups) == groups
    workspace.keys.fill_(0xFFFFFFFF)  # of another pass
    workspace.bias.fill_(torch.nan)
    counters = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    tensors = batch.k_buffer, batch.v_buffer, reprs, stamp, version, channels
    slow_extend.select_slow_pages_extend(
        q.to(DEVICE), LayerCache(*(x.to(DEVICE) for x in tensors)), batch.page_table.to(DEVICE), plan, lists,
        workspace, counters, params,
    )  # fmt: skip
    cu = torch.tensor([0, 1, 71, 80, 81])
    valid = (stamp == version)[batch.page_table.long()]
    expected, _ = HSASelector(params, channels).select(
        q, reprs, valid, batch.page_table, cu, batch.seq_lens
    )
    for row in range(sum(news)):
        for g in range(kv_heads):
            found = pages_of_row(lists, plan, row, g)
            assert found == [p for p in expected[row, g].tolist() if p >= 0], (row, g)


def test_slow_selection_in_tiles_of_few_rows_among_many_pages():
    """Many query heads for a KV head leave few rows to a tile; their scratch ends with them."""
    torch.manual_seed(0)
    page, heads, dim, topk, pages, new = 16, 32, 16, 4, 2200, 6
    params = make_params(page_size=page, window_size=16, topk=topk)
    tiling = choose_tiling(heads, dim, params.config)
    prefix = page * pages
    plan = plan_extend(
        [prefix], [new], tiling=tiling, config=params.config, device=DEVICE
    )
    batch = make_batch([prefix + new], page_size=page, num_kv_heads=1, head_dim=dim)
    channels = rotary_channels(dim)
    every = torch.arange(len(batch.k_buffer) // page)
    reprs = page_repr_fwd(batch.k_buffer, every, params, channels)
    version = torch.ones(len(every), dtype=torch.int64)
    q = torch.randn(new, heads, dim)
    lists = extend_kernel.PageLists.empty(plan, 1, topk, Scratch(DEVICE))
    workspace = slow_extend.SlowSelectWorkspace(plan, 1, topk, 1, Scratch(DEVICE))
    size, beyond = workspace.peaks.numel(), 4096
    guarded = torch.full((size + beyond,), 7, dtype=torch.int32, device=DEVICE)
    workspace.peaks = guarded[:size].view(torch.uint32).view(workspace.peaks.shape)
    counters = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    tensors = batch.k_buffer, batch.v_buffer, reprs, version, version, channels
    slow_extend.select_slow_pages_extend(
        q.to(DEVICE), LayerCache(*(x.to(DEVICE) for x in tensors)), batch.page_table.to(DEVICE), plan, lists,
        workspace, counters, params,
    )  # fmt: skip
    assert tiling.tile_rows < 8 and bool((guarded[size:] == 7).all())
    valid = torch.ones_like(batch.page_table, dtype=torch.bool)
    expected, _ = HSASelector(params, channels).select(
        q, reprs, valid, batch.page_table, torch.tensor([0, new]), batch.seq_lens
    )
    for row in range(new):
        found = pages_of_row(lists, plan, row, 0)
        assert found == expected[row, 0].tolist(), row


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
