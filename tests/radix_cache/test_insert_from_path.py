# SPDX-License-Identifier: Apache-2.0
"""Requests in the radix tree: each chunk, and the end, extends the path of its request from the end; the tree is the same."""

import dataclasses
import random
import types

import pytest
import torch
from key_copies import counted_copies
from scheduler_release import token_ids

from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache, EvictParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.test.attention.hsa_release import finish

pytestmark = pytest.mark.skipif(hasattr(BasePrefixCache, "checkpoint"), reason="v0.5.23 has the unified tree")
SLOTS = 4096


class FromRoot(RadixCache):
    """Walks the whole key, as upstream does."""

    def insert(self, params):
        return super().insert(dataclasses.replace(params, start_node=None))

    def match_prefix(self, params):
        return super().match_prefix(dataclasses.replace(params, start_node=None))


class Pools:
    """Request rows and slots of one cache."""

    device = "cpu"

    def __init__(self, rows):
        self.req_to_token = torch.zeros(rows, SLOTS, dtype=torch.int32)
        self.free_slots = list(range(1, SLOTS))

    def write(self, where, values):
        self.req_to_token[where] = values.int()

    def take(self, count):
        taken, self.free_slots = self.free_slots[:count], self.free_slots[count:]
        return torch.tensor(taken, dtype=torch.int32)

    def free(self, slots):
        self.free_slots += slots.tolist()

    def free_segment(self, slots, start_pos):
        self.free(slots)

    def free_segments(self, segments):
        for slots, _ in segments:
            self.free(slots)


class World:
    """One cache and its requests; the same calls on two of them must do the same."""

    def __init__(self, kind, page_size, is_eagle):
        self.pools = Pools(64)
        self.cache = kind(
            CacheInitParams(
                disable=False, req_to_token_pool=self.pools, token_to_kv_pool_allocator=self.pools,
                page_size=page_size, is_eagle=is_eagle,
            )
        )  # fmt: skip

    def begin(self, row, tokens):
        tokens, nothing = token_ids(tokens), token_ids([])
        match = self.cache.match_prefix(MatchPrefixParams(key=RadixKey(tokens[:-1])))
        req = types.SimpleNamespace(
            req_pool_idx=row, extra_key=None, priority=row % 3, origin_input_ids=tokens, output_ids=nothing, fill_ids=nothing,
            prefix_indices=match.device_indices, last_node=match.last_device_node,
            cache_protected_len=len(match.device_indices),
        )  # fmt: skip
        req.pop_committed_kv_cache = lambda: len(req.fill_ids)
        req.get_fill_ids = lambda: req.fill_ids
        self.cache.inc_lock_ref(req.last_node)
        self.pools.write((row, slice(0, len(req.prefix_indices))), req.prefix_indices)
        return req

    def chunk(self, req, count, last):
        done = len(req.prefix_indices)
        req.fill_ids = req.origin_input_ids[: done + count]
        self.pools.write((req.req_pool_idx, slice(done, len(req.fill_ids))), self.pools.take(len(req.fill_ids) - done))
        self.cache.cache_unfinished_req(req, chunked=not last)

    def state(self):
        def tree(node):
            return [
                (list(node.key.token_ids), [int(v) for v in node.value], node.lock_ref, node.hit_count, node.priority),
                sorted((tree(child) for child in node.children.values()), key=lambda below: below[0][0]),
            ]  # fmt: skip

        return (
            tree(self.cache.root_node),
            self.cache.evictable_size(),
            self.cache.protected_size(),
            self.pools.free_slots,
        )


@pytest.mark.parametrize("page_size,is_eagle", [(1, False), (16, False), (1, True), (16, True)])
@pytest.mark.parametrize("seed", range(2))
def test_the_tree_is_that_of_a_walk_from_the_root(page_size, is_eagle, seed):
    rng = random.Random(seed)
    worlds = [World(kind, page_size, is_eagle) for kind in (RadixCache, FromRoot)]
    stems = [[rng.randrange(3) for _ in range(rng.randrange(20, 200))] for _ in range(3)]
    running = []
    splits = evicted = 0
    for row in range(60):
        if len(running) < 4:
            tokens = rng.choice(stems) + [rng.randrange(3) for _ in range(rng.randrange(2, 150))]
            running.append([world.begin(row, list(tokens)) for world in worlds])
        reqs = rng.choice(running)
        total, done = len(reqs[0].origin_input_ids), len(reqs[0].prefix_indices)
        count = min(rng.choice([5, 16, 48, 100]), total - done)
        nodes = len(str(worlds[0].state()[0]))
        for world, req in zip(worlds, reqs):
            world.chunk(req, count, last=done + count == total)
        splits += len(str(worlds[0].state()[0])) != nodes
        assert torch.equal(reqs[0].prefix_indices, reqs[1].prefix_indices)
        assert worlds[0].state() == worlds[1].state()
        if done + count == total:
            running.remove(reqs)
            for world, req in zip(worlds, reqs):
                req.kv_committed_len = total
                finish(world.cache, req, insert=True)
        if rng.random() < 0.2:
            freed = [world.cache.evict(EvictParams(num_tokens=40)).num_tokens_evicted for world in worlds]
            assert freed[0] == freed[1]
            evicted += freed[0]
        assert worlds[0].state() == worlds[1].state()
    assert splits > 20 and evicted > 0


def copied_tokens(kind, chunks):
    """Tokens of keys that the last of so many chunks copies."""
    world = World(kind, 16, False)
    req = world.begin(0, [i % 7919 for i in range(32 * chunks + 1)])
    with counted_copies() as copied:
        for _ in range(chunks):
            copied[0] = 0
            world.chunk(req, 32, last=False)
    return copied[0]


def test_a_chunk_copies_no_more_than_the_prompt():
    """From the root the copies of one chunk grow with its number squared."""
    few, many = (copied_tokens(RadixCache, chunks) for chunks in (10, 40))
    assert many <= 4 * few
    few, many = (copied_tokens(FromRoot, chunks) for chunks in (10, 40))
    assert many > 8 * few
