#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Serve a tiny checkpoint on the CPU with HSA and with dense attention, and prove that HSA did what it says.

Run by quickstart.sh inside its environment. Standard library only, except for what builds the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

TOPK = 8  # of up to 55 candidate pages at 4K tokens
ALL_PAGES = 1024
NEW_TOKENS = 64
# Both sides compute in float32 and differ only in the order of their sums.
LOGPROB_TOLERANCE = 1e-4
READY_SECONDS = 600
REQUEST_SECONDS = 600
STOP_SECONDS = 15

WORDS = "a query reads only those pages of the key value cache whose tokens matter to it and leaves the others alone".split()
# No proxy: the servers are on this machine.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Failure(Exception):
    """Something that the quickstart was to prove does not hold; one line."""


class Server:
    """One server as a context manager. It has a session of its own, so that all its processes end with it."""

    def __init__(self, name: str, checkpoint: Path, logs: Path, *options: str):
        self.name = name
        self.log = logs / f"{name.replace(' ', '-')}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = ["-m", "sglang.launch_server", "--model-path", str(checkpoint), "--device", "cpu"]
        self.command += ["--dtype", "float32", "--max-total-tokens", "16384", "--max-running-requests", "4"]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port), *options]

    def __enter__(self) -> Server:
        print(f"\n{self.name}: python {' '.join(self.command)}\n  starting ", end="", flush=True)
        started = time.monotonic()
        # A machine's GPUs stay out of it: what is shown here is the CPU path, the same everywhere.
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command], stdout=log, stderr=log, env=env, start_new_session=True
            )
        try:
            while not self._healthy():
                if self.process.poll() is not None:
                    raise Failure(f"the server '{self.name}' ended with status {self.process.returncode}: {self._last_error()}")
                if time.monotonic() - started > READY_SECONDS:
                    raise Failure(f"the server '{self.name}' was not ready within {READY_SECONDS} s")
                print(".", end="", flush=True)
                time.sleep(2)
        except BaseException:
            print()
            self._stop()
            raise
        print(f" ready after {time.monotonic() - started:.0f} s")
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def get(self, path: str) -> dict:
        return self._call(path, None)

    def post(self, path: str, body: dict) -> dict:
        return self._call(path, json.dumps(body).encode())

    def counters(self) -> dict[str, int]:
        state = self.get("/server_info")["internal_states"][0]
        if "hsa_counters" not in state:
            raise Failure(f"the server '{self.name}' reports no HSA counters: it does not run HSA")
        return state["hsa_counters"]

    def _call(self, path: str, body: bytes | None) -> dict:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": "application/json"}
        )
        try:
            with HTTP.open(request, timeout=REQUEST_SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise Failure(f"{path} of '{self.name}' answered {error.code}: {error.read(300).decode(errors='replace')}")
        except OSError as error:
            raise Failure(f"{path} of '{self.name}' failed: {error}")

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError):  # refused, or 503 while the model is loaded
            with HTTP.open(f"http://127.0.0.1:{self.port}/health", timeout=30):
                return True
        return False

    def _last_error(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or ["it wrote nothing"])[-1]

    def _stop(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):  # what is left of its schedulers
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def conversation() -> list[dict]:
    """About 4,000 tokens of the tiny tokenizer, always the same."""
    pick = random.Random(0)
    return [{"role": "user", "content": " ".join(pick.choice(WORDS) for _ in range(1060))}]


