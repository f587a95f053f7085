# SPDX-License-Identifier: Apache-2.0
"""A server under random load with HSA: every greedy answer must be the one that its prompt gets alone, and nothing may leak.

Clients ask, stream, hang up, abort and send nonsense; prompts share prefixes, and the pool holds a part of what they ask for, so
that requests are retracted. Meanwhile an operator flushes the cache, pauses, reloads the weights, releases and resumes memory and
aborts everything. Ends in one JSON line; exits with 1 if an answer differed or something leaked.

    python -m benchmarks.soak --model examples/needle/checkpoint --seconds 3600 --seed 1
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shlex
import sys
import tempfile
import threading
import time
import urllib.error
from pathlib import Path

from benchmarks.quality.serving import Server, ServingError, greedy_body

PROMPTS, DOCUMENTS, NEW, CLIENTS = 48, 4, 48, 10
LONGEST = 1500  # tokens of a prompt
# A pool of a few prompts; chunks larger than what a pass may prefill; mixed passes.
OPTIONS = (
    "--attention-backend hsa --hsa-topk 4 --hsa-window-size 64 --hsa-prefill sparse --skip-tokenizer-init --max-total-tokens 6144"
    " --max-running-requests 8 --chunked-prefill-size 256 --max-prefill-tokens 200 --enable-mixed-chunk --log-level warning"
    " --sampling-backend pytorch --grammar-backend none"
)
NONSENSE = (
    {"input_ids": [5, -3]},
    {"input_ids": [[], [5]]},
    {"input_ids": [5], "sampling_params": {"temperature": "hot"}},
    {"input_ids": [5], "return_logprob": True, "top_logprobs_num": 10**6},
)
ABORTED = 499  # status
ALTERNATIVES = 5  # tokens among which near-ties are looked for
GROWTH = 1 << 29  # bytes of resident memory that a run may add


class Failed(Exception):
    """An answer or a count that is wrong; one line."""


class Soak:
    """One run against one server.

    Args:
        server: a started server.
        seed: of prompts and of every choice.
        vocabulary: ids of prompts are below.
        near_tie: log-probability within which two tokens may swap; other batches round in other ways.
    """

    def __init__(self, server: Server, model: Path, seed: int, vocabulary: int, near_tie: float):
        self.server, self.model, self.seed, self.near_tie = server, model, seed, near_tie
        rng = random.Random(seed)
        documents = [[rng.randrange(vocabulary) for _ in range(LONGEST)] for _ in range(DOCUMENTS)]
        self.prompts = []
        for _ in range(PROMPTS):
            shared = rng.choice(documents)[: rng.randrange(LONGEST)]
            own = [rng.randrange(vocabulary) for _ in range(rng.randint(1, 80))]
            self.prompts.append((shared + own)[-LONGEST:])
        self.answers: list[tuple[list[int], list[list]]] = []
        self.counts: collections.Counter = collections.Counter()
        self.lock, self.stop, self.errors = threading.Lock(), threading.Event(), []

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def alone(self, prompt: list[int]) -> tuple[list[int], list[list]]:
        """Tokens of a prompt that meets an empty cache and no other request, and the best of each step."""
        self.server.post_quietly("/flush_cache", {})
        reply = self.server.greedy(prompt, NEW, return_logprob=True, top_logprobs_num=ALTERNATIVES)
        tokens, best = reply["output_ids"], reply["meta_info"]["output_top_logprobs"]
        if not len(tokens) == len(best) == NEW:
            raise Failed(f"a prompt alone has {len(tokens)} tokens and {len(best)} lists of alternatives, not {NEW}")
        return tokens, best

    def check(self, number: int, tokens: list[int], whole: bool, reason: str = "") -> None:
        """Raise Failed unless tokens are those of the prompt alone, or all of them, up to a near-tie.

        ``reason``: why the reply ended; a message names it. An abort leaves what a speculative step adds beyond the last token.
        """
        wanted, best = self.answers[number]
        for i, token in enumerate(tokens[:NEW]):
            if token != wanted[i]:
                scores = {other: score for score, other, *_ in best[i]}
                if scores[wanted[i]] - scores.get(token, float("-inf")) < self.near_tie:
                    return self.count("near-ties")
                where = f"prompt {number}: token {i} of {len(tokens)}"
                raise Failed(f"{where} is {token}, alone it is {wanted[i]} of {scores}; ended: {reason}")
        if whole and len(tokens) != NEW:
            raise Failed(f"prompt {number}: {len(tokens)} tokens of {NEW}; ended: {reason}")

    # What a client does

    def ask(self, rng: random.Random, number: int) -> None:
        self.settle(number, self.server.greedy(self.prompts[number], NEW))

    def ask_for_two(self, rng: random.Random, number: int) -> None:
        other = rng.randrange(PROMPTS)
        replies = self.server.greedy([self.prompts[number], self.prompts[other]], NEW)
        for asked, reply in zip((number, other), replies, strict=True):
            self.settle(asked, reply)

    def settle(self, number: int, reply: dict) -> None:
        reason = reply["meta_info"]["finish_reason"]
        aborted = reason["type"] == "abort"
        self.check(number, reply["output_ids"], whole=not aborted, reason=str(reason))
        self.count("aborted" if aborted else "answers")

    def stream(self, rng: random.Random, number: int, hang_up_after: float = float("inf")) -> None:
        body = json.dumps(greedy_body(self.prompts[number], NEW, stream=True)).encode()
        last: dict = {}
        with self.server.open("/generate", body) as lines:
            for events, line in enumerate(line for line in lines if line.startswith(b"data: {")):
                last = json.loads(line[len(b"data: ") :])
                if events >= hang_up_after:
                    self.check(number, last["output_ids"], whole=False)
                    return self.count("hung up")
        if "error" in last:
            if "was aborted" not in str(last["error"]):
                raise Failed(f"prompt {number}: a stream ended with {last['error']}")
            return self.count("aborted")
        self.settle(number, last)

    def hang_up(self, rng: random.Random, number: int) -> None:
        self.stream(rng, number, hang_up_after=rng.randrange(NEW))

    def abort(self, rng: random.Random, number: int) -> None:
        rid = f"{number}-{rng.random()}"
        timer = threading.Timer(rng.random(), self.server.post_quietly, ("/abort_request", {"rid": rid}))
        timer.start()
        try:
            self.settle(number, self.server.greedy(self.prompts[number], NEW, rid=rid))
        finally:
            timer.cancel()

    def nonsense(self, rng: random.Random, number: int) -> None:
        status = self.server.post_quietly("/generate", rng.choice(NONSENSE))
        if status not in (400, ABORTED):
            raise Failed(f"nonsense got status {status}")
        self.count("refused")

    def client(self, index: int) -> None:
        rng = random.Random(f"{self.seed}-{index}")
        actions = (self.ask, self.ask, self.ask_for_two, self.stream, self.hang_up, self.abort, self.nonsense)
        try:
            while not self.stop.is_set():
                try:
                    rng.choice(actions)(rng, rng.randrange(PROMPTS))
                except (ServingError, urllib.error.HTTPError) as error:
                    # Since 0.5.17 a request that is aborted before it is sent on has an error and no tokens.
                    if getattr(error, "status", None) != ABORTED:
                        raise
                    self.count("aborted")
                time.sleep(rng.expovariate(4) if rng.random() < 0.5 else 0)
        except Exception as error:  # whatever it is, a client that is gone must fail the run
            self.errors.append(f"client {index}: {error!r}")
            self.stop.set()

    # What the operator does

    def operator(self) -> None:
        rng = random.Random(f"{self.seed}-operator")
        pause = ("retract", "in_place", "abort")
        try:
            while not self.stop.wait(rng.uniform(1, 6)):
                act = rng.choice(("flush", "pause", "weights", "abort all", "memory"))
                self.count(act)
                if act == "flush":
                    self.server.post_quietly("/flush_cache", {})
                elif act == "pause":
                    self.server.post_quietly("/pause_generation", {"mode": rng.choice(pause)})
                    time.sleep(rng.random())
                    self.server.post_quietly("/continue_generation", {})
                elif act == "weights":
                    # Refused while requests run that nobody waits for any more.
                    status = self.server.post_quietly("/update_weights_from_disk", {"model_path": str(self.model)})
                    self.count("weights refused" if status == 400 else "weights loaded")
                elif act == "memory":
                    # Refused while requests run; without --enable-memory-saver nothing but the cache is given up.
                    released = self.server.post_quietly("/release_memory_occupation", {}) == 200
                    self.count("memory released" if released else "memory refused")
                    resumed = self.server.post_quietly("/resume_memory_occupation", {}) == 200
                    if resumed != released:
                        raise Failed(f"memory was {'' if released else 'not '}released and {'' if resumed else 'not '}resumed")
                else:
                    self.server.post_quietly("/abort_request", {"rid": "", "abort_all": True})
        except Exception as error:
            self.errors.append(f"operator: {error!r}")
            self.stop.set()

    # The run

    def loads(self) -> tuple[int, int]:
        """(requests that run or wait, tokens that are held)"""
        try:
            found = [(load["num_reqs"], load["num_tokens"]) for load in self.server.get("/get_load")]
        except ServingError as error:
            if error.status != 404:
                raise
            loads = self.server.get("/v1/loads")["loads"]  # v0.5.23
            found = [(load["num_running_reqs"] + load["num_waiting_reqs"], load["num_total_tokens"]) for load in loads]
        requests, tokens = zip(*found)
        return sum(requests), sum(tokens)

    def idle(self) -> None:
        """Wait until no request runs, then empty the cache; raise Failed if tokens stay."""
        deadline = time.monotonic() + 300
        while self.loads()[0]:
            if time.monotonic() > deadline:
                raise Failed("requests run that nobody waits for")
            time.sleep(0.2)
        self.server.post_quietly("/flush_cache", {})
        if held := self.loads()[1]:
            raise Failed(f"{held} tokens are held by no request")

    def run(self, seconds: float) -> None:
        """Raise Failed for the first thing that is wrong."""
        self.answers = [self.alone(prompt) for prompt in self.prompts]
        self.idle()
        before = processes(self.server)
        threads = [threading.Thread(target=self.client, args=(i,)) for i in range(CLIENTS)]
        threads.append(threading.Thread(target=self.operator))
        for thread in threads:
            thread.start()
        self.stop.wait(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()
        if self.errors:
            raise Failed("; ".join(self.errors))
        self.idle()
        for number, prompt in enumerate(self.prompts):
            self.check(number, self.alone(prompt)[0], whole=True)
        self.idle()
        after = processes(self.server)
        if len(after) != len(before):
            raise Failed(f"{len(after)} processes, {len(before)} before")
        self.counts["MB more"] = (sum(after.values()) - sum(before.values())) >> 20
        if sum(after.values()) > sum(before.values()) + GROWTH:
            raise Failed(f"{self.counts['MB more']} MB more are resident")
        counters = self.server.counters()
        self.counts.update(counters)
        if not 0 < counters["pages_selected"] < counters["pages_candidate"] or not counters["rows_sparse"]:
            raise Failed(f"the counters say that nothing was selected: {counters}")


def processes(server: Server) -> dict[int, int]:
    """Bytes of resident memory of each process of the server's session."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == server.process.pid and fields[0] != "Z":
                found[int(folder.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("examples/needle/checkpoint"))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--near-tie", type=float, default=1e-4, help="in log-probability (default: %(default)s, for float32)")
    parser.add_argument("--server-args", default="--device cpu --dtype float32", help="(default: %(default)s)")
    parser.add_argument("--logs", type=Path, help="folder of the server's log (default: a temporary one)")
    args = parser.parse_args()
    logs = args.logs or Path(tempfile.mkdtemp(prefix="soak-"))
    logs.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((args.model / "config.json").read_text())["vocab_size"]
    options = [*shlex.split(OPTIONS), *shlex.split(args.server_args)]
    failure, soak = None, None
    try:
        with Server("soak", logs, args.model, options) as server:
            soak = Soak(server, args.model, args.seed, vocabulary, args.near_tie)
            soak.run(args.seconds)
    except (Failed, ServingError) as error:
        failure = str(error)
    counts = dict(sorted(soak.counts.items())) if soak else {}
    print(json.dumps(dict(seed=args.seed, seconds=args.seconds, failure=failure, log=str(logs / "soak.log"), counts=counts)))
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
