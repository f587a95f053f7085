# SPDX-License-Identifier: Apache-2.0
"""docs/model_classes.md says what start-up and the loader say, and what it calls served is dense attention."""

from __future__ import annotations

import re
from pathlib import Path

import model_classes
import pytest
from beside_dense import DENSE, EVERY_PAGE, assert_dense_answers
from model_classes_tool.recipes import recipes
from tiny_models import prompt_ids

from sglang.srt.layers.attention.hsa.model_refusals import SERVED_WITH_IMAGES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "model_classes.py"
PAGE = ROOT / "docs" / "model_classes.md"


def rows() -> dict[str, str]:
    """What the page answers for each class and variant."""
    cells = (line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").split("\n"))
    return {cell[0]: cell[-1] for cell in cells if cell[-1].startswith(("**", "not built"))}


def one_of_each_answer() -> list[str]:
    """Classes of which each has a refusal, an error or a kind of answer that none before it has."""
    seen: set[str] = set()
    chosen = []
    for name, answer in rows().items():
        # Numbers of layers and names in errors make no other answer.
        parts = set(re.sub(r"\d+|(?<=attention of )\S+|: \w+Error.*", "", answer).split(", "))
        if not parts <= seen:
            chosen.append(name.partition(",")[0])
        seen |= parts
    return chosen


def test_every_class_of_the_release_has_a_row():
    released = model_classes.released_classes()
    assert len(released) > 150
    assert set(rows()) == set(recipes(set(released)))


def test_one_row_of_each_answer_is_current(engine_child):
    classes = one_of_each_answer()
    assert 10 < len(classes) < 40
    engine_child([SCRIPT, "--check", *classes])


@pytest.mark.slow
def test_the_page_is_current(engine_child):
    engine_child([SCRIPT, "--check"])


# Draft models run beside another; test_hsa_speculative_gpu.py runs some. test_images.py runs those that read images.
SERVED = {
    name: answer
    for name, answer in rows().items()
    if answer.startswith("**served")
    and name not in SERVED_WITH_IMAGES
    and not recipes({name.partition(",")[0]})[name].draft
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_every_page_selected_is_dense_attention(run_engine, tmp_path, name):
    """With random weights. A class that dense attention cannot run so, either, is skipped with its error."""
    architecture = name.partition(",")[0]
    path = recipes({architecture})[name].write(tmp_path / "model", architecture)
    common = dict(model_path=str(path), load_format="dummy", skip_tokenizer_init=True, context_length=1024)
    hsa = dict(EVERY_PAGE)
    if "--hsa-chunk-repr mean_std" in SERVED[name]:
        hsa["hsa_chunk_repr"] = "mean_std"
    request = dict(prompts=[prompt_ids(n, seed=n) for n in (65, 700)], max_new_tokens=4, logprobs=True)
    # torch_native reads keys of sliding windows from the common pool alone.
    one_pool = dict(disable_hybrid_swa_memory=True)
    if "--disable-hybrid-swa-memory" in SERVED[name]:
        hsa |= one_pool
    try:
        [dense] = run_engine({**common, **DENSE, **one_pool}, [request], random_weights=True)
    except AssertionError as error:
        errors = re.findall(r"^\w*(?:Error|Exception)\b.*$", str(error), re.MULTILINE)
        pytest.skip(f"not with dense attention, either: {errors[0] if errors else str(error)[-200:]}")
    [got], info = run_engine({**common, **hsa}, [request], info=True, random_weights=True)
    assert len({tuple(tokens) for tokens in dense["tokens"]}) > 1, "degenerate tokens prove nothing"
    assert_dense_answers(got, dense)
    assert info["hsa_counters"]["rows_sparse"] > 0
