# SPDX-License-Identifier: Apache-2.0
"""sgl.Engine with few pages selected: the oracle's tokens, however the scheduler cuts, caches and batches."""

import os
from functools import partial

import pytest
from cpu_children import on_ranks
from hf_oracle import greedy
from tiny_models import build, hf_greedy, prompt_ids

from sglang.srt.layers.attention.hsa.compat import graphs_hold_metadata
from sglang.test.attention.hsa_oracle import Options
from sglang.test.attention.hsa_release import replicas_have_cores

NEW = 48
LENGTHS = (700, 1500, 130, 64, 1, 333)
SPARSE = dict(
    attention_backend="hsa", hsa_topk=2, hsa_window_size=128, hsa_layers="all", hsa_prefill="sparse", hsa_strict=True, max_total_tokens=16384
)  # fmt: skip
ORACLE = Options(topk=2, window_size=128, kind="slow_keys", strategy="head")
SCHEDULES = {
    "whole": dict(chunked_prefill_size=-1),
    "chunk-64": dict(chunked_prefill_size=64),
    "chunk-100-mixed": dict(chunked_prefill_size=100, enable_mixed_chunk=True),
    "chunk-1000": dict(chunked_prefill_size=1000),
    "no-radix": dict(chunked_prefill_size=-1, disable_radix_cache=True),
    "no-overlap-mixed": dict(chunked_prefill_size=256, enable_mixed_chunk=True, disable_overlap_schedule=True),
}


@pytest.fixture(scope="module")
def path(checkpoints):
    return build("qwen3", checkpoints)


@pytest.fixture(scope="module")
def prompts():
    return [prompt_ids(n, seed=n) for n in LENGTHS]


def run_alone_and_batched(run_engine, path, prompts, **engine):
    """Every prompt alone, all together, and all together once more; returns (tokens, cached, counters)."""
    requests = [dict(prompts=[p], max_new_tokens=NEW) for p in prompts]
    requests += [dict(prompts=prompts, max_new_tokens=NEW)] * 2
    results, info = run_engine(dict(model_path=str(path), **{**SPARSE, **engine}), requests, info=True)
    alone = [r["tokens"][0] for r in results[: len(prompts)]]
    return [alone, results[-2]["tokens"], results[-1]["tokens"]], results[-1]["cached"], info["hsa_counters"]


@pytest.fixture(scope="module")
def expected(run_engine, path, prompts):
    """Tokens of each prompt run alone, cold and in one piece; the first one is checked against the oracle below."""
    (alone, batched, again), cached, counts = run_alone_and_batched(run_engine, path, prompts, **SCHEDULES["whole"])
    assert alone == batched == again
    assert max(cached) >= 1472 and 0 < counts["pages_selected"] < counts["pages_candidate"]
    return alone


def test_tokens_equal_the_brute_force_model(path, prompts, expected):
    assert expected[0] == greedy(path, prompts[0], NEW, ORACLE)
    assert expected[0] != hf_greedy(path, prompts[0], NEW), "selection has to matter for this prompt"


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != "whole"])
def test_schedule_does_not_change_tokens(run_engine, path, prompts, expected, schedule):
    tokens, cached, counts = run_alone_and_batched(run_engine, path, prompts, **SCHEDULES[schedule])
    assert tokens == [expected] * 3
    assert (max(cached) > 0) == (schedule != "no-radix")
    assert 0 < counts["pages_selected"] < counts["pages_candidate"] and counts["reprs_healed"] == 0


def test_ranks_that_share_a_kv_head_choose_for_their_own_query_heads(run_engine, checkpoints, prompts):
    """Four query heads of one KV head on two ranks, which each keep its keys and their own choice."""
    path = build("qwen3", checkpoints, num_key_value_heads=1)
    prompt = prompts[0]
    want = greedy(path, prompt, NEW, ORACLE, kv_copies=2)
    engine = dict(model_path=str(path), tp_size=2, **SPARSE)
    requests = [dict(prompts=[prompt], max_new_tokens=NEW)] * 2
    results, info = on_ranks(run_engine)(engine, requests, info=True, client="shared_kv_heads_child.py")
    assert [result["tokens"][0] for result in results] == [want] * 2 and results[1]["cached"][0] > 0
    assert want != greedy(path, prompt, NEW, ORACLE), "the choice of all four heads has to be another"
    counts = info["hsa_counters"]
    assert 0 < counts["pages_selected"] <= ORACLE.topk * counts["rows_sparse"]


def test_two_tensor_parallel_ranks(run_engine, path, prompts, expected):
    """Each rank has one of the two KV heads; the counters are the first rank's."""
    run_ranks = on_ranks(run_engine)
    tokens, cached, counts = run_alone_and_batched(run_ranks, path, prompts, tp_size=2)
    assert tokens == [expected] * 3
    assert max(cached) > 0 and counts["reprs_healed"] == 0
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    assert counts["pages_selected"] <= ORACLE.topk * counts["rows_sparse"], "pages for more than one KV head"


