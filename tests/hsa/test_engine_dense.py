# SPDX-License-Identifier: Apache-2.0
"""sgl.Engine with every page selected is dense attention: same tokens, same logprobs as torch_native."""

import numpy as np
import pytest
from beside_dense import DENSE, EVERY_PAGE, assert_dense_answers
from tiny_models import build, prompt_ids

LENGTHS = (1, 63, 64, 65, 640, 4097)
NEW, ALONE = 140, 70
MODELS = {
    "qwen3-gqa": ("qwen3", {}),
    "llama-mha": ("llama", dict(num_key_value_heads=4, head_dim=32)),
    "gemma2-softcap-window": ("gemma2", {}),
}

# Those whose configuration asks most of HSA, and those that the slow tier compares.
OTHER_CLASSES = ("granite", "granitemoehybrid")
SLOW_CLASSES = ("qwen2", "gemma3_text", "mistral", "phi3", "olmo2")


@pytest.mark.parametrize("model", MODELS)
def test_greedy_tokens_and_logprobs(run_engine, checkpoints, model):
    shape, fields = MODELS[model]
    engine = dict(model_path=str(build(shape, checkpoints, **fields)), max_total_tokens=16384)
    prompts = [prompt_ids(n, seed=n) for n in (*LENGTHS, 65, 640)]
    prompts[-2:] = [prompt_ids(65, seed=1), prompt_ids(640, seed=1)]
    batch = dict(prompts=prompts, max_new_tokens=NEW, logprobs=True)
    # Alone they cross one page boundary, in the batch two.
    alone = [dict(prompts=[p], max_new_tokens=ALONE, logprobs=True) for p in prompts[: len(LENGTHS)]]

    [dense], _ = run_engine({**engine, **DENSE}, [batch], info=True)
    # Alone and cold first; the batch then finds the prompts' pages in the radix cache.
    results, info = run_engine({**engine, **EVERY_PAGE}, [*alone, batch], info=True)
    assert len({tuple(t) for t in dense["tokens"]}) == len(prompts)
    assert all(len(set(t)) > 10 for t in dense["tokens"]), "degenerate tokens prove nothing"
    for i, single in enumerate(results[:-1]):
        assert single["cached"] == [0]
        assert single["tokens"][0] == dense["tokens"][i][:ALONE], f"prompt of {LENGTHS[i]} alone"
        np.testing.assert_allclose(single["logprobs"][0], dense["logprobs"][i][:ALONE], atol=1e-3)
    assert_dense_answers(results[-1], dense)
    assert max(results[-1]["cached"]) >= 4096

    counts = info["hsa_counters"]
    assert counts["rows_sparse"] > 3000 and counts["pages_selected"] == counts["pages_candidate"] > 0
    assert counts["reprs_healed"] == 0


@pytest.mark.parametrize("shape", [*OTHER_CLASSES, *(pytest.param(s, marks=pytest.mark.slow) for s in SLOW_CLASSES)])
def test_other_classes(run_engine, checkpoints, shape):
    """One pass over prompts with a page to select, and over the tokens that follow them."""
    path = str(build(shape, checkpoints))
    request = dict(prompts=[prompt_ids(n, seed=n) for n in (65, 700)], max_new_tokens=8, logprobs=True)
    [dense] = run_engine({"model_path": path, **DENSE}, [request])
    [got], info = run_engine({"model_path": path, **EVERY_PAGE}, [request], info=True)
    assert_dense_answers(got, dense)
    assert info["hsa_counters"]["rows_sparse"] > 0


def test_bfloat16_differs_from_dense_by_no_more_than_its_noise(run_engine, checkpoints):
    """Teacher-forced logprobs of 1000 positions; the noise of bfloat16 is its own distance from float32."""
    path = str(build("qwen3", checkpoints))
    request = dict(prompts=[prompt_ids(1000, seed=5)], max_new_tokens=1, prompt_logprobs=True)

    def logprobs(**engine):
        [result] = run_engine(dict(model_path=path, **engine), [request])
        return np.array(result["prompt_logprobs"][0][1:])

    exact = logprobs(dtype="float32", **DENSE)
    noise = np.abs(logprobs(dtype="bfloat16", **DENSE) - exact)
    error = np.abs(logprobs(dtype="bfloat16", **EVERY_PAGE) - exact)
    assert noise.mean() > 0
    assert error.mean() < 1.2 * noise.mean() and np.quantile(error, 0.99) < 1.5 * np.quantile(noise, 0.99)
