# SPDX-License-Identifier: Apache-2.0
"""The trained checkpoints, served on a CPU: dense and HSA answer, the window alone does not; what was trained for HSA does."""

from pathlib import Path

import pytest
from benchmarks.retrieval import samples, tasks, window_only

NEEDLE = Path(__file__).resolve().parents[2] / "examples" / "needle"
CHECKPOINT = NEEDLE / "checkpoint"
# 54 candidate pages, of which HSA attends 8; the facts lie 2,000 tokens and more before the question.
LENGTH, DEPTH, TOPK = 4096, 0.3, 8
ASKED = [(task, seed) for task in ("single", "multikey", "variables", "frequent") for seed in (0, 1)]
ENGINES = {
    "trained for HSA": dict(model_path=str(NEEDLE / "checkpoint-hils"), page_size=63, attention_backend="hsa"),
    "dense": dict(attention_backend="torch_native"),
    "hsa": dict(attention_backend="hsa", hsa_prefill="sparse", hsa_topk=TOPK),
    "window": dict(attention_backend="torch_native", json_model_override_args=window_only.override()),
}


@pytest.fixture(scope="module")
def scores(run_engine):
    """Exact answers of each engine, out of ``len(ASKED)``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    asked = [samples.make(task, LENGTH, DEPTH, seed, lambda text: len(tokenizer.encode(text))) for task, seed in ASKED]
    found = {}
    for name, options in ENGINES.items():
        (result,), info = run_engine(
            {**dict(model_path=str(CHECKPOINT), page_size=64, max_total_tokens=40960, context_length=8192), **options},
            [dict(prompts=[tokenizer.encode(s.prompt) for s in asked], max_new_tokens=24)],
            info=True,
            SGLANG_EXTERNAL_MODEL_PACKAGE=window_only.__name__,
        )
        replies = map(tokenizer.decode, result["tokens"])
        found[name] = sum(tasks.grade(s.answers, s.pattern, reply).exact for s, reply in zip(asked, replies))
        if options["attention_backend"] == "hsa":
            counters = info["hsa_counters"]
            assert 0 < counters["pages_selected"] < counters["pages_candidate"]
    return found


def test_dense_answers(scores):
    assert scores["dense"] >= len(ASKED) - 1


def test_selection_finds_what_dense_finds(scores):
    assert scores["hsa"] >= scores["dense"] - 1


def test_the_window_alone_does_not(scores):
    assert scores["window"] <= 1 < scores["hsa"]


def test_landmarks_find_what_dense_attention_finds(scores):
    assert scores["trained for HSA"] >= scores["dense"] - 1
