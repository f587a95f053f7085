# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens of the engine equal transformers' generate, for every supported model and schedule."""

import pytest
from tiny_models import prompt_ids

from sglang.mini import SamplingParams
from sglang.mini.model import MODEL_TYPES

MAIN = ("qwen3", "qwen2", "llama", "gemma2", "gemma3_text", "mistral")
NEW = 10
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)
# Around the page size, the sliding windows and the chunk; the long one is the work of many chunks.
LENGTHS = (1, 2, 16, 17, 101, 151, 513, 2000)


@pytest.fixture(scope="module")
def prompts():
    return [prompt_ids(n, seed=n) for n in LENGTHS]


def tokens(results):
    assert [result.error for result in results] == [None] * len(results)
    return [result.token_ids for result in results]


@pytest.mark.parametrize("shape", MAIN)
def test_batch_of_eight_in_chunks_then_alone_with_prefix_hits(world, prompts, shape, check_books):
    w = world(shape)
    expected = [w.expected(prompt, NEW) for prompt in prompts]
    engine = w.engine(page_size=16, chunk_size=257)
    assert tokens(engine.generate(prompts, GREEDY)) == expected
    check_books(engine)
    for prompt, want in zip(prompts, expected):
        result = engine.generate(prompt, GREEDY)
        assert result.token_ids == want
        # All full pages but that of the last token, which runs again.
        assert result.cached_tokens == (len(prompt) - 1) // 16 * 16
    check_books(engine)


@pytest.mark.parametrize("shape", ("qwen3", "gemma2"))
def test_default_page_size(world, prompts, shape):
    engine = world(shape).engine()
    assert engine.stats()["page_size"] == 512
    picked = [prompts[0], prompts[6]]
    assert tokens(engine.generate(picked, GREEDY)) == [world(shape).expected(p, NEW) for p in picked]


@pytest.mark.parametrize("shape", sorted(set(MODEL_TYPES) - set(MAIN)))
def test_further_models(world, prompts, shape):
    w, picked = world(shape), [prompts[0], prompts[4], prompts[6]]
    engine = w.engine(page_size=32, chunk_size=100)
    expected = [w.expected(p, NEW) for p in picked]
    assert tokens(engine.generate(picked, GREEDY)) == expected
    assert tokens(engine.generate(picked, GREEDY)) == expected


@pytest.mark.parametrize("policy", ("lru", "lfu"))
def test_eviction(world, policy, check_books):
    """Eight prompts of 100 tokens take turns on a cache of 256."""
    w = world("qwen3")
    prompts = [prompt_ids(100, seed=s) for s in range(8)]
    engine = w.engine(page_size=16, token_budget=256, eviction=policy)
    for _ in range(2):
        for prompt in prompts:
            assert engine.generate(prompt, GREEDY).token_ids == w.expected(prompt, NEW)
    assert engine.stats()["pages_evicted"] > 50
    check_books(engine)


def test_policies_keep_what_they_promise(world):
    """A prompt used often survives a scan of others under LFU and not under LRU."""
    hits = {}
    for policy in ("lru", "lfu"):
        engine = world("qwen3").engine(page_size=16, token_budget=256, eviction=policy)
        often, scan = prompt_ids(65, seed=0), [prompt_ids(65, seed=s) for s in range(1, 6)]
        one = SamplingParams(max_tokens=1)
        for prompt in [often] * 3 + scan:
            engine.generate(prompt, one)
        hits[policy] = engine.generate(often, one).cached_tokens
    assert hits == {"lru": 0, "lfu": 64}


def test_requests_that_outgrow_the_cache_wait_and_finish(world, check_books):
    """Four requests fit at first and not at the end: the youngest gives its pages back and runs later."""
    w = world("qwen3")
    prompts = [prompt_ids(30 + s, seed=s) for s in range(4)]
    engine = w.engine(page_size=16, token_budget=160, prefix_cache=False)
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    assert tokens(engine.generate(prompts, params)) == [w.expected(p, 40) for p in prompts]
    assert engine.stats()["retracted"] > 0
    check_books(engine)


def test_after_cancellation(world, check_books):
    w = world("qwen3")
    a, b, c = (prompt_ids(n, seed=n) for n in (300, 40, 50))
    engine = w.engine(page_size=16, chunk_size=64)
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    long, short, queued = (engine.submit(p, params) for p in (a, b, c))
    engine.step()
    assert long.row is not None and long.computed < 300  # in the middle of its prompt
    engine.cancel(long)
    for _ in range(5):
        engine.step()
    engine.cancel(queued)
    while engine.step():
        pass
    assert long.result.finish_reason == queued.result.finish_reason == "cancelled"
    assert short.result.token_ids == w.expected(b, 30)
    check_books(engine)
    # What the cancelled request left in the prefix cache is right.
    result = engine.generate(a, params)
    assert result.cached_tokens >= 64 and result.token_ids == w.expected(a, 30)


def test_shared_prefixes_share_pages(world, check_books):
    """Eight prompts with 160 tokens in common: the first computes them, the others do not, and pages are counted."""
    w = world("llama")
    shared = prompt_ids(160, seed=0)
    prompts = [shared + prompt_ids(5, seed=s) for s in range(1, 9)]
    engine = w.engine(page_size=16, chunk_size=165)
    requests = [engine.submit(p, GREEDY) for p in prompts]
    while any(r.row is None for r in requests):
        engine.step()
    assert [r.result.cached_tokens for r in requests] == [0] + [160] * 7
    assert {tuple(r.pages[:10]) for r in requests} == {tuple(requests[0].pages[:10])}
    while engine.step():
        pass
    assert [r.result.token_ids for r in requests] == [w.expected(p, NEW) for p in prompts]
    check_books(engine)


def test_duplicates_are_merged(world, check_books):
    """Two requests compute the same pages at once; the second one's give way to the first one's."""
    w, prompt = world("qwen3"), prompt_ids(40, seed=3)
    engine = w.engine(page_size=16)
    first, second = engine.submit(prompt, GREEDY), engine.submit(prompt, GREEDY)
    engine.step()
    assert first.pages[:2] == second.pages[:2] and first.pages[2] != second.pages[2]
    while engine.step():
        pass
    assert first.result.token_ids == second.result.token_ids == w.expected(prompt, NEW)
    check_books(engine)
