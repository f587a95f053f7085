# SPDX-License-Identifier: Apache-2.0
"""sgl.Engine while pages are retracted, shared, aborted, flushed and recycled: every request gets its own answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import build, prompt_ids

from sglang.srt.layers.attention.hsa.compat import cpu_has_fp8_caches

CLIENT = Path(__file__).parent / "storage_client.py"
SPARSE = dict(
    attention_backend="hsa", hsa_topk=2, hsa_window_size=128, hsa_layers="all", hsa_prefill="sparse", hsa_strict=True, chunked_prefill_size=128
)  # fmt: skip


@pytest.fixture(scope="module")
def prompts():
    """Some prompts share their first 300 tokens, in mid-page, or all but the last one."""
    common = prompt_ids(300, seed=1)
    return [
        common + prompt_ids(200, seed=2),
        common + prompt_ids(77, seed=3),
        prompt_ids(511, seed=4),
        common + prompt_ids(200, seed=2)[:-1] + [9],
        prompt_ids(64, seed=5),
        common[:192],
    ]


@pytest.fixture(scope="module")
def drive(checkpoints, engine_child, prompts, tmp_path_factory):
    def run(engine, steps, env=(), **model):
        folder = tmp_path_factory.mktemp("storage")
        job, result = folder / "job.json", folder / "result.json"
        engine = dict(model_path=str(build("qwen3", checkpoints, **model)), **{**SPARSE, **engine})
        job.write_text(json.dumps(dict(engine=engine, prompts=prompts, steps=steps)))
        engine_child([CLIENT, job, result], **dict(env))
        answer = json.loads(result.read_text())
        assert answer["hsa_counters"]["rows_sparse"] > 0
        return answer["results"], answer

    return run


def assert_same(results, expected):
    for i, (got, want) in enumerate(zip(results, expected, strict=True)):
        assert got["tokens"] == want["tokens"], f"request {i}"
        np.testing.assert_allclose(got["logprobs"], want["logprobs"], atol=1e-3)


@pytest.fixture(scope="module")
def alone(drive):
    [results], _ = drive(dict(max_total_tokens=8192, disable_overlap_schedule=True), [("alone", {})])
    assert len({tuple(r["tokens"]) for r in results}) == len(results)
    assert all(r["cached"] == 0 for r in results)
    return results


@pytest.mark.parametrize("overlap", [True, False])
def test_forced_retractions_and_shuffled_shared_prefixes(drive, alone, overlap):
    """A pool for two of the six requests, and a retraction every few passes."""
    [results], answer = drive(
        dict(max_total_tokens=1536, disable_overlap_schedule=not overlap),
        [("together", dict(seed=1, rounds=2))],
        env=dict(SGLANG_TEST_RETRACT="1", SGLANG_TEST_RETRACT_INTERVAL="7"),
    )
    assert_same(results, alone * 2)
    assert sum(r["retractions"] for r in results) >= 4 and max(r["cached"] for r in results) >= 256


def test_shortage_retracts_by_itself(drive, alone):
    """Optimistic admission and a pool that cannot hold what was admitted."""
    [results], answer = drive(
        dict(max_total_tokens=1024, schedule_conservativeness=0.0), [("together", dict(seed=5, rounds=2))]
    )
    assert_same(results, alone * 2)
    assert sum(r["retractions"] for r in results) > 0


def test_aborts_in_mid_prefill(drive, alone):
    """Aborted and cancelled requests that share pages with others"""
    [result, again], _ = drive(
        dict(max_total_tokens=4096), [("aborts", dict(seed=3, extra=8)), ("together", dict(seed=4))]
    )
    assert_same(result["survivors"], alone)
    assert_same(again, alone)
    aborted = [v for v in result["victims"] if v["aborted"]]
    assert any(not v["tokens"] for v in aborted), "one was cut in its prefill"


def test_flush_under_load(drive, alone):
    [result, again], _ = drive(
        dict(max_total_tokens=4096), [("flushes", dict(seed=6, rounds=3)), ("together", dict(seed=7))]
    )
    assert_same(result["results"], alone * 3)
    assert_same(again, alone)
    assert False in result["answers"], "no flush met a running request"


fp8 = pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])


@fp8
@pytest.mark.skipif(not cpu_has_fp8_caches(), reason="the release leaves fp8 on a CPU to intel_amx")
def test_fp8_cache_gives_each_request_its_own_answer(drive, dtype):
    """Chunked, shared and retracted, as alone."""
    (single, together), _ = drive(
        dict(max_total_tokens=2048, kv_cache_dtype=dtype), [("alone", {}), ("together", dict(seed=8))]
    )
    assert_same(together, single)
    assert max(r["cached"] for r in together) >= 128


@fp8
@pytest.mark.skipif(cpu_has_fp8_caches(), reason="the release has fp8 caches on a CPU")
def test_an_fp8_cache_is_refused_where_the_release_has_none(drive, dtype):
    with pytest.raises(AssertionError, match="does not support a torch.float8_.* KV cache on a CPU with this release"):
        drive(dict(max_total_tokens=2048, kv_cache_dtype=dtype), [("alone", {})])


def test_two_thousand_short_requests_leave_nothing_behind(drive):
    """Rows and pages are recycled and all come back"""
    [result], answer = drive(
        dict(max_total_tokens=2048, max_running_requests=32, hsa_strict=False, hsa_window_size=0, page_size=16),
        [("many", dict(count=2000, length=50, concurrency=32))],
        num_hidden_layers=1, hidden_size=32, intermediate_size=32,
    )  # fmt: skip
    assert result["tokens"] == 4000 and result["flushed"]
    assert result["used"] == result["used_after"] == result["running"] == 0
    assert answer["hsa_counters"]["reprs_healed"] == 0
