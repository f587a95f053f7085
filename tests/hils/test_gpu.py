# SPDX-License-Identifier: Apache-2.0
"""HiLS on a CUDA device: the reference's answers, with decode in CUDA graphs and without, alone and for many requests."""

import json

import pytest
import torch
from hils_checkpoints import FOLDER, NAMES, cases, engine_arguments, request

from sglang.test.attention.hsa_release import graphs_up_to

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FLOAT32 = 1e-3
DTYPES = ("float32", "bfloat16")


def answers(name, requests, every=False, **options):
    """Results of an engine, one list per request, and its counters; log-probabilities of ``every`` token if asked for."""
    import sglang as sgl

    arguments = engine_arguments(name, device="cuda", mem_fraction_static=0.3, log_level="error", random_seed=0)
    results = []
    more = dict(top_logprobs_num=json.loads((FOLDER / name / "config.json").read_text())["vocab_size"]) if every else {}
    with sgl.Engine(**{**arguments, **options}) as engine:
        for one in requests:
            outputs = engine.generate(
                input_ids=one["prompts"],
                sampling_params=dict(temperature=0, ignore_eos=True, max_new_tokens=one["max_new_tokens"]),
                return_logprob=True,
                logprob_start_len=0,
                **more,
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
    counts = compare_with_reference(name, disable_cuda_graph=not graphs)
    assert counts["rows_landmark"] == counts["reprs_written"] > 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", ["qwen_c16", "olmo_c16"])
def test_two_ranks_are_the_reference(name):
    """Each with half of the KV heads, in CUDA graphs, with pages left out; float32 hardly ever moves one over the threshold."""
    counts = compare_with_reference(name, tp_size=2)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


def compare_with_reference(name, **options):
    """A batch of all cases and one alone, in float32; returns the counters."""
    some_cases = cases(name)
    batch, alone = request(some_cases), request(some_cases[-1:])
    [outputs, [one]], counts = answers(name, [batch, alone], dtype="float32", **options)
    for case, output in zip([*some_cases, some_cases[-1]], [*outputs, one]):
        ours = logprobs(output, "input_token_logprobs")
        assert ours == pytest.approx(case["prompt_logprobs"], abs=FLOAT32)
        clear = next((j for j, gap in enumerate(case["gaps"]) if gap <= 10 * FLOAT32), len(case["tokens"]))
        assert output["output_ids"][:clear] == case["tokens"][:clear]
        ours = logprobs(output, "output_token_logprobs")[:clear]
        assert ours == pytest.approx(case["logprobs"][:clear], abs=FLOAT32)
    assert counts["reprs_missing"] == counts["reprs_healed"] == 0
    return counts


# Mean and median Kullback-Leibler divergence from float32. With eight random landmarks per page rounding swaps a few
# pages; the torch ops on a CPU differ from float32 as much (5.4e-4 in the mean, 4.6e-3 with qwen_c16_g8).
@pytest.mark.parametrize(
    "name,mean,median", [("qwen_c64", 1e-3, 1e-3), ("olmo_c64", 1e-3, 1e-3), ("qwen_c16_g8", 1e-2, 2e-3)]
)
def test_bf16_differs_by_its_rounding(name, mean, median):
    some_cases = [case for case in cases(name) if len(case["prompt"]) < 300]
    one = request(some_cases)
    full, rounded = (distributions(answers(name, [one], dtype=dtype, every=True)[0][0]) for dtype in DTYPES)
    kl = (full.exp() * (full - rounded)).sum(dim=-1)
    print(f"{name}: KL of bfloat16 {kl.mean():.1e} in the mean, {kl.median():.1e} median, {kl.max():.1e} at most")
    assert len(kl) > 100 and kl.mean() < mean and kl.median() < median


def distributions(outputs):
    """Log-probabilities of the prompts' tokens but the first ``[N, vocab]``."""
    rows = []
    for output in outputs:
        for entries in output["meta_info"]["input_top_logprobs"][1:]:
            by_id = {token: logprob for logprob, token, _ in entries}
            rows.append([by_id[token] for token in range(len(by_id))])
    return torch.tensor(rows)


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_inference(name):
    """Each prompt alone and among all, to the bit."""
    some_cases = cases(name)
    alone = [request([case]) for case in some_cases]
    options = dict(dtype="bfloat16", enable_deterministic_inference=True)
    [together, *apart], counts = answers(name, [request(some_cases), *alone], **options)
    for among, [one] in zip(together, apart):
        length = len(one["output_ids"])
        assert among["output_ids"][:length] == one["output_ids"]
        for which in ("input_token_logprobs", "output_token_logprobs"):
            ours = logprobs(one, which)
            assert logprobs(among, which)[: len(ours)] == ours
    assert counts["rows_landmark"] == counts["reprs_written"] > 0


def test_requests_beyond_the_largest_graph():
    """More than the graphs are captured for: eager steps with buffers of their own."""
    some_cases = cases("qwen_c16")
    case = next(case for case in some_cases if len(case["prompt"]) == 46)
    many = dict(prompts=[case["prompt"]] * 40, max_new_tokens=40)
    [outputs], counts = answers("qwen_c16", [many], dtype="float32", max_running_requests=64, **graphs_up_to(8))
    clear = next((j for j, gap in enumerate(case["gaps"]) if gap <= 10 * FLOAT32), 40)
    assert {tuple(output["output_ids"][:clear]) for output in outputs} == {tuple(case["tokens"][:clear])}
    assert counts["reprs_missing"] == 0
