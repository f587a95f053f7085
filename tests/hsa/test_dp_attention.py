# SPDX-License-Identifier: Apache-2.0
"""Data-parallel attention: ranks with requests of their own, idle ranks and rows that belong to none give one rank's tokens."""

from functools import partial

import pytest
from cpu_children import on_ranks
from hf_oracle import greedy
from test_engine_sparse import ORACLE, SPARSE
from tiny_models import build, hf_greedy, prompt_ids

from sglang.srt.layers.attention.hsa.compat import graphs_hold_metadata

NEW = 24
LENGTHS = (700, 130, 64, 1, 333)
RANKS = dict(enable_dp_attention=True, dp_size=2)
# SGLang divides the size of a chunk by the ranks.
CHUNKS = dict(chunked_prefill_size=256, enable_mixed_chunk=True)

pytestmark = pytest.mark.skipif(not graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier")


@pytest.fixture(scope="module")
def path(checkpoints):
    return build("qwen3", checkpoints)


@pytest.fixture(scope="module")
def prompts():
    return [prompt_ids(n, seed=n) for n in LENGTHS]


def run(run_engine, path, prompts, tp_size, **options):
    """(tokens of the first prompt alone while other ranks are idle, of all prompts, of all once more; each rank's counters)."""
    run_ranks = partial(on_ranks(run_engine, tp_size // 2), client="dp_attention_child.py", info=True)
    batch = dict(prompts=prompts, max_new_tokens=NEW)
    requests = [dict(prompts=prompts[:1], max_new_tokens=NEW), batch, batch]
    results, info = run_ranks(dict(model_path=str(path), tp_size=tp_size, **{**SPARSE, **RANKS, **options}), requests)
    assert max(results[2]["cached"]) > 0
    return [result["tokens"] for result in results], info["of_each_rank"]


def test_two_ranks_equal_the_brute_force_model(run_engine, path, prompts):
    tokens, counts = run(run_engine, path, prompts, tp_size=2, **CHUNKS)
    want = [greedy(path, prompt, NEW, ORACLE) for prompt in prompts]
    assert tokens == [want[:1], want, want]
    assert want[0] != hf_greedy(path, prompts[0], NEW), "selection has to matter for this prompt"
    assert len(counts) == 2
    for count in counts:
        assert 0 < count["pages_selected"] < count["pages_candidate"] and count["reprs_healed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_page_is_what_transformers_computes(run_engine, path, prompts, ranks):
    """Of four ranks two share the heads of each half of the requests, and prompts of an odd length get a row more."""
    tokens, counts = run(run_engine, path, prompts, tp_size=ranks, hsa_topk=10**6)
    want = [hf_greedy(path, prompt, NEW) for prompt in prompts]
    assert tokens == [want[:1], want, want]
    for count in counts:
        assert count["pages_selected"] == count["pages_candidate"] > 0 == count["reprs_healed"]
