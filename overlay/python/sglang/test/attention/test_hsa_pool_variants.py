# SPDX-License-Identifier: Apache-2.0
"""Representation storage in its other forms: biased kinds, hybrid sliding-window memory, copies and moves of keys."""

from types import SimpleNamespace

import pytest
import torch

from sglang.srt.environ import envs
from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.compat import swa_allocator_class
from sglang.srt.mem_cache import hsa_pool_setup
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.page_repr_allocator import (
    HSAPagedTokenToKVPoolAllocator,
    HSASWATokenToKVPoolAllocator,
)
from sglang.srt.mem_cache.page_repr_pool import HSASWAKVPool, HSATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.test.attention.hsa_harness import Harness
from sglang.test.attention.hsa_release import window_pool_options

PAGE = 16
PAGES = 20
SWATokenToKVPoolAllocator = swa_allocator_class()
TRANSPOSE = window_pool_options()


def make_pool(kind="mean", **kwargs):
    return HSATokenToKVPool(
        PAGES * PAGE, page_size=PAGE, dtype=torch.float16, head_num=2, head_dim=8, layer_num=3,
        device="cpu", enable_memory_saver=False, hsa_layer_ids=(0, 2), repr_kind=kind, **kwargs,
    )  # fmt: skip


def test_eight_bit_keys_keep_wide_representations():
    pool = HSATokenToKVPool(
        PAGES * PAGE, page_size=PAGE, dtype=torch.float8_e4m3fn, head_num=2, head_dim=8, layer_num=1,
        device="cpu", enable_memory_saver=False, hsa_layer_ids=(0,), repr_kind="mean",
        repr_dtype=torch.bfloat16,
    )  # fmt: skip
    assert (
        pool.k_buffer[0].dtype == torch.uint8
        and pool.repr_buffers[0].dtype == torch.bfloat16
    )


# Keys that change behind the backend


def test_moved_keys_invalidate_their_target_page():
    """Copy and move of KV leave the target's old representation behind."""
    with envs.SGLANG_NATIVE_MOVE_KV_CACHE.override(True):
        pool = make_pool()
        pages = torch.arange(1, PAGES + 1)
        pool.save_chunk_repr(0, pages, torch.ones(PAGES, 2, 8))
        pool.move_kv_cache(torch.tensor([5 * PAGE + 3]), torch.tensor([7 * PAGE + 2]))
    assert pages[~pool.repr_valid(0, pages)].tolist() == [5]