@pytest.mark.skipif(not graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier")
def test_two_pipeline_stages(run_engine, path, prompts, expected):
    """Each stage has one of the two layers, with pages and versions of its own; the counters are the first stage's."""
    run_stages = partial(run_engine, **cores_of_processes())
    schedule = dict(chunked_prefill_size=100, disable_overlap_schedule=True)
    tokens, cached, counts = run_alone_and_batched(run_stages, path, prompts, pp_size=2, **schedule)
    assert tokens == [expected] * 3
    assert max(cached) > 0 and counts["reprs_healed"] == 0
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


def cores_of_processes():
    """Since v0.5.23 SGLang wants to be told the cores of replicas and stages, too."""
    cores = sorted(os.sched_getaffinity(0))
    return dict(SGLANG_CPU_OMP_THREADS_BIND=f"{cores[0]}|{cores[-1]}") if replicas_have_cores() else {}


def test_two_replicas(run_engine, path, prompts, expected):
    """Data parallel: each replica is an engine of its own."""
    tokens, _, counts = run_alone_and_batched(partial(run_engine, **cores_of_processes()), path, prompts, dp_size=2)
    assert tokens == [expected] * 3
    assert 0 < counts["pages_selected"] < counts["pages_candidate"] and counts["reprs_healed"] == 0


@pytest.mark.parametrize(
    "options,oracle",
    [
        (
            dict(hsa_selection_strategy="softmax_head", hsa_chunk_repr="mean_std", hsa_weight_mode="score"),
            dict(strategy="softmax_head", kind="mean_std", mode="score"),
        ),
        (
            dict(hsa_selection_strategy="head", hsa_chunk_repr="landmark", hsa_sink_pages=0, page_size=32),
            dict(strategy="head", kind="landmark", sink_pages=0, page_size=32),
        ),
    ],
)
def test_other_options_equal_the_brute_force_model(run_engine, path, options, oracle):
    prompt = prompt_ids(500, seed=8)
    [result] = run_engine(
        dict(model_path=str(path), **{**SPARSE, **options}), [dict(prompts=[prompt], max_new_tokens=24)]
    )
    assert result["tokens"][0] == greedy(path, prompt, 24, Options(**{**vars(ORACLE), **oracle}))


def test_the_first_layer_is_dense_unless_it_is_named(run_engine, path, prompts, expected):
    """Decode, too, then has layers of both kinds."""
    engine = {name: value for name, value in SPARSE.items() if name != "hsa_layers"}
    request = dict(prompts=prompts[:1], max_new_tokens=NEW)
    [result], info = run_engine(dict(model_path=str(path), **engine), [request], info=True)
    assert result["tokens"][0] == greedy(path, prompts[0], NEW, ORACLE, dense_layers={0}) != expected[0]
    counts = info["hsa_counters"]
    positions = range(len(prompts[0]) + NEW - 1)
    sparse = sum((i - 127) // 64 > 1 for i in positions)  # of one layer: beyond the first page and the window
    assert 0 <= counts["rows_sparse"] - sparse <= 1, "the scheduler may run a step ahead"
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


@pytest.mark.parametrize("stretch", ["dense", "577"])
def test_dense_prefill_and_sparse_decode(run_engine, path, prompts, expected, stretch):
    """However the prompt is cut; the next round finds the pages of both in the radix cache."""
    rows = len(prompts[0]) if stretch == "dense" else int(stretch)
    want = greedy(path, prompts[0], NEW, ORACLE, dense_rows=rows)
    assert want != expected[0]
    request = dict(prompts=prompts[:1], max_new_tokens=NEW)
    engine = dict(model_path=str(path), **{**SPARSE, "hsa_prefill": stretch, "chunked_prefill_size": 256})
    results, info = run_engine(engine, [request, request], info=True)
    assert [r["tokens"][0] for r in results] == [want] * 2 and results[1]["cached"][0] > 0
    counts = info["hsa_counters"]
    assert counts["rows_dense"] >= 2 * rows and counts["reprs_healed"] == 0
    assert 0 < counts["rows_sparse"] <= 2 * 2 * (NEW + 1 + len(prompts[0]) - rows)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


def test_layer_lists_and_sliding_window_layers(run_engine, checkpoints):
    """Gemma2: layers 0 and 2 slide and stay dense; the HSA layers keep their soft cap."""
    path = build("gemma2", checkpoints)
    prompt = prompt_ids(500, seed=9)
    request = dict(prompts=[prompt], max_new_tokens=24)
    [result], info = run_engine(dict(model_path=str(path), **SPARSE), [request], info=True)
    assert result["tokens"][0] == greedy(path, prompt, 24, ORACLE)
    both = info["hsa_counters"]["rows_sparse"]
    _, info = run_engine(dict(model_path=str(path), **{**SPARSE, "hsa_layers": "3"}), [request], info=True)
    assert 0 < info["hsa_counters"]["rows_sparse"] == both // 2
