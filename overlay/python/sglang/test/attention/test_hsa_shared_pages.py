# SPDX-License-Identifier: Apache-2.0
"""Sequences that share pages: representations written by several programs at once, and questions about one prefix.

Pages whose keys arrived from elsewhere, which a decode pass represents.
"""

import pytest
import torch

from sglang.srt.layers.attention.hsa.ops.extend.plan import choose_tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.page_repr import kernel as page_repr
from sglang.srt.layers.attention.hsa.ops.page_repr.kernel import (
    AllLayers,
    write_committed_pages,
    write_pages,
)
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


@needs_kernels
@pytest.mark.parametrize("kind", ["slow_keys", "mean_std"])
@pytest.mark.parametrize("heads,dim", [(1, 64), (3, 64), (8, 128), (5, 256)])
def test_a_decode_pass_represents_pages_that_arrived(monkeypatch, kind, heads, dim):
    """All heads of all layers, several in a tile; more blocks than programs; not one that a row still writes."""
    monkeypatch.setattr(page_repr, "PAGES_PER_SEARCH", 2)
    size, num_layers, pages = 64, 2, 21
    params = make_params(chunk_repr=kind)
    channels = [None] * num_layers
    if params.kind.slow:
        slow = rotary_channels(dim)
        channels = [slow, torch.arange(len(slow)).int()]
    batches = [
        make_batch(
            [pages * size], page_size=size, num_kv_heads=heads, head_dim=dim, seed=seed
        )
        for seed in range(num_layers)
    ]
    keys = [batch.k_buffer.to(DEVICE) for batch in batches]
    table = batches[0].page_table[0].long()
    # The second layer has no keys of its own in some of the first one's pages.
    keys[1][:] = keys[1].nan_to_num(0.5)
    every = torch.arange(len(keys[0]) // size)
    expected = [
        page_repr_fwd(k.cpu(), every, params, c) for k, c in zip(keys, channels)
    ]
    reprs = [torch.zeros_like(e, device=DEVICE) for e in expected]
    stamps = [torch.zeros(len(every), dtype=torch.int64, device=DEVICE) for _ in keys]
    versions = torch.full_like(stamps[0], 3)
    written, still_open = table[:-1], table[7]
    own = (still_open * size + 5).reshape(1).to(DEVICE)
    slots = (table[:, None] * size + torch.arange(size)).flatten().int().to(DEVICE)
    all_channels = torch.stack(channels).to(DEVICE) if params.kind.slow else None
    counters = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    addresses = [
        page_repr.addresses_of(of_layers, DEVICE) for of_layers in (keys, reprs, stamps)
    ]
    write_committed_pages(
        AllLayers(
            *addresses,
            torch.ones(num_layers, device=DEVICE),
            all_channels,
            LayerCache(keys[0], None, reprs[0], stamps[0], versions),
        ),
        versions,
        slots[None],
        torch.zeros(1, dtype=torch.int64, device=DEVICE),
        torch.tensor([pages * size - 7], device=DEVICE),
        1,
        own,
        counters,
        params,
        recent=1,
    )
    arrived = written[written != still_open]
    near = dict(rtol=0, atol=0) if params.kind.slow else dict(rtol=1e-3, atol=1e-3)
    for layer in range(num_layers):
        found = reprs[layer].cpu()
        torch.testing.assert_close(found[arrived], expected[layer][arrived], **near)
        others = torch.ones(len(every), dtype=torch.bool)
        others[arrived] = False
        assert not found[others].any()
        assert (stamps[layer].cpu() == 3 * ~others).all()
    assert int(counters.sum()) == num_layers * len(arrived)


@needs_kernels
def test_keys_in_the_middle_of_two_levels_get_the_upper_one():
    """And those next below it the lower one, at steps of which few have an exact reciprocal; in each head."""
    size, dim, heads = 64, 64, 2
    params = make_params(chunk_repr="slow_keys")
    channels = rotary_channels(dim)
    steps = torch.linspace(1.0, 2.0, dim).to(torch.bfloat16).float()
    middles = (torch.arange(15)[:, None] + 0.5) * steps
    below = torch.nextafter(middles, torch.zeros(()))
    ends = torch.stack([torch.zeros(dim), 15 * steps])
    keys = torch.cat([ends, middles, below, ends.repeat(16, 1)])[:, None]
    keys = keys.expand(size, heads, dim).contiguous()
    expected = torch.cat([torch.arange(1, 16), torch.arange(15)]).expand(dim // 2, -1)

    reprs = page_repr_fwd(keys, torch.tensor([0]), params, channels)
    stored = torch.zeros_like(reprs, device=DEVICE)
    versions = torch.ones(1, dtype=torch.int64, device=DEVICE)
    on_device = keys.to(DEVICE)
    write_pages(
        LayerCache(
            on_device, None, stored, versions - 1, versions, channels.to(DEVICE)
        ),
        torch.zeros(1, 1, dtype=torch.int32, device=DEVICE),
        torch.tensor([[0, 0, 1]], device=DEVICE),
        torch.zeros(6, dtype=torch.int64, device=DEVICE),
        params,
    )
    for found in (reprs, stored.cpu()):
        for head in range(heads):
            codes = params.kind.keys(found, len(channels))[0, head, 2:32].T
            step = steps[channels.long()][:, None]
            torch.testing.assert_close((codes / step).round(), expected.float())


def test_groups_of_sequences():
    """As many consecutive sequences as fit, a longer one alone, and those without candidates with any."""
    groups, places = group_sequences(
        [5, 0, 4, 11, 3, 7, 0], [2, 4, 6, 8, 2, 4, 6], most=10
    )
    assert groups == [Group(0, 3, 5, 12), Group(3, 1, 11, 8), Group(4, 3, 7, 12)]
    assert places == [0, 5, 5, 0, 0, 3, 10]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
