# SPDX-License-Identifier: Apache-2.0
"""The window-only baseline in the engine: transformers' models with a sliding window, token for token."""

import json
import shutil

import pytest
from benchmarks.retrieval import window_only
from tiny_models import build, hf_greedy, prompt_ids

WINDOW, NEW = 64, 32


def qwen3(checkpoints):
    """(full attention, sliding window) with the same weights."""
    sliding = build("qwen3", checkpoints, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0)
    return build("qwen3", checkpoints), sliding


def llama(checkpoints):
    """The same; transformers' Llama has no window, its Mistral is a Llama that has one."""
    path = build("llama", checkpoints)
    sliding = checkpoints / "llama-sliding"
    shutil.copytree(path, sliding)
    config = json.loads((path / "config.json").read_text())
    config.update(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=WINDOW)
    (sliding / "config.json").write_text(json.dumps(config))
    return path, sliding


@pytest.mark.parametrize("model, architecture", [(qwen3, "Qwen3"), (llama, "Llama")], ids=["qwen3", "llama"])
def test_window_only_equals_a_sliding_window(run_engine, checkpoints, model, architecture):
    path, sliding = model(checkpoints)
    prompts = [prompt_ids(200, seed=1), prompt_ids(40, seed=2)]
    expected = [hf_greedy(sliding, prompt, NEW) for prompt in prompts]
    assert expected[0] != hf_greedy(path, prompts[0], NEW), "the window has to matter for this prompt"
    assert expected[1][:20] == hf_greedy(path, prompts[1], 20), "a prompt within the window is attended in full"
    (result,) = run_engine(
        dict(
            model_path=str(path),
            attention_backend="torch_native",
            page_size=64,
            json_model_override_args=window_only.override(WINDOW, architecture),
        ),
        [dict(prompts=prompts, max_new_tokens=NEW)],
        SGLANG_EXTERNAL_MODEL_PACKAGE=window_only.__name__,
    )
    assert result["tokens"] == expected
