# SPDX-License-Identifier: Apache-2.0
"""HiLS on the Triton kernels of prompts and of decode, interpreted: the reference's answers, whatever free memory holds."""

import json
from pathlib import Path

import pytest
from hils_checkpoints import cases, check_answers, engine_arguments, request

NEW = 18  # more than a page, so that decode completes one


@pytest.mark.parametrize(
    "name,lengths,options",
    [
        ("qwen_c16", (14, 150), {}),
        ("qwen_c16", (150,), dict(chunked_prefill_size=45)),
        ("qwen_c16_g8", (150,), {}),
        ("olmo_c16", (46, 150), {}),
        ("qwen_c64", (63,), {}),
    ],
)
def test_answers_are_those_of_the_reference(engine_child, tmp_path, name, lengths, options):
    """# trap 1, trap 3, trap 18, trap 20, trap 37, trap 39"""
    some_cases = [case for case in cases(name) if len(case["prompt"]) in lengths]
    assert len(some_cases) == len(lengths)
    for case in some_cases:
        for answer in ("tokens", "logprobs", "gaps"):
            case[answer] = case[answer][:NEW]
    job, result = tmp_path / "job.json", tmp_path / "result.json"
    engine = engine_arguments(name, **options)
    job.write_text(json.dumps({"engine": engine, "requests": [request(some_cases)], "random_weights": False}))
    engine_child([Path(__file__).with_name("kernels_child.py"), job, result], TRITON_INTERPRET="1")
    answer = json.loads(result.read_text())
    check_answers(some_cases, answer["results"][0])
    counts = answer["info"]["hsa_counters"]
    assert counts["reprs_written"] == counts["rows_landmark"] > 0 == counts["reprs_missing"]
    if 150 in lengths:
        assert 0 < counts["pages_selected"] < counts["pages_candidate"]
