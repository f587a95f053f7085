# SPDX-License-Identifier: Apache-2.0
"""Sequences that share pages: representations written by several programs at once, and questions about one prefix."""

import pytest
import torch

from sglang.srt.layers.attention.hsa.ops.extend.plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.page_repr.kernel import write_pages
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd
from sglang.srt.layers.attention.hsa.ops.select.slow_extend import (
    Group,
    group_sequences,
)
from sglang.srt.layers.attention.hsa.params import LayerCache
from sglang.test.attention.hsa_device import DEVICE, ON_GPU, needs_kernels
from sglang.test.attention.hsa_fixtures import make_batch, make_params, rotary_channels


@needs_kernels
@pytest.mark.parametrize("kind", ["slow_keys", "mean_std"])
def test_pages_that_many_sequences_heal_at_once(kind):
    """The warps of a program must agree whether a page is to be written while others stamp it; the interpreter has none."""
    sequences, pages, rounds = (32, 700, 20) if ON_GPU else (3, 4, 2)
    size, heads, dim = 64, 2, 64
    params = make_params(chunk_repr=kind)
    batch = make_batch([pages * size], page_size=size, num_kv_heads=heads, head_dim=dim)
    keys = batch.k_buffer.to(DEVICE)
    channels = rotary_channels(dim) if params.kind.slow else None
    expected = page_repr_fwd(
        batch.k_buffer, torch.arange(len(keys) // size), params, channels
    )
    reprs = torch.zeros_like(expected, device=DEVICE)
    stamps = torch.zeros(len(reprs), dtype=torch.int64, device=DEVICE)
    cache = LayerCache(
        keys,
        keys,
        reprs,
        stamps,
        torch.ones_like(stamps),
        None if channels is None else channels.to(DEVICE),
    )
    table = batch.page_table.expand(sequences, -1).contiguous().to(DEVICE)
    plan = plan_extend(
        [pages * size] * sequences,
        [1] * sequences,
        tiling=choose_tiling(8, dim, params.config),
        config=params.config,
        device=DEVICE,
    )
    shared = batch.page_table[0].long()
    near = dict(rtol=0, atol=0) if params.kind.slow else dict(rtol=1e-3, atol=1e-3)
    counters = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    for _ in range(rounds):
        reprs.zero_()
        stamps.zero_()
        write_pages(cache, table, plan.pages, counters, params)
        torch.testing.assert_close(reprs[shared].cpu(), expected[shared], **near)
    assert int(counters.sum()) == rounds * pages


def test_groups_of_sequences():
    """As many consecutive sequences as fit, a longer one alone, and those without candidates with any."""
    groups, places = group_sequences(
        [5, 0, 4, 11, 3, 7, 0], [2, 4, 6, 8, 2, 4, 6], most=10
    )
    assert groups == [Group(0, 3, 5, 12), Group(3, 1, 11, 8), Group(4, 3, 7, 12)]
    assert places == [0, 5, 5, 0, 0, 3, 10]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