def generate(server: Server, ids: list[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens, and the log-probabilities of every prompt token but the first and of every new token."""
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    meta = server.post(
        "/generate", {"input_ids": ids, "sampling_params": sampling, "return_logprob": True, "logprob_start_len": 0}
    )["meta_info"]
    prompt, new = meta["input_token_logprobs"], meta["output_token_logprobs"]
    if len(prompt) != len(ids) or len(new) != NEW_TOKENS:
        raise Failure(f"'{server.name}' returned {len(prompt)} + {len(new)} log-probabilities")
    return [token for _, token, _ in new], [value for value, _, _ in prompt[1:] + new]


def ask(server: Server) -> None:
    """The OpenAI-compatible request, and the counters of the work that it caused."""
    before = server.counters()
    started = time.monotonic()
    answer = server.post(
        "/v1/chat/completions",
        {"model": "tiny", "messages": conversation(), "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True},
    )
    took = time.monotonic() - started
    counted = {name: value - before[name] for name, value in server.counters().items()}
    usage = answer["usage"]
    print(f"  /v1/chat/completions: {usage['prompt_tokens']} prompt tokens, {usage['completion_tokens']} new, {took:.1f} s")
    print(f"  answer: {answer['choices'][0]['message']['content']!r}")
    print("  The weights are random, so this text is noise. What counts is how it was computed:")
    for name, value in counted.items():
        print(f"    {name:16} {value:9,}")
    if usage["prompt_tokens"] < 4000:
        raise Failure(f"the request has {usage['prompt_tokens']} tokens, not 4K")
    for name in ("rows_sparse", "pages_selected", "reprs_written"):
        if counted[name] == 0:
            raise Failure(f"{name} is 0: the request was not served by HSA")
    if counted["pages_selected"] >= counted["pages_candidate"]:
        raise Failure("every candidate page was selected: attention was not sparse")
    share = counted["pages_selected"] / counted["pages_candidate"]
    print(f"  Sparse: {share:.0%} of the candidate pages were attended.")


def compare(dense, full, sparse) -> None:
    (dense_ids, dense_lp), (full_ids, full_lp), (sparse_ids, sparse_lp) = dense, full, sparse

    def row(name: str, ids: list[int], logprobs: list[float]) -> float:
        same = sum(a == b for a, b in zip(ids, dense_ids))
        # New tokens are conditioned on what was generated before, so positions count up to the first difference.
        agreed = next((i for i, (a, b) in enumerate(zip(ids, dense_ids)) if a != b), NEW_TOKENS)
        count = len(logprobs) - NEW_TOKENS + agreed
        gaps = [abs(a - b) for a, b in zip(logprobs[:count], dense_lp)]
        print(f"    {name:22} {same:3}/{NEW_TOKENS}{max(gaps):18.1e}{sum(gaps) / count:13.1e}   over {count} tokens")
        return max(gaps)

    print("\nAgainst dense attention (torch_native), float32, greedy:")
    print("                           equal tokens   logprob gap: max         mean")
    gap = row("HSA, all pages", full_ids, full_lp)
    row(f"HSA, {TOPK} pages", sparse_ids, sparse_lp)
    if full_ids != dense_ids:
        raise Failure("HSA with all pages selected generates other tokens than dense attention")
    if gap > LOGPROB_TOLERANCE:
        raise Failure(f"HSA with all pages selected is off by {gap:.1e} in log-probability, more than {LOGPROB_TOLERANCE:g}")
    print(f"  With all pages HSA is dense attention: the same tokens, and log-probabilities within {LOGPROB_TOLERANCE:g}.")
    if sparse_ids == dense_ids:
        print(f"  With {TOPK} pages the tokens happen to be the same; the gap shows that the attention is not.")
    else:
        print(f"  With {TOPK} pages it is an approximation; random weights make it look worse than trained ones would.")


def run(work: Path) -> None:
    import tiny_models
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    checkpoint = tiny_models.build("qwen3", work, seed=3, hidden_size=128, intermediate_size=256, head_dim=32)
    print(f"checkpoint: {checkpoint} (Qwen3, 2 layers, random weights)")
    ids = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        conversation(), add_generation_prompt=True, return_dict=False
    )
    hsa = ("--attention-backend", "hsa", "--hsa-topk")
    with Server(f"HSA {TOPK} pages", checkpoint, work, *hsa, str(TOPK)) as server:
        ask(server)
        sparse = generate(server, ids)
    with Server("HSA all pages", checkpoint, work, *hsa, str(ALL_PAGES)) as server:
        full = generate(server, ids)
        counted = server.counters()
        print(f"  {counted['pages_selected']:,} of {counted['pages_candidate']:,} candidate pages attended")
        if not 0 < counted["pages_selected"] == counted["pages_candidate"]:
            raise Failure(f"--hsa-topk {ALL_PAGES} did not select every candidate page")
    with Server("dense", checkpoint, work, "--attention-backend", "torch_native") as server:
        dense = generate(server, ids)
    compare(dense, full, sparse)


def main() -> int:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)  # KeyboardInterrupt: the servers are stopped on its way
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="sglang-hsa-"))
    try:
        run(work)
    except Failure as failure:
        print(f"quickstart: error: {failure}; the servers' logs are in {work}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"quickstart: interrupted; the servers are stopped, their logs are in {work}", file=sys.stderr)
        return 130
    shutil.rmtree(work)
    print(f"\nquickstart: everything holds ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
