# SPDX-License-Identifier: Apache-2.0
"""A chunk of a long prompt in v0.5.23's unified tree, whose core is compiled: it copies as much of keys as the prompt is long."""

import random
from types import SimpleNamespace

import pytest
import torch
from key_copies import counted_copies
from scheduler_release import token_ids

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.test.attention.hsa_release import no_server

pytestmark = pytest.mark.skipif(not hasattr(BasePrefixCache, "checkpoint"), reason="until 0.5.18 the tree is another one")
PAGE, CHUNK = 16, 32


def copied_tokens(core, chunks):
    """Tokens of keys that Python copies for the last of so many chunks of a prompt."""
    from sglang.srt.mem_cache.unified_cache.components import ComponentType
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    total = CHUNK * chunks
    rows = ReqToTokenPool(2, total + PAGE, "cpu", enable_memory_saver=False)
    pool = PagedTokenToKVPoolAllocator(total + PAGE, PAGE, torch.bfloat16, "cpu", SimpleNamespace(), need_sort=False)
    cache = UnifiedRadixCache(
        CacheInitParams(
            disable=False, req_to_token_pool=rows, token_to_kv_pool_allocator=pool, page_size=PAGE,
            tree_components=(ComponentType.FULL,), tree_core_backend=core,
        )
    )  # fmt: skip
    assert cache._tree_core_backend == (core or "rust")
    rng, sampling = random.Random(chunks), SamplingParams(max_new_tokens=1)
    sampling.normalize(None)
    req = Req("r", "", token_ids(rng.randrange(9999) for _ in range(total)), sampling)
    rows.alloc([req])
    req.init_next_round_input(cache)
    req.lock = cache.lock(req.last_node)
    with counted_copies() as copied:
        for end in range(CHUNK, total + 1, CHUNK):
            copied[0] = 0
            slots = pool.alloc(CHUNK)
            rows.write((req.kv.req_pool_idx, slice(end - CHUNK, end)), slots.int())
            req.kv.kv_committed_len = req.kv.kv_allocated_len = req.extend_end = end
            cache.checkpoint(req, up_to=end)
            req.prefix_len = end
            assert torch.equal(cache.path_device_indices(req.last_node)[-CHUNK:], slots)
    return copied[0]


def test_a_chunk_copies_no_more_than_the_prompt():
    """The core in Python copies the rest of the key at each node, and there is one per chunk."""
    with no_server():
        few, many = (copied_tokens(None, chunks) for chunks in (10, 40))
        assert 0 < many <= 4 * few
        few, many = (copied_tokens("python", chunks) for chunks in (10, 40))
        assert many > 8 * few
