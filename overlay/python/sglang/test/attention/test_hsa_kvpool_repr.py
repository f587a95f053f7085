# SPDX-License-Identifier: Apache-2.0
"""Page representations and versions in the KV pool, the allocator that bumps them, and their price."""

from functools import partial

import pytest
import torch

from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache import hsa_pool_setup
from sglang.srt.mem_cache.hsa_pool_setup import (
    hsa_layer_ids,
    kv_pool_class,
    paged_allocator_class,
    repr_bytes_per_page,
)
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.page_repr_allocator import HSAPagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.page_repr_pool import HSATokenToKVPool
from sglang.test.attention.hsa_fixtures import rotary_channels
from sglang.test.attention.hsa_pool_owner import fake_runner

PAGE = 16
PAGES = 10


def make_pool(
    kind="mean_std",
    layers=4,
    hsa_layers=(1, 3),
    dtype=torch.float32,
    pages=PAGES,
    group=1,
):
    return HSATokenToKVPool(
        pages * PAGE, page_size=PAGE, dtype=dtype, head_num=2, head_dim=8, layer_num=layers,
        device="cpu", enable_memory_saver=False, hsa_layer_ids=hsa_layers, repr_kind=kind,
        repr_channels=rotary_channels(8).repeat(len(hsa_layers), 1) if kind == "slow_keys" else None,
        repr_group=group,
    )  # fmt: skip


def make_allocator(pool):
    return HSAPagedTokenToKVPoolAllocator(
        PAGES * PAGE, PAGE, torch.float32, "cpu", pool, need_sort=False
    )


def bumped(pool, before):
    """Pages whose version changed since ``before``."""
    return (pool.page_version != before).nonzero().flatten().tolist()


def extend(allocator, prefix, lens, last):
    prefix, lens, last = map(torch.tensor, (prefix, lens, last))
    return allocator.alloc_extend(
        prefix, prefix, lens, lens, last, int((lens - prefix).sum())
    )


def test_buffers_exist_for_hsa_layers_only():
    pool = make_pool()
    assert [b.shape for b in pool.repr_buffers] == [(PAGES + 1, 2, 16)] * 2
    assert [v.shape for v in pool.repr_stamps] == [(PAGES + 1,)] * 2
    assert (
        pool.page_version.shape == (PAGES + 1,)
        and pool.page_version.dtype == torch.int64
    )
    assert [layer for layer in range(4) if pool.has_page_repr(layer)] == [1, 3]


@pytest.mark.parametrize("kind,dim", [("mean", 8), ("mean_std", 16)])
def test_save_and_get(kind, dim):
    pool = make_pool(kind)
    pages = torch.tensor([7, 2, 5])
    reprs = torch.randn(3, 2, dim)
    pool.save_chunk_repr(3, pages, reprs)
    assert torch.equal(pool.get_chunk_repr(3, pages), reprs)
    assert torch.equal(pool.get_chunk_repr(3, pages.view(3, 1)), reprs.unsqueeze(1))
    assert pool.get_chunk_repr(1, pages).isnan().all(), "the other layer has none"
    assert pool.get_chunk_repr(3, torch.tensor([1, 3])).isnan().all()


def test_a_new_pool_has_no_representation():
    pool = make_pool()
    assert not pool.repr_valid(1, torch.arange(PAGES + 1)).any()


def test_another_version_is_no_representation():
    pool = make_pool()
    page = torch.tensor([4])
    pool.save_chunk_repr(1, page, torch.ones(1, 2, 16))
    old = pool.get_page_version(page)
    pool.bump_page_version(page * PAGE)
    assert pool.get_chunk_repr(1, page).isnan().all()
    assert (
        not pool.get_chunk_repr(1, page, old).isnan().any()
    ), "still there for the old version"
    pool.save_chunk_repr(
        1, page, torch.ones(1, 2, 16), page_version=old
    )  # a late writer
    assert pool.get_chunk_repr(1, page).isnan().all()


def test_landmark_reads_the_last_key_and_costs_nothing():
    pool = make_pool("landmark")
    assert pool.repr_buffers == [] and pool.repr_stamps == []
    keys = torch.randn(PAGE, 2, 8)
    pool.k_buffer[1][3 * PAGE : 4 * PAGE] = keys
    assert torch.equal(pool.get_chunk_repr(1, torch.tensor([3]))[0], keys[-1])


