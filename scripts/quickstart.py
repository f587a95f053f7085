#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask a small trained checkpoint for a pass key thousands of tokens back: with HSA, with the window alone and densely.

Run by quickstart.sh inside its environment, on the CPU. Fails unless HSA finds the key, the window alone does not, and
HSA with all pages selected is dense attention to the token.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
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
sys.path.insert(0, str(ROOT))

from benchmarks.retrieval import samples, tasks, window_only  # noqa: E402, the line above makes these importable

CHECKPOINT = ROOT / "examples" / "needle" / "checkpoint"
# A pass key among those of other names, in a text of the retrieval suite.
TASK, LENGTH, DEPTH, SEED = "multikey", 6144, 0.2, 0
TOPK = 8
ALL_PAGES = 1024
PAGE = 64
WINDOW = 576  # tokens: HSA's window of 512, extended to a page boundary
NEW_TOKENS = 64
# Both sides compute in float32 and differ only in the order of their sums.
LOGPROB_TOLERANCE = 1e-4
READY_SECONDS = 600
REQUEST_SECONDS = 600
STOP_SECONDS = 15

# No proxy: the servers are on this machine.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Failure(Exception):
    """Something that the quickstart was to prove does not hold; one line."""


class Server:
    """One server as a context manager. It has a session of its own, so that all its processes end with it."""

    def __init__(self, name: str, logs: Path, *options: str):
        self.name = name
        self.log = logs / f"{name.replace(' ', '-')}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = ["-m", "sglang.launch_server", "--model-path", str(CHECKPOINT), "--device", "cpu"]
        self.command += ["--dtype", "float32", "--max-total-tokens", "16384", "--max-running-requests", "4"]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port), *options]

    def __enter__(self) -> Server:
        print(f"\n{self.name}: python {shlex.join(self.command)}\n  starting ", end="", flush=True)
        started = time.monotonic()
        # A machine's GPUs stay out of it: what is shown here is the CPU path, the same everywhere.
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "SGLANG_EXTERNAL_MODEL_PACKAGE": window_only.__name__}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
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


def answer(server: Server, sample) -> bool:
    """Ask the question over the OpenAI-compatible endpoint; whether the pass key was found."""
    started = time.monotonic()
    reply = server.post(
        "/v1/completions",
        {"model": "needle", "prompt": sample.prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "stop": ["\n"]},
    )
    text = reply["choices"][0]["text"]
    right = tasks.grade(sample.answers, sample.pattern, text).exact
    print(f"  answer:{text}  {'RIGHT' if right else 'wrong'}, {time.monotonic() - started:.1f} s")
    return right


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


def check_sparse(server: Server) -> None:
    """The counters of the work behind the answer: it was HSA, and it left pages out."""
    counted = server.counters()
    for name in ("rows_sparse", "pages_selected", "reprs_written"):
        if counted[name] == 0:
            raise Failure(f"{name} is 0: the request was not served by HSA")
    chosen, candidates = counted["pages_selected"], counted["pages_candidate"]
    if chosen >= candidates:
        raise Failure("every candidate page was selected: attention was not sparse")
    print(f"  counted: {chosen:,} of {candidates:,} candidate pages attended, {chosen / candidates:.0%}")


def compare(dense, full) -> None:
    """HSA with all pages selected against dense attention."""
    (dense_ids, dense_lp), (full_ids, full_lp) = dense, full
    same = sum(a == b for a, b in zip(full_ids, dense_ids))
    gap = max(abs(a - b) for a, b in zip(full_lp, dense_lp))
    print(f"\nHSA with all pages against dense attention, float32, greedy, over {len(dense_lp)} tokens:")
    print(f"  {same} of {NEW_TOKENS} new tokens equal, largest difference of a log-probability {gap:.1e}")
    if full_ids != dense_ids:
        raise Failure("HSA with all pages selected generates other tokens than dense attention")
    if gap > LOGPROB_TOLERANCE:
        raise Failure(f"HSA with all pages selected is off by {gap:.1e} in log-probability, more than {LOGPROB_TOLERANCE:g}")


def ask():
    """The sample, its token ids, and what there is to see of it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    sample = samples.make(TASK, LENGTH, DEPTH, SEED, lambda text: len(tokenizer.encode(text)))
    ids = tokenizer.encode(sample.prompt)
    distance = len(ids) - len(tokenizer.encode(sample.prompt[: sample.prompt.index(sample.answers[0])]))
    keys = sample.prompt.count(" Remember it,")
    print(f"checkpoint: {CHECKPOINT.relative_to(ROOT)} (Qwen3, 3.8 million parameters, trained to retrieve)")
    print(f"prompt:     {len(ids):,} tokens with {keys} pass keys; it ends with")
    print("            " + sample.prompt.rsplit("\n\n", 1)[1].replace("\n", "\n            "))
    print(f"wanted:     {sample.answers[0]}, which stands {distance:,} tokens back")
    return sample, ids, distance


def run(work: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    sample, ids, distance = ask()
    hsa = ("--attention-backend", "hsa", "--hsa-topk")
    dense = ("--attention-backend", "torch_native")
    budget = TOPK * PAGE
    with Server(f"HSA {TOPK} pages", work, *hsa, str(TOPK)) as server:
        print(f"  page budget: {TOPK} pages of {PAGE} tokens per query and KV head, {budget} of {len(ids):,} tokens,")
        print(f"  and the window of at most {WINDOW} tokens and the first page")
        found = answer(server, sample)
        check_sparse(server)
    with Server("window alone", work, *dense, "--json-model-override-args", window_only.override(WINDOW)) as server:
        print(f"  the same weights see the last {WINDOW} tokens of every layer, nothing else")
        guessed = answer(server, sample)
    with Server("HSA all pages", work, *hsa, str(ALL_PAGES)) as server:
        full = generate(server, ids)
        counted = server.counters()
        print(f"  {counted['pages_selected']:,} of {counted['pages_candidate']:,} candidate pages attended")
        if not 0 < counted["pages_selected"] == counted["pages_candidate"]:
            raise Failure(f"--hsa-topk {ALL_PAGES} did not select every candidate page")
    with Server("dense", work, *dense) as server:
        known = answer(server, sample)
        exact = generate(server, ids)
    compare(exact, full)
    if not known:
        raise Failure("dense attention did not find the pass key: the checkpoint is not what it should be")
    if not found:
        raise Failure(f"HSA with {TOPK} pages did not find the pass key")
    if guessed:
        raise Failure("the window alone found the pass key: this proves nothing about selection")
    print(f"  The pass key, {distance:,} tokens back: found by dense attention and by HSA with {TOPK} pages,")
    print("  missed by the window alone.")


def next_steps(venv: Path) -> str:
    """What to do now, in the environment that was used; one that several clones share may have another one's tree."""
    own = venv.is_relative_to(ROOT)
    activate = f"source {os.path.relpath(venv, ROOT) if own else venv}/bin/activate"
    return "\n".join(
        (
            f"next: {activate}" + ("" if own else f" && export PYTHONPATH={ROOT / 'sglang' / 'python'}"),
            "      python -m sglang.launch_server --model-path MODEL --attention-backend hsa",
            "      (on a machine without a GPU also: --device cpu --max-total-tokens 32768)",
            "      docs/recipes.md has more commands; docs/guide.md says when HSA helps and how to choose its options",
        )
    )


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
    print(next_steps(Path(sys.prefix)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
