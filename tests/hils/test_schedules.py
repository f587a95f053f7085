# SPDX-License-Identifier: Apache-2.0
"""HiLS however the scheduler cuts, caches, batches, retracts and splits over ranks: the reference's answers."""

from functools import partial

import pytest
from cpu_children import on_ranks
from hils_checkpoints import cases, check_answers, engine_arguments, request


def slow(name):
    """A checkpoint that shows nothing which another one does not, but for a change of its subject."""
    return pytest.param(name, marks=pytest.mark.slow)


SCHEDULES = {
    "chunks-of-a-page": dict(chunked_prefill_size=15),
    "chunks-of-two-pages-mixed": dict(chunked_prefill_size=30, enable_mixed_chunk=True),
    "chunks-of-100": dict(chunked_prefill_size=100),
    "strict": dict(chunked_prefill_size=45, hsa_strict=True),
    "no-radix-no-overlap": dict(disable_radix_cache=True, disable_overlap_schedule=True),
}


def run_alone_and_batched(run_engine, name, **engine):
    """Each prompt alone, all together, and all once more with their answers as prompts; returns (cached tokens, counters)."""
    some_cases = cases(name)
    requests = [request([case]) for case in some_cases] + [request(some_cases)] * 2
    arguments = engine_arguments(name, **engine)
    results, info = run_engine(arguments, requests, info=True)
    for case, result in zip(some_cases, results):
        check_answers([case], result)
    for result in results[-2:]:
        check_answers(some_cases, result)
    counts = info["hsa_counters"]
    assert counts["reprs_missing"] == counts["reprs_healed"] == 0 < counts["rows_landmark"]
    return results[-1]["cached"], counts


@pytest.mark.parametrize(
    "name,schedule", [("qwen_c16", schedule) for schedule in SCHEDULES] + [("olmo_c16", "chunks-of-two-pages-mixed")]
)
def test_schedule_does_not_change_answers(run_engine, name, schedule):
    """# trap 2, trap 4, trap 13, trap 25, trap 26"""
    run_alone_and_batched(run_engine, name, **SCHEDULES[schedule])


@pytest.mark.parametrize("name", ["qwen_c16", slow("olmo_c16")])
def test_prefixes_in_the_radix_cache_keep_their_representations(run_engine, name):
    """Second turns whose prefix ends at a page end, beside it and inside of an answer. # trap 5, trap 46"""
    long = max(cases(name), key=lambda case: len(case["prompt"]))
    whole = long["prompt"] + long["tokens"]
    turns = [whole[:n] for n in (225, 226, 239, 240, 241, 255) if n < len(whole)]
    greedy = dict(max_new_tokens=20, logprobs=True)
    cold_engine = engine_arguments(name, disable_radix_cache=True)
    cold = run_engine(cold_engine, [dict(prompts=[turn], **greedy) for turn in turns])
    first = request([long])
    warm, info = run_engine(
        engine_arguments(name), [first] + [dict(prompts=[turn], **greedy) for turn in turns], info=True
    )
    check_answers([long], warm[0])
    for turn, alone, again in zip(turns, cold, warm[1:]):
        # The last token of a prompt is always computed, and with it its page.
        assert again["cached"] == [(len(turn) - 1) // 15 * 15]
        assert again["tokens"] == alone["tokens"]
        assert again["logprobs"][0] == pytest.approx(alone["logprobs"][0], abs=1e-4)
    assert info["hsa_counters"]["reprs_missing"] == 0


@pytest.mark.parametrize("name", [slow("qwen_c16"), "olmo_c16"])
def test_retracted_requests_answer_the_same(run_engine, name):
    """# trap 27"""
    retracting = partial(run_engine, SGLANG_TEST_RETRACT="1", SGLANG_TEST_RETRACT_INTERVAL="3")
    some_cases = cases(name)
    greedy = dict(max_new_tokens=len(some_cases[0]["tokens"]), logprobs=True)
    batch = dict(prompts=[case["prompt"] for case in some_cases], **greedy)
    arguments = engine_arguments(name, chunked_prefill_size=30)
    [plain] = run_engine(arguments, [batch])
    [retracted], info = retracting(arguments, [batch], info=True)
    assert retracted["tokens"] == plain["tokens"] == [case["tokens"] for case in some_cases]
    assert info["hsa_counters"]["reprs_missing"] == 0


@pytest.mark.parametrize("name", [slow("qwen_c16"), "olmo_c16"])
def test_two_tensor_parallel_ranks(run_engine, name):
    """Norms over all heads see those of both ranks. # trap 29"""
    run_alone_and_batched(on_ranks(run_engine), name, tp_size=2)
