# SPDX-License-Identifier: Apache-2.0
"""Models whose sliding-window layers have a pool of their own, and learned sinks: the tokens of transformers and of the oracle."""

import pytest
from hf_oracle import greedy
from tiny_models import build, hf_greedy, prompt_ids

from sglang.srt.layers.attention.hsa.compat import graphs_hold_metadata
from sglang.test.attention.hsa_oracle import Options

NEW = 40
LENGTHS = (1, 64, 300, 1700)
# On a CPU SGLang would choose kernels for the experts of gpt-oss that it cannot load there.
GPT_OSS = dict(moe_runner_backend="triton")
HSA = dict(
    attention_backend="hsa", hsa_layers="all", hsa_prefill="sparse", hsa_strict=True, max_total_tokens=16384
)  # fmt: skip
EVERY_PAGE = dict(HSA, hsa_topk=10**6)
SPARSE = dict(HSA, hsa_topk=2, hsa_window_size=128)
ORACLE = Options(topk=2, window_size=128, kind="slow_keys", strategy="head")
# Room for the windows of the batch and for a chunk: pages leave the pool and are handed out again.
SMALL = dict(swa_full_tokens_ratio=0.125)

pytestmark = pytest.mark.skipif(not graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier")


@pytest.fixture(scope="module")
def prompts():
    return [prompt_ids(n, seed=n) for n in LENGTHS]


@pytest.fixture(scope="module")
def gpt_oss(checkpoints):
    return build("gpt_oss", checkpoints)


@pytest.fixture(scope="module")
def expected(gpt_oss, prompts):
    return [hf_greedy(gpt_oss, prompt, NEW) for prompt in prompts]


def requests(prompts):
    """The longest prompt alone, all together, and once more from the radix cache."""
    batch = dict(prompts=prompts, max_new_tokens=NEW)
    return [dict(prompts=prompts[-1:], max_new_tokens=NEW), batch, batch]


def assert_tokens(results, expected):
    alone, batch, again = results
    assert alone["tokens"] == expected[-1:] and batch["tokens"] == again["tokens"] == expected
    assert max(again["cached"]) > 0


@pytest.mark.parametrize("chunk", [64, *(pytest.param(n, marks=pytest.mark.slow) for n in (256, -1))])
def test_gpt_oss_is_what_transformers_computes(run_engine, gpt_oss, prompts, expected, chunk):
    """Slots that windows left hold NaN, and pages of both pools have other numbers."""
    engine = dict(model_path=str(gpt_oss), chunked_prefill_size=chunk, **EVERY_PAGE, **GPT_OSS)
    if chunk > 0:
        engine |= SMALL
    results, info = run_engine(engine, requests(prompts), info=True, client="window_pool_child.py")
    assert_tokens(results, expected)
    counts = info["hsa_counters"]
    assert counts["pages_selected"] == counts["pages_candidate"] > 0 == counts["reprs_healed"]


def test_gpt_oss_in_one_pool(run_engine, gpt_oss, prompts, expected):
    engine = dict(model_path=str(gpt_oss), disable_hybrid_swa_memory=True, **EVERY_PAGE, **GPT_OSS)
    assert_tokens(run_engine(engine, requests(prompts)), expected)


def test_sinks_and_few_pages_equal_the_brute_force_model(run_engine, gpt_oss, prompts):
    prompt = prompts[-1][:700]
    engine = dict(model_path=str(gpt_oss), chunked_prefill_size=128, **SPARSE, **GPT_OSS)
    results, info = run_engine(engine, requests([prompt]), info=True, client="window_pool_child.py")
    want = greedy(gpt_oss, prompt, NEW, ORACLE)
    assert_tokens(results, [want])
    assert want != hf_greedy(gpt_oss, prompt, NEW), "selection has to matter for this prompt"
    counts = info["hsa_counters"]
    assert 0 < counts["pages_selected"] < counts["pages_candidate"] and counts["reprs_healed"] == 0


def test_a_dense_layer_keeps_its_sinks(run_engine, gpt_oss, prompts):
    """Layer 1 is dense, 3 uses HSA, and 0 and 2 slide; prompts are dense up to 400 tokens."""
    prompt = prompts[-1][:700]
    engine = dict(model_path=str(gpt_oss), **{**SPARSE, "hsa_layers": "3", "hsa_prefill": "400"}, **GPT_OSS)
    [result] = run_engine(engine, [dict(prompts=[prompt], max_new_tokens=NEW)])
    assert result["tokens"][0] == greedy(gpt_oss, prompt, NEW, ORACLE, dense_layers={1}, dense_rows=400)


@pytest.mark.slow
def test_the_pool_of_windows_saves_memory(run_engine, gpt_oss, prompts, expected):
    """Two of four layers slide: half the memory, and an eighth of the other half. Representations count with the rest."""
    common = dict(model_path=str(gpt_oss), **{**EVERY_PAGE, "max_total_tokens": 1 << 18}, **GPT_OSS)
    request = dict(prompts=prompts[:2], max_new_tokens=NEW)
    used = {}
    for engine in (SMALL, dict(disable_hybrid_swa_memory=True)):
        [result], info = run_engine({**common, **engine}, [request], info=True)
        assert result["tokens"] == expected[:2]
        used[len(used)] = info["memory_usage"]["kvcache"]
    assert 0.55 < used[0] / used[1] < 0.65
