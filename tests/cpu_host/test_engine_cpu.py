# SPDX-License-Identifier: Apache-2.0
"""sgl.Engine on a CPU: greedy tokens equal to Hugging Face transformers.

Pages of 64 and sliding windows start as on a host that has not set SGLANG_USE_CPU_ENGINE.
"""

import pytest
from cpu_children import run_child
from tiny_models import build, hf_greedy, prompt_ids

PROMPT, NEW, REUSED = 200, 64, 20


def greedy_with_hit(run_engine, path, prompt, expected, start=run_child, **engine):
    """One request, then its continuation, which finds the prompt in the radix cache; returns the cached counts."""
    requests = [
        dict(prompts=[prompt], max_new_tokens=NEW),
        dict(prompts=[prompt + expected[:REUSED]], max_new_tokens=NEW - REUSED),
    ]
    engine = dict(model_path=str(path), attention_backend="torch_native", **engine)
    first, second = run_engine(engine, requests, start=start)
    assert first["tokens"] == [expected]
    assert second["tokens"] == [expected[REUSED:]]
    assert first["cached"] == [0]
    return second["cached"][0]


# With pages of 64, a hit is whole pages: 192 of the 220 tokens. Single slots leave out the last token only.
@pytest.mark.parametrize("page_size, cached", [(64, 192), (1, 219)])
def test_qwen3_equals_transformers(run_engine, engine_child, checkpoints, page_size, cached):
    path = build("qwen3", checkpoints)
    prompt = prompt_ids(PROMPT, seed=1)
    expected = hf_greedy(path, prompt, NEW)
    assert len(set(expected)) > 16, "degenerate greedy tokens prove nothing"
    start = run_child if page_size == 64 else engine_child
    assert greedy_with_hit(run_engine, path, prompt, expected, start, page_size=page_size) == cached


def test_gemma2_equals_transformers(run_engine, checkpoints):
    """Windowed layers, capped attention logits and capped final logits; the prompt is three windows long."""
    path = build("gemma2", checkpoints, sliding_window=64)
    prompt = prompt_ids(PROMPT, seed=1)
    expected = hf_greedy(path, prompt, NEW)
    for other in (dict(sliding_window=4096), dict(sliding_window=64, attn_logit_softcapping=None)):
        assert hf_greedy(build("gemma2", checkpoints, **other), prompt, NEW) != expected
    assert greedy_with_hit(run_engine, path, prompt, expected, page_size=64) == 192


def test_batch_chunks_and_partial_pages(run_engine, checkpoints):
    """Odd lengths together, prefilled in chunks and mixed with decoding, under the memory pool's own checks."""
    path = build("qwen3", checkpoints, num_key_value_heads=4, head_dim=32)
    prompts = [prompt_ids(length, seed=length) for length in (1, 63, 64, 65, 127, 300)]
    expected = [hf_greedy(path, prompt, 24) for prompt in prompts]
    engine = dict(
        model_path=str(path),
        attention_backend="torch_native",
        page_size=64,
        chunked_prefill_size=128,
        enable_mixed_chunk=True,
    )
    requests = [dict(prompts=prompts, max_new_tokens=24)] * 2
    cold, warm = run_engine(engine, requests, SGLANG_DEBUG_MEMORY_POOL="1")
    assert cold["tokens"] == expected
    assert warm["tokens"] == expected
    # A prompt is reused up to the last whole page that leaves a token to compute.
    assert warm["cached"] == [(len(prompt) - 1) // 64 * 64 for prompt in prompts]
