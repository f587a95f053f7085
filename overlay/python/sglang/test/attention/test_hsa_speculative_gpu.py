# SPDX-License-Identifier: Apache-2.0
"""Speculative greedy decoding with HSA on a CUDA device gives the tokens of plain decoding."""

import pytest
import torch

import sglang as sgl
from sglang.test.attention.hsa_fixtures import (
    GPU_ENGINE,
    answers,
    assert_same_up_to_near_ties,
    random_prompts,
    write_random_eagle,
    write_random_model,
)
from sglang.test.attention.hsa_rounding import Float32Model, assert_same_rounding

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

LENGTHS = (1, 63, 64, 65, 700, 1500)
NEW = 80  # over a page boundary from any prompt


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speculative")
    # EAGLE3 reads the hidden states of three layers, which differ from eight layers on.
    target = write_random_model(folder / "target", head_dim=64, num_hidden_layers=8)
    return {
        "target": target,
        "other": write_random_model(folder / "other", seed=1, head_dim=64),
        "EAGLE": write_random_eagle(folder / "eagle", target, eagle3=False),
        "EAGLE3": write_random_eagle(folder / "eagle3", target, eagle3=True),
    }


def generate(checkpoints, **engine):
    """``answers``, and the counters."""
    options = dict(GPU_ENGINE, model_path=checkpoints["target"])
    with sgl.Engine(**{**options, **engine}) as llm:
        outputs = answers(llm, LENGTHS, NEW)
        [state] = llm.get_server_info()["internal_states"]
    return outputs, state["hsa_counters"]


@pytest.fixture(scope="module")
def plain(checkpoints):
    outputs, counts = generate(checkpoints)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    return outputs


CASES = {
    "STANDALONE": dict(draft="target"),
    "STANDALONE-rejected": dict(
        draft="other", disable_radix_cache=True, disable_cuda_graph=True
    ),
    "STANDALONE-dense-draft": dict(
        draft="target", speculative_draft_attention_backend="triton"
    ),
    "EAGLE": dict(draft="EAGLE"),
    "EAGLE-chunked": dict(
        draft="EAGLE", chunked_prefill_size=128, disable_cuda_graph=True
    ),
    "EAGLE3": dict(draft="EAGLE3"),
}


def generate_drafted(checkpoints, case, **engine):
    """``generate`` with drafts, and how many tokens a pass of the target model gives."""
    options = {**CASES[case], **engine}
    draft = options.pop("draft")
    outputs, counts = generate(
        checkpoints,
        speculative_algorithm=case.partition("-")[0],
        speculative_draft_model_path=checkpoints[draft],
        speculative_num_steps=3,
        speculative_eagle_topk=1,
        speculative_num_draft_tokens=4,
        **options,
    )
    passes = sum(out["meta_info"]["spec_verify_ct"] for out in outputs)
    tokens_per_pass = NEW * len(outputs) / passes
    # SGLang feeds a draft everything but the first token, so even the target's own weights guess wrong at times.
    low = 1.1 if draft == "target" else 1
    assert low <= tokens_per_pass < 4
    return outputs, counts


@pytest.mark.parametrize("case", CASES)
def test_drafts_leave_the_tokens_alone(checkpoints, plain, case):
    outputs, counts = generate_drafted(checkpoints, case)
    assert_same_up_to_near_ties(outputs, plain, NEW)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_drafts_on_two_ranks(checkpoints):
    """With every page selected, as close to the model in float32 as plain decoding on one rank."""
    model = Float32Model(checkpoints["target"])
    prompts = 2 * random_prompts(LENGTHS)
    plain, _ = generate(checkpoints, hsa_topk=10**6)
    drafted, counts = generate_drafted(
        checkpoints, "STANDALONE", hsa_topk=10**6, tp_size=2
    )
    assert counts["pages_selected"] == counts["pages_candidate"] > 0
    assert_same_rounding(model.errors(prompts, drafted), model.errors(prompts, plain))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