def test_offloaded_keys_come_back_without_a_representation(monkeypatch):
    """Retraction that copies to the host and loads into other pages."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    h = Harness(strict=True)
    s, other = h.new_sequence(), h.new_sequence()
    h.step([s, other], [150, 60])
    table = h.req_to_token_pool.req_to_token
    slots = table[s.row, :150].long()
    copy = h.allocator.get_cpu_copy(slots)
    h.allocator.free(slots)
    for buffer in (h.pool.k_buffer[0], h.pool.v_buffer[0]):
        buffer[slots] = float("nan")
    h.step([other], [40])  # takes some of the freed pages

    again = h.allocator.alloc_extend(
        torch.tensor([0]),
        torch.tensor([0]),
        torch.tensor([150]),
        torch.tensor([150]),
        torch.tensor([-1]),
        150,
    )
    table[s.row, :150] = again.int()
    h.allocator.load_cpu_copy(copy, again)
    pages = h.pages_of(s)[: 150 // PAGE]
    assert not h.pool.repr_valid(0, pages).any()
    q, o = h.step([s], [1], decode=True)
    torch.testing.assert_close(
        o.double(), torch.as_tensor(h.expected(q, [s], [1])), atol=3e-5, rtol=0
    )
    assert h.backend.counters.snapshot()["reprs_healed"] == len(pages)


def test_pages_loaded_from_a_host_tier_are_healed():
    """HiCache loads whole pages with ``alloc`` and copies K and V layer by layer: no forward pass writes them."""
    h = Harness(strict=True, layers=2)
    s = h.new_sequence()
    h.step([s], [160], layer=0)
    slots = h.req_to_token_pool.req_to_token[s.row, :160].long()
    host = [
        (k[slots].clone(), v[slots].clone())
        for k, v in zip(h.pool.k_buffer, h.pool.v_buffer)
    ]
    for buffer in (*h.pool.k_buffer, *h.pool.v_buffer):
        buffer[slots] = float("nan")
    h.allocator.free(slots)  # the evicted prefix
    filler = h.allocator.alloc(5 * PAGE)
    loaded = h.allocator.alloc(160)
    assert not torch.equal(loaded, slots)
    for (k, v), k_buffer, v_buffer in zip(host, h.pool.k_buffer, h.pool.v_buffer):
        k_buffer[loaded], v_buffer[loaded] = k, v
    h.req_to_token_pool.req_to_token[s.row, :160] = loaded.int()
    assert not h.pool.repr_valid(0, loaded[::PAGE] // PAGE).any()
    q, o = h.step([s], [30])
    torch.testing.assert_close(
        o.double(), torch.as_tensor(h.expected(q, [s], [30])), atol=3e-5, rtol=0
    )
    assert h.backend.counters.snapshot()["reprs_healed"] == 10
    h.allocator.free(filler)


@pytest.mark.parametrize("group", [False, True])
def test_free_groups_and_sorting_keep_versions(group):
    pool = make_pool()
    allocator = HSAPagedTokenToKVPoolAllocator(
        PAGES * PAGE, PAGE, torch.float16, "cpu", pool, need_sort=True
    )
    slots = allocator.alloc(PAGES * PAGE)
    pages = slots[::PAGE] // PAGE
    pool.save_chunk_repr(0, pages, torch.ones(PAGES, 2, 8))
    if group:
        allocator.free_group_begin()
    allocator.free(slots[: 3 * PAGE])
    allocator.free(slots[6 * PAGE : 8 * PAGE])
    if group:
        allocator.free_group_end()
    assert pool.repr_valid(0, pages).all(), "a freed page is not touched"
    again = allocator.alloc(4 * PAGE)[::PAGE] // PAGE
    assert not pool.repr_valid(0, again).any()
    assert int(pool.repr_valid(0, pages).sum()) == PAGES - 4
    assert allocator.available_size() == PAGE


# Hybrid sliding-window memory


def swa_pool_and_allocator(size_swa=8):
    kwargs = dict(page_size=PAGE, dtype=torch.float32, device="cpu")
    pool = HSASWAKVPool(
        PAGES * PAGE, size_swa * PAGE, head_num=2, head_dim=16, swa_attention_layer_ids=[0, 2],
        full_attention_layer_ids=[1, 3], **TRANSPOSE,
        hsa_layer_ids=(1, 3), repr_kind="mean_std", **kwargs,
    )  # fmt: skip
    allocator = HSASWATokenToKVPoolAllocator(
        PAGES * PAGE, size_swa * PAGE, kvcache=pool, need_sort=False, **kwargs
    )
    return pool, allocator


def extend(allocator, prefix, length, last=-1):
    prefix, lens, last = (torch.tensor([x]) for x in (prefix, length, last))
    return allocator.alloc_extend(prefix, prefix, lens, lens, last, int(lens - prefix))


def test_representations_live_beside_the_full_attention_pool():
    """Sliding-window layers have none; pages are those of the full pool."""
    pool, _ = swa_pool_and_allocator()
    assert [layer for layer in range(4) if pool.has_page_repr(layer)] == [1, 3]
    assert [b.shape for b in pool.repr_buffers] == [(PAGES + 1, 2, 32)] * 2
    plain = SWAKVPool(
        PAGES * PAGE, 8 * PAGE, page_size=PAGE, dtype=torch.float32, head_num=2, head_dim=16, device="cpu",
        swa_attention_layer_ids=[0, 2], full_attention_layer_ids=[1, 3], **TRANSPOSE,
    )  # fmt: skip
    price = hsa_pool_setup.repr_bytes_per_page(
        2, 2, 16, PAGE, "mean_std", torch.float32
    ) * (PAGES + 1)
    assert pool.mem_usage - plain.mem_usage == pytest.approx(price / 2**30)


def test_the_hybrid_allocator_bumps_full_pages_whatever_the_sliding_slots():
    """The two inner allocators hand out different pages; versions follow the full one."""
    pool, allocator = swa_pool_and_allocator()
    allocator.swa_attn_allocator.free_pages = (
        allocator.swa_attn_allocator.free_pages.flip(0)
    )
    before = pool.page_version.clone()
    slots = extend(allocator, 0, 40)
    changed = (pool.page_version != before).nonzero().flatten()
    assert changed.tolist() == sorted(set((slots // PAGE).tolist()))
    assert allocator.page_handouts == pool.page_handouts

    lens = torch.tensor([41])
    before = pool.page_version.clone()
    allocator.alloc_decode(lens, lens, slots[-1:])
    assert torch.equal(pool.page_version, before), "no page was opened"

    pages = slots[:32:PAGE] // PAGE
    pool.save_chunk_repr(1, pages, torch.ones(2, 2, 32))
    allocator.free_swa(slots[:16])  # out of the window: the full pool keeps its page
    assert pool.repr_valid(1, pages).all()
    allocator.free(slots)
    allocator.clear()
    assert not pool.repr_valid(1, torch.arange(PAGES + 1)).any()


def test_the_backend_reads_full_attention_layers_of_hybrid_memory():
    """Writes, representations and attention of an HSA layer, with evicted sliding-window slots."""
    pool, allocator = swa_pool_and_allocator(size_swa=PAGES)
    h = Harness(
        layers=4,
        hsa_layer_ids=(1, 3),
        num_pages=PAGES,
        pool=pool,
        allocator=allocator,
        chunk_repr="mean_std",
        strict=True,
    )
    s = h.new_sequence()
    for chunk in (130, 20):
        q, o = h.step([s], [chunk], layer=1)
        torch.testing.assert_close(
            o.double(), torch.as_tensor(h.expected(q, [s], [chunk])), atol=3e-5, rtol=0
        )
        slots = h.req_to_token_pool.req_to_token[s.row, : s.length - 32].long()
        allocator.free_swa(slots)
        for buffer in (*pool.swa_kv_pool.k_buffer, *pool.swa_kv_pool.v_buffer):
            buffer.fill_(float("nan"))
    counts = h.backend.counters.snapshot()
    assert (
        counts["rows_sparse"] > 0
        and counts["reprs_written"] == 150 // PAGE
        and counts["reprs_healed"] == 0
    )
    assert not pool.repr_valid(3, h.pages_of(s)).any()


def test_class_choice_covers_hybrid_memory(monkeypatch):
    monkeypatch.setattr(hsa_pool_setup, "hsa_layer_ids", lambda runner: (1, 3))
    monkeypatch.setattr(compat, "cpu_has_fp8_caches", lambda: True)
    runner = SimpleNamespace(
        server_args=SimpleNamespace(attention_backend="hsa", hsa_chunk_repr="mean"),
        kv_cache_dtype=torch.float8_e5m2, dtype=torch.bfloat16, device="cuda", is_draft_worker=False,
        model_config=SimpleNamespace(num_hidden_layers=4),
    )  # fmt: skip
    chosen = hsa_pool_setup.kv_pool_class(runner, SWAKVPool)
    assert (
        chosen.func is HSASWAKVPool and chosen.keywords["repr_dtype"] == torch.bfloat16
    )
    assert (
        hsa_pool_setup.kv_pool_class(runner, MHATokenToKVPool).func is HSATokenToKVPool
    )
    chosen = hsa_pool_setup.paged_allocator_class(runner, SWATokenToKVPoolAllocator)
    assert chosen is HSASWATokenToKVPoolAllocator
    runner.device = "cpu"
    with pytest.raises(ValueError, match="on a CPU unless every layer uses HSA"):
        hsa_pool_setup.kv_pool_class(runner, MHATokenToKVPool)
    runner.model_config.num_hidden_layers = 2
    hsa_pool_setup.kv_pool_class(runner, MHATokenToKVPool)
    runner.server_args.attention_backend = "triton"
    assert hsa_pool_setup.kv_pool_class(runner, SWAKVPool) is SWAKVPool
    assert (
        hsa_pool_setup.paged_allocator_class(runner, SWATokenToKVPoolAllocator)
        is SWATokenToKVPoolAllocator
    )


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
