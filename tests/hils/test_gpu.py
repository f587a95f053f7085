# SPDX-License-Identifier: Apache-2.0
"""HiLS on a CUDA device: the reference's answers, with decode in CUDA graphs and without, alone and for many requests."""

import pytest
import torch
from hils_checkpoints import NAMES, cases, engine_arguments, request

from sglang.test.attention.hsa_release import graphs_up_to

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FLOAT32 = 1e-3
BF16_MEAN = 0.02


def answers(name, requests, **options):
    """Results of an engine, one list per request, and its counters."""
    import sglang as sgl

    arguments = engine_arguments(name, device="cuda", mem_fraction_static=0.3, log_level="error", random_seed=0)
    results = []
    with sgl.Engine(**{**arguments, **options}) as engine:
        for one in requests:
            outputs = engine.generate(
                input_ids=one["prompts"],
                sampling_params=dict(temperature=0, ignore_eos=True, max_new_tokens=one["max_new_tokens"]),
                return_logprob=True,
                logprob_start_len=0,
            )
            results.append(outputs)
        state = engine.get_server_info()["internal_states"][0]
    return results, state["hsa_counters"]


def logprobs(output, which):
    return [entry[0] for entry in output["meta_info"][which] if entry[0] is not None]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_the_reference(name, graphs):
    """# trap 3, trap 10, trap 12"""
    some_cases = cases(name)
    batch, alone = request(some_cases), request(some_cases[-1:])
    [outputs, [one]], counts = answers(name, [batch, alone], dtype="float32", disable_cuda_graph=not graphs)
    for case, output in zip([*some_cases, some_cases[-1]], [*outputs, one]):
        ours = logprobs(output, "input_token_logprobs")
        assert ours == pytest.approx(case["prompt_logprobs"], abs=FLOAT32)
        clear = next((j for j, gap in enumerate(case["gaps"]) if gap <= 10 * FLOAT32), len(case["tokens"]))
        assert output["output_ids"][:clear] == case["tokens"][:clear]
        ours = logprobs(output, "output_token_logprobs")[:clear]
        assert ours == pytest.approx(case["logprobs"][:clear], abs=FLOAT32)
    assert counts["reprs_missing"] == counts["reprs_healed"] == 0
    assert counts["rows_landmark"] == counts["reprs_written"] > 0


@pytest.mark.parametrize("name", ["qwen_c64", "olmo_c64", "qwen_c16_g8"])
def test_bf16_differs_by_its_rounding(name):
    some_cases = cases(name)
    [outputs], _ = answers(name, [request(some_cases)], dtype="bfloat16")
    differences = [
        abs(a - b)
        for case, output in zip(some_cases, outputs)
        for a, b in zip(logprobs(output, "input_token_logprobs"), case["prompt_logprobs"])
    ]
    mean = sum(differences) / len(differences)
    print(f"{name}: log-probabilities in bfloat16 differ by {mean:.1e} on average, {max(differences):.1e} at most")
    assert mean < BF16_MEAN


def test_requests_beyond_the_largest_graph():
    """More than the graphs are captured for: eager steps with buffers of their own."""
    some_cases = cases("qwen_c16")
    case = next(case for case in some_cases if len(case["prompt"]) == 46)
    many = dict(prompts=[case["prompt"]] * 40, max_new_tokens=40)
    [outputs], counts = answers("qwen_c16", [many], dtype="float32", max_running_requests=64, **graphs_up_to(8))
    clear = next((j for j, gap in enumerate(case["gaps"]) if gap <= 10 * FLOAT32), 40)
    assert {tuple(output["output_ids"][:clear]) for output in outputs} == {tuple(case["tokens"][:clear])}
    assert counts["reprs_missing"] == 0
