# SPDX-License-Identifier: Apache-2.0
"""sgl.Engine on HiLS checkpoints as published: what the reference's modules compute, landmarks and all."""

import json
from pathlib import Path

import pytest
from hils_checkpoints import FOLDER, NAMES, cases, check_answers, engine_arguments, request


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_reference(run_engine, name):
    """Prompts that end at and beside page ends, in one batch. # trap 14, trap 15, trap 17, trap 19, trap 41, trap 45"""
    some_cases = cases(name)
    [result], info = run_engine(engine_arguments(name), [request(some_cases)], info=True)
    compared, largest = check_answers(some_cases, result)
    print(f"{name}: {len(some_cases)} prompts, {compared} tokens, log-probabilities within {largest:.1e}")
    assert compared > sum(len(case["tokens"]) for case in some_cases) / 2, "most tokens have to be clear"
    counts = info["hsa_counters"]
    assert counts["rows_landmark"] == counts["reprs_written"] > 0
    assert counts["reprs_missing"] == counts["reprs_healed"] == 0
    config = json.loads((FOLDER / name / "config.json").read_text())
    longest = max(len(case["prompt"]) + len(case["tokens"]) for case in some_cases)
    if longest > (config["hils_topk"] + 2) * config["chunk_size"] + config["hils_sliding_window"]:
        assert counts["pages_selected"] < counts["pages_candidate"], "pages have to be left out"


@pytest.mark.parametrize("name", ["qwen_c16", "qwen_c16_g8", "olmo_c16", "olmo_c16_rope"])
def test_the_last_token_selects_the_pages_of_the_reference(engine_child, tmp_path, name):
    some_cases = cases(name)
    job, result = tmp_path / "job.json", tmp_path / "result.json"
    job.write_text(json.dumps([case["prompt"] for case in some_cases]))
    engine_child([Path(__file__).with_name("selections_child.py"), FOLDER / name, job, result])
    left_out = 0
    for case, layers in zip(some_cases, json.loads(result.read_text())):
        expected = case["selected_pages_of_last_token"]
        got = layers[: len(expected)]  # of the prompt; a pass of decode may have begun
        assert [[_pages(head) for head in layer] for layer in got] == [
            [_pages(head) for head in layer] for layer in expected
        ]
        left_out += any(-1 not in head for layer in expected for head in layer)
    assert left_out, "no prompt has more candidates than it selects"


def _pages(head):
    return [page for page in head if page >= 0]
