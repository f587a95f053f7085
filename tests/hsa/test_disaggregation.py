# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode on two engines: what one engine answers, since pages that arrive are represented from their keys."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from http_server import free_port
from tiny_models import build, prompt_ids

from sglang.srt.layers.attention.hsa.compat import graphs_hold_metadata
from sglang.test.attention.hsa_fixtures import GPU_ENGINE
from sglang.test.attention.hsa_release import has_option

NEW, LENGTHS = 48, (700, 130, 64, 1, 1500)
SPARSE = dict(
    attention_backend="hsa", hsa_topk=2, hsa_window_size=128, hsa_layers="all", hsa_prefill="sparse", hsa_strict=True,
    max_total_tokens=16384, max_running_requests=8, mem_fraction_static=0.3, chunked_prefill_size=256,
    device="cpu", dtype="float32",
)  # fmt: skip


@pytest.mark.parametrize(
    "shape",
    [
        "qwen3",
        pytest.param(
            "gpt_oss",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier"),
            ],
        ),
    ],
)
def test_tokens_are_those_of_one_engine(run_engine, checkpoints, shape):
    """Alone, and as a batch of which the prefill engine finds one in its radix cache."""
    path = str(build(shape, checkpoints))
    prompts = [prompt_ids(n, seed=n) for n in LENGTHS]
    requests = [dict(prompts=prompts[:1], max_new_tokens=NEW), dict(prompts=prompts, max_new_tokens=NEW)]
    engine = dict(model_path=path, **SPARSE)
    if shape == "gpt_oss":  # SGLang would choose kernels for its experts that it cannot load on a CPU
        engine |= dict(moe_runner_backend="triton", swa_full_tokens_ratio=0.5)
    one = run_engine(engine, requests)
    engine["disaggregation_bootstrap_port"] = free_port()
    two, info = run_engine(engine, requests, info=True, client="disaggregation_child.py")
    assert [result["tokens"] for result in two] == [result["tokens"] for result in one]
    assert two[1]["prefilled"][0] >= 640
    prefill, decode = (info[role]["hsa_counters"] for role in ("prefill", "decode"))
    assert all(0 < counts["pages_selected"] < counts["pages_candidate"] for counts in (prefill, decode))
    layers, arrived = 2, sum(n // 64 for n in (LENGTHS[0], *LENGTHS))
    assert prefill["reprs_healed"] == 0 and decode["reprs_healed"] == layers * arrived


@pytest.mark.slow
@pytest.mark.parametrize("happens", ["cached", "retracted"])
def test_pages_on_the_decode_engine(run_engine, checkpoints, happens):
    """Found in its radix cache, or taken away while a request decodes and brought back from the host."""
    if happens == "cached" and not has_option("disaggregation_decode_enable_radix_cache"):
        pytest.skip("the release has no such cache")
    prompts = [prompt_ids(n, seed=n) for n in LENGTHS]
    batch = dict(prompts=prompts, max_new_tokens=NEW)
    engine = dict(model_path=str(build("qwen3", checkpoints)), **SPARSE)
    [one] = run_engine(engine, [batch])
    engine["disaggregation_bootstrap_port"] = free_port()
    variables = {}
    if happens == "cached":
        engine["disaggregation_decode_enable_radix_cache"] = True
    else:
        variables = dict(SGLANG_TEST_RETRACT="1", SGLANG_TEST_RETRACT_INTERVAL="3")
    two, info = run_engine(engine, [batch, batch], info=True, client="disaggregation_child.py", **variables)
    assert [result["tokens"] for result in two] == [one["tokens"]] * 2
    layers, arrived = 2, 2 * sum(n // 64 for n in LENGTHS)
    healed = info["decode"]["hsa_counters"]["reprs_healed"]
    if happens == "cached":
        assert healed == layers * arrived / 2, "the second time, all pages are there"
    else:
        assert healed > layers * arrived, "pages that came back from the host"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tokens_are_those_of_one_engine_on_gpus(checkpoints, tmp_path):
    """In CUDA graphs; the decode engine on a second device if there is one."""
    prompts = [prompt_ids(n, seed=n) for n in LENGTHS]
    requests = [dict(prompts=prompts[:1], max_new_tokens=NEW), dict(prompts=prompts, max_new_tokens=NEW)]
    engine = {
        **GPU_ENGINE,
        "model_path": str(build("qwen3", checkpoints, head_dim=64)),
        "enable_deterministic_inference": True,  # engines batch differently
        "hsa_topk": 2,
        "chunked_prefill_size": 256,
        "mem_fraction_static": 0.2,
        "disaggregation_bootstrap_port": free_port(),
    }
    answers = []
    for client in ("engine_client.py", "disaggregation_child.py"):
        job, result = tmp_path / f"{client}.job", tmp_path / f"{client}.result"
        job.write_text(json.dumps({"engine": {**engine, "device": "cuda"}, "requests": requests, "random_weights": False}))
        script = Path(__file__).parents[1] / client
        done = subprocess.run([sys.executable, script, job, result], capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-8000:]
        answers.append(json.loads(result.read_text()))
    one, two = answers
    assert [result["tokens"] for result in two["results"]] == [result["tokens"] for result in one["results"]]
    decode = two["info"]["decode"]["hsa_counters"]
    assert 0 < decode["pages_selected"] < decode["pages_candidate"] and decode["reprs_healed"] > 0


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