def test_alloc_bumps_the_pages_it_hands_out():
    pool = make_pool()
    allocator = make_allocator(pool)
    before = pool.page_version.clone()
    slots = allocator.alloc(3 * PAGE)
    assert bumped(pool, before) == sorted(set((slots // PAGE).tolist()))
    assert len(bumped(pool, before)) == 3


def test_alloc_extend_bumps_only_newly_opened_pages():
    pool = make_pool()
    allocator = make_allocator(pool)
    first = extend(allocator, [0, 0], [20, 16], [-1, -1])
    before = pool.page_version.clone()
    # Sequence 0 goes on in mid-page (20 -> 40), sequence 1 opens a page (16 -> 17).
    more = extend(allocator, [20, 16], [40, 17], [first[19].item(), first[35].item()])
    opened = {int(slot) // PAGE for slot in more if slot % PAGE == 0}
    assert bumped(pool, before) == sorted(opened) and len(opened) == 2
    assert int(first[16]) // PAGE not in opened


def test_alloc_decode_bumps_at_page_starts_only():
    pool = make_pool()
    allocator = make_allocator(pool)
    slots = extend(allocator, [0, 0], [15, 16], [-1, -1])
    before = pool.page_version.clone()
    lens = torch.tensor([16, 17])
    out = allocator.alloc_decode(lens, lens, torch.stack([slots[14], slots[30]]))
    assert bumped(pool, before) == [int(out[1]) // PAGE]
    assert out[0] == slots[14] + 1


def test_no_memory_bumps_nothing():
    pool = make_pool()
    allocator = make_allocator(pool)
    assert allocator.alloc(PAGES * PAGE - PAGE) is not None
    before = pool.page_version.clone()
    assert allocator.alloc(2 * PAGE) is None
    assert extend(allocator, [0], [2 * PAGE], [-1]) is None
    lens = torch.tensor([17, 17])
    last = torch.tensor([15, 31])
    assert allocator.alloc_decode(lens, lens, last) is None
    assert bumped(pool, before) == [] and allocator.available_size() == PAGE


def test_free_and_alloc_again_invalidates():
    """Memory is not cleared when a page is freed; only its next owner's version protects it."""
    pool = make_pool()
    allocator = make_allocator(pool)
    slots = allocator.alloc(PAGES * PAGE)
    pages = torch.unique(slots // PAGE)
    pool.save_chunk_repr(1, pages, torch.ones(PAGES, 2, 16))
    allocator.free(slots[: 2 * PAGE])
    again = torch.unique(allocator.alloc(2 * PAGE) // PAGE)
    assert pool.get_chunk_repr(1, again).isnan().all()
    kept = torch.tensor([p for p in pages.tolist() if p not in again.tolist()])
    assert not pool.get_chunk_repr(1, kept).isnan().any()


@pytest.mark.skipif(
    not hasattr(HSAPagedTokenToKVPoolAllocator, "backup_state"),
    reason="the release's allocators take nothing back",
)
def test_restore_keeps_versions_apart():
    pool = make_pool()
    allocator = make_allocator(pool)
    state = allocator.backup_state()
    pages = torch.unique(allocator.alloc(2 * PAGE) // PAGE)
    pool.save_chunk_repr(1, pages, torch.ones(2, 2, 16))
    allocator.restore_state(state)  # speculative allocation taken back
    again = torch.unique(allocator.alloc(2 * PAGE) // PAGE)
    assert torch.equal(pages, again) and pool.get_chunk_repr(1, again).isnan().all()


def test_clear_leaves_nothing_valid():
    pool = make_pool()
    allocator = make_allocator(pool)
    pages = torch.unique(allocator.alloc(2 * PAGE) // PAGE)
    pool.save_chunk_repr(1, pages, torch.ones(2, 2, 16))
    assert pool.repr_valid(1, pages).all()
    allocator.clear()
    assert not pool.repr_valid(1, torch.arange(PAGES + 1)).any()


# Which layers, which classes


def test_sliding_window_layers_keep_no_representations():
    assert hsa_layer_ids(fake_runner()) == (0, 1, 2, 3)
    assert hsa_layer_ids(fake_runner(sliding=(0, 2))) == (1, 3)
    assert hsa_layer_ids(fake_runner(sliding=(0, 2), layers="0-1")) == (1,)
    with pytest.raises(ValueError, match="leaves no layer for HSA"):
        hsa_layer_ids(fake_runner(sliding=(0, 2), layers="0,2"))


def test_layers_that_ask_for_more_are_refused_unless_they_are_dense():
    runner = fake_runner()
    runner.model.layers[2].xai_temperature_len = 1024
    with pytest.raises(ValueError, match="layers.2, which asks for a temperature"):
        hsa_layer_ids(runner)
    runner.server_args.hsa_layers = "0,1,3"
    assert hsa_layer_ids(runner) == (0, 1, 3)


def test_a_draft_model_shares_the_page_versions_of_its_target():
    """One allocator hands out the pages of both pools, so a hand-out invalidates both representations."""
    target = make_pool(hsa_layers=range(4))
    allocator = make_allocator(target)
    draft = fake_runner(layers="0,9")  # layer 9 is one of the target model
    draft.device, draft.is_draft_worker = "cpu", True
    draft.token_to_kv_pool_allocator = allocator
    draft.server_args.speculative_draft_attention_backend = None
    make = kv_pool_class(draft, MHATokenToKVPool)
    assert make.keywords["hsa_layer_ids"] == (0, 1, 2, 3)
    pool = make(
        target.size, page_size=target.page_size, dtype=torch.bfloat16, head_num=2, head_dim=8, layer_num=4,
        device="cpu", enable_memory_saver=False,
    )  # fmt: skip
    slots = allocator.alloc(target.page_size)
    page = slots[:1] // target.page_size
    for p in (target, pool):
        p.save_chunk_repr(
            0, page, torch.zeros(1, p.head_num, p.repr_pages(0).shape[-1])
        )
        assert p.repr_valid(0, page).all()
    allocator.free(slots)
    allocator.clear()
    assert pool.page_handouts == target.page_handouts == allocator.page_handouts
    assert not pool.repr_valid(0, page).any()
    assert not target.repr_valid(0, page).any()

    draft.server_args.speculative_draft_attention_backend = "triton"
    assert kv_pool_class(draft, MHATokenToKVPool) is MHATokenToKVPool


@pytest.mark.parametrize(
    "kwargs",
    [dict(attn_type=AttentionType.ENCODER_ONLY), dict(is_cross_attention=True)],
)
def test_attention_that_is_not_causal_is_refused(kwargs):
    with pytest.raises(ValueError, match="attention of layers.0, which is not causal"):
        hsa_layer_ids(fake_runner(**kwargs))


def test_other_backends_get_the_stock_classes_and_pay_nothing(monkeypatch):
    runner = fake_runner("triton")
    assert kv_pool_class(runner, MHATokenToKVPool) is MHATokenToKVPool
    assert paged_allocator_class(runner).__name__ == "PagedTokenToKVPoolAllocator"
    assert hsa_pool_setup.page_repr_bytes_per_token(runner) == 0


def test_checkpoints_with_four_bit_keys_are_refused():
    runner = fake_runner()
    runner.kv_cache_dtype, runner.device = torch.uint8, "cuda"
    with pytest.raises(ValueError, match="--kv-cache-dtype bf16"):
        kv_pool_class(runner, MHATokenToKVPool)


# Price


@pytest.mark.parametrize(
    "kind,group",
    [("mean", 1), ("mean_std", 1), ("slow_keys", 1), ("landmark", 1), ("prior", 1), ("prior", 4)],
)  # fmt: skip
def test_the_price_is_what_the_pool_allocates(kind, group):
    """That of prior has a vector and a bias for each query head."""
    pages = 1000
    pool = make_pool(kind, pages=pages, group=group)
    shape = dict(num_kv_heads=2, head_dim=8, page_size=PAGE, group=group)
    price = repr_bytes_per_page(2, **shape, kind=kind, dtype=torch.float32)
    assert pool.page_repr_bytes() == price * (pages + 1)
    plain = MHATokenToKVPool(
        pages * PAGE, page_size=PAGE, dtype=torch.float32, head_num=2, head_dim=8, layer_num=4,
        device="cpu", enable_memory_saver=False,
    )  # fmt: skip
    assert pool.mem_usage - plain.mem_usage == pytest.approx(
        price * (pages + 1) / 2**30
    )


def test_bytes_of_a_7b_model_at_a_million_tokens():
    """32 layers, 32 KV heads of 128 in bf16: mean_std is 1/64 of K + V, slow_keys 9/128."""
    pages = 1_000_000 // 64
    shape = dict(num_kv_heads=32, head_dim=128, page_size=64)
    price = partial(repr_bytes_per_page, 32, **shape, dtype=torch.bfloat16)
    kv = 1_000_000 * 32 * 32 * 128 * 2 * 2
    assert price(kind="mean_std") * pages / kv == pytest.approx(1 / 64, rel=1e-3)
    assert price(kind="slow_keys") * pages / kv == pytest.approx(9 / 128, rel=1e-3)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
