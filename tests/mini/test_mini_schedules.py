# SPDX-License-Identifier: Apache-2.0
"""Random histories of requests: tokens equal those of the request alone, and no page is lost."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from tiny_models import prompt_ids

from sglang.mini import SamplingParams

SHARED = prompt_ids(48, seed=0)
# Prefixes of each other, equal up to the middle of a page, and unrelated.
PROMPTS = (
    SHARED[:1],
    SHARED[:16],
    SHARED[:33],
    SHARED,
    SHARED[:40] + prompt_ids(9, seed=1),
    SHARED[:16] + prompt_ids(20, seed=2),
    prompt_ids(31, seed=3),
    prompt_ids(64, seed=4),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, len(PROMPTS) - 1), st.integers(1, 20)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
    ),
    max_size=25,
)
ENGINES = st.fixed_dictionaries(
    {
        "token_budget": st.sampled_from((96, 112, 160, 512)),
        "chunk_size": st.sampled_from((1, 7, 16, 40, 200)),
        "max_running": st.sampled_from((1, 2, 5)),
        "prefix_cache": st.booleans(),
        "eviction": st.sampled_from(("lru", "lfu")),
    }
)


@pytest.fixture(scope="module")
def small(world):
    return world("qwen3", num_hidden_layers=1, hidden_size=32, intermediate_size=32)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=ENGINES, steps=STEPS, backend=st.sampled_from(("torch", "torch", "hsa")))
def test_random_histories(small, check_books, options, steps, backend):
    if backend == "hsa":
        from sglang.srt.layers.attention.hsa.config import HSAConfig

        options = dict(options, hsa=HSAConfig(topk=100, window_size=16, layers="all"))
    engine = small.engine(backend=backend, page_size=16, **options)
    requests = []
    for action, a, b in steps:
        if action == "submit":
            requests.append(engine.submit(PROMPTS[a], SamplingParams(max_tokens=b, ignore_eos=True)))
        elif action == "cancel" and requests:
            engine.cancel(requests[a % len(requests)])
        elif action == "step":
            for _ in range(a):
                engine.step()
    rounds = 0
    while engine.step():
        rounds += 1
        assert rounds < 5000, "the engine makes no progress"
    for request in requests:
        result, prompt = request.result, request.tokens[: request.result.prompt_tokens]
        assert result.finish_reason in ("length", "cancelled") and result.error is None
        want = small.expected(prompt, 20)[: request.params.max_tokens]
        if result.finish_reason == "cancelled":
            want = want[: len(result.token_ids)]
        assert result.token_ids == want
        assert sum((delta.token_ids for delta in request.deltas), []) == result.token_ids
    check_books(engine)


def test_the_oldest_never_gives_way(small, check_books):
    """Four requests that outgrow the cache: retraction goes from the youngest up, and the order is kept."""
    prompts = [prompt_ids(30 + s, seed=s) for s in range(4)]
    engine = small.engine(page_size=16, token_budget=160)
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    requests = [engine.submit(p, params) for p in prompts]
    while engine.step():
        running = [requests.index(r) for r in engine.scheduler.running]
        waiting = [requests.index(r) for r in engine.scheduler.waiting]
        assert running + waiting == sorted(running + waiting)
        assert requests[0].finished or requests[0].row is not None
    assert engine.stats()["retracted"] > 0
    assert [r.result.token_ids for r in requests] == [small.expected(p, 40) for p in prompts]
    check_books(engine)


def test_a_request_that_waits_takes_nothing(small, check_books):
    """It has its first page in the cache and no room for the rest: meanwhile nothing is held or evicted for it."""
    engine = small.engine(page_size=16, token_budget=112)  # 7 pages
    one = SamplingParams(max_tokens=1)
    other = prompt_ids(17, seed=9)
    for prompt in (SHARED[:17], other):
        engine.generate(prompt, one)
    first = engine.submit(prompt_ids(64, seed=4), SamplingParams(max_tokens=16, ignore_eos=True))
    engine.step()
    prompt = SHARED[:16] + prompt_ids(60, seed=5)
    waits = engine.submit(prompt, SamplingParams(max_tokens=5, ignore_eos=True))
    for _ in range(10):
        engine.step()
        assert waits.row is None and not first.finished
        (node,) = engine.prefix.match(prompt)
        assert engine.kv.refs[node.page] == 1
        assert len(engine.prefix.match(other)) == 1
    while engine.step():
        pass
    assert waits.result.token_ids == small.expected(prompt, 5) and waits.result.cached_tokens == 16
    check_books(engine)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("imef"), st.lists(st.integers(0, 1), max_size=6), st.integers(1, 5)), max_size=40),
    st.sampled_from(("lru", "lfu")),
)
def test_prefix_cache_against_a_dictionary(steps, policy):
    """Requests that insert (i), match (m) and end (f), and evictions (e), against a dictionary of page contents."""
    import torch

    from sglang.mini.kv_cache import PagedKVCache
    from sglang.mini.prefix_cache import PrefixCache

    kv = PagedKVCache(
        1, 1, 1, token_budget=199, page_size=16, max_requests=1, max_tokens=16, device="cpu", dtype=torch.float32
    )
    cache, held, content = PrefixCache(kv, policy), [], {}
    for kind, choice, count in steps:
        # Each choice is a page of 16 equal tokens; the content of a page is its whole prefix.
        tokens = [x for c in choice for x in [c] * 16]
        if kind in "im":
            pages = [node.page for node in cache.match(tokens)]
            for i, page in enumerate(pages):
                assert content[page] == tuple(choice[: i + 1])
            kv.retain(pages)
            cache.count_hit(cache.match(tokens))
            if kind == "i":
                start = 0 if count == 5 else len(pages)  # as if computed at once with another request
                kv.release(pages[start:])
                fresh = kv.allocate(len(choice) - start)
                if fresh is None:
                    kv.release(pages[:start])
                    continue
                pages = pages[:start] + fresh
                for i in range(start, len(choice)):
                    content[pages[i]] = tuple(choice[: i + 1])
                cache.insert(tokens, pages)
            held.append(pages)
        elif kind == "f" and held:
            kv.release(held.pop(count % len(held)))
        elif kind == "e":
            free, possible = kv.free_pages, len(cache.evictable())
            assert cache.evict(count) == min(count, possible) == kv.free_pages - free
        cached = cache.pages()
        users = [page for pages in held for page in pages] + cached
        assert [users.count(page) for page in range(12)] == kv.refs
        assert len(set(cached)) == len(cached)
        assert sorted(kv._free) == [page for page in range(12) if not kv.refs[page]]
