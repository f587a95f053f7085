# SPDX-License-Identifier: Apache-2.0
"""A stock server with --attention-backend hsa on a CPU: an OpenAI-style request, server info, metrics, refusals."""

import json
import re
import subprocess
import sys

import pytest
from cpu_children import child_env
from http_server import free_port, get, post, serving
from tiny_models import build


@pytest.fixture(scope="module")
def server(checkpoints, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    options = dict(
        attention_backend="hsa", hsa_topk=4, hsa_layers="all", hsa_prefill="sparse", dtype="float32", max_total_tokens=16384, enable_metrics=True
    )  # fmt: skip
    with serving(log, model_path=str(build("qwen3", checkpoints)), **options) as url:
        yield url, log


def test_chat_request_selects_pages_and_counts_them(server):
    """The production path made the pool, and HSA is what ran"""
    url, log = server
    text = " ".join(f"line {i}: the key is {i * 7919 % 1000}." for i in range(180))
    reply = post(
        url + "/v1/chat/completions",
        dict(
            model="default", temperature=0, max_tokens=8,
            messages=[dict(role="user", content=text)],
        ),
    )  # fmt: skip
    assert reply["usage"]["prompt_tokens"] > 3000 and reply["usage"]["completion_tokens"] > 0
    info = json.loads(get(url + "/get_server_info"))
    counts = info["internal_states"][0]["hsa_counters"]
    assert counts["rows_sparse"] > 2 * 2000
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    assert counts["reprs_written"] >= 2 * (reply["usage"]["prompt_tokens"] // 64)
    # 257 pages of 2 layers of 2 KV heads: 8 channels with a lowest value, a step and 64 codes, and the versions.
    assert info["internal_states"][0]["hsa_chunk_repr_bytes"] == 257 * (2 * (2 * 8 * (4 + 32) + 8) + 8)
    assert info["attention_backend"] == "hsa" and info["page_size"] == 64 and info["hsa_topk"] == 4

    metrics = get(url + "/metrics")
    for name in counts:
        found = re.search(rf"^sglang:hsa_{name}_total{{.*}} ([0-9.e+]+)$", metrics, re.MULTILINE)
        assert found, name
    # The scheduler publishes at its own pace: what is there was counted, and a prefill has been published.
    value = re.search(r"^sglang:hsa_rows_sparse_total{.*} ([0-9.e+]+)$", metrics, re.MULTILINE)
    assert 0 < float(value[1]) <= counts["rows_sparse"]
    assert "Page representations are allocated. #pages: 256, kind: slow_keys, layers: 2" in log.read_text()


@pytest.mark.parametrize(
    "args,message",
    [
        # tests/test_refusals.py has a server that ends before it loads the model.
        pytest.param(
            ["--prefill-attention-backend", "triton"], "would never write page representations", marks=pytest.mark.slow
        ),
        (["--hsa-layers", "0,9"], "names layer 9, but the model has layers 0-1"),
    ],
)
def test_start_up_refuses_with_the_reason(checkpoints, args, message):
    command = [
        sys.executable, "-m", "sglang.launch_server", "--device", "cpu", "--model-path", str(build("qwen3", checkpoints)),
        "--attention-backend", "hsa", "--dtype", "float32", "--port", str(free_port()), *args,
    ]  # fmt: skip
    done = subprocess.run(command, env=child_env(), capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
