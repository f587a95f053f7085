# SPDX-License-Identifier: Apache-2.0
"""A stock server with --attention-backend hsa on a CPU: an OpenAI-style request, server info, metrics, refusals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from tiny_models import build


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read().decode()


def post(url, body):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read())


def launch(child_env, *args):
    return [sys.executable, "-m", "sglang.launch_server", "--device", "cpu", *args], child_env()


@pytest.fixture(scope="module")
def server(checkpoints, child_env, tmp_path_factory):
    port = free_port()
    command, env = launch(
        child_env, "--model-path", str(build("qwen3", checkpoints)), "--attention-backend", "hsa",
        "--hsa-topk", "4", "--dtype", "float32", "--port", str(port), "--max-total-tokens", "16384",
        "--enable-metrics", "--log-level", "info",
    )  # fmt: skip
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                get(url + "/health")
                break
            except OSError:
                time.sleep(0.5)
        yield url, log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_chat_request_selects_pages_and_counts_them(server):
    """# trap 9, 11: the production path made the pool, and HSA is what ran"""
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
    # 257 pages of 2 layers of 2 KV heads: mean and variance of 16 dimensions in float32, and the versions.
    assert info["internal_states"][0]["hsa_chunk_repr_bytes"] == 257 * (2 * (2 * 32 * 4 + 8) + 8)
    assert info["attention_backend"] == "hsa" and info["page_size"] == 64 and info["hsa_topk"] == 4

    metrics = get(url + "/metrics")
    for name in counts:
        found = re.search(rf"^sglang:hsa_{name}_total{{.*}} ([0-9.e+]+)$", metrics, re.MULTILINE)
        assert found, name
    # The scheduler publishes at its own pace: what is there was counted, and a prefill has been published.
    value = re.search(r"^sglang:hsa_rows_sparse_total{.*} ([0-9.e+]+)$", metrics, re.MULTILINE)
    assert 0 < float(value[1]) <= counts["rows_sparse"]
    assert "Page representations are allocated. #pages: 256, kind: mean_var, layers: 2" in log.read_text()


@pytest.mark.parametrize(
    "args,message",
    [
        (["--prefill-attention-backend", "triton"], "would never write page representations"),
        (["--hsa-layers", "0,9"], "names layer 9, but the model has layers 0-1"),
    ],
)
def test_start_up_refuses_with_the_reason(checkpoints, child_env, args, message):
    command, env = launch(
        child_env, "--model-path", str(build("qwen3", checkpoints)), "--attention-backend", "hsa",
        "--dtype", "float32", "--port", str(free_port()), *args,
    )  # fmt: skip
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
