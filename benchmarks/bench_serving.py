# SPDX-License-Identifier: Apache-2.0
"""Load through an HTTP server with random weights: unique prompts, and many questions about one document.

Per scenario: output tokens per second, time to first token, time per output token, and how long the server took to start.
The HSA arm fails unless its counters say that pages were left out. Ends in one JSON line.

    python benchmarks/bench_serving.py --backends hsa fa3 --scenarios unique:16384:256:32:16 shared:65536:256:64:32

A scenario is unique: or shared:TOKENS:NEW:REQUESTS:AT_ONCE; shared is many questions about one document of TOKENS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cuda_only
import geometries

ROOT = Path(__file__).resolve().parents[1]
QUESTION = (100, 160)  # tokens of a question about a document
WARM_UP = 9000  # tokens of the prompts before the first scenario: more than a chunk
SCENARIOS = ("unique:16384:256:32:16", "unique:32768:256:24:12", "shared:65536:256:64:32")
TOKENS = (10, 150000)  # ids of random prompts


class Scenario(NamedTuple):
    """What clients ask: ``requests`` prompts of ``tokens`` each, or as many questions about one document of ``tokens``."""

    kind: str
    tokens: int
    new: int
    requests: int
    at_once: int

    @classmethod
    def parse(cls, text: str) -> Scenario:
        kind, *numbers = text.split(":")
        if kind not in ("unique", "shared") or len(numbers) != 4:
            raise argparse.ArgumentTypeError(f"{text!r} is not unique: or shared:TOKENS:NEW:REQUESTS:AT_ONCE")
        return cls(kind, *map(int, numbers))

    def __str__(self) -> str:
        return ":".join(map(str, self))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["hsa", "fa3"])
    parser.add_argument("--geometry", default="8b", choices=geometries.GEOMETRIES)
    parser.add_argument("--scenarios", nargs="+", type=Scenario.parse, default=list(map(Scenario.parse, SCENARIOS)))
    parser.add_argument("--alike", type=int, default=1, help="as in bench_steps.py")
    parser.add_argument("--server-args", default="", help="options for every server, in one string")
    parser.add_argument("--hsa-args", default="--hsa-dense-backend fa3", help="of the HSA arm (default: %(default)s)")
    parser.add_argument("--dense-args", default="", help="of the dense arms, such as --page-size 128")
    parser.add_argument("--logs", type=Path, help="folder of the servers' logs (default: a temporary one)")
    return cuda_only.parse_args(parser)


def prompt(rng: random.Random, tokens: int, alike: int) -> list[int]:
    """Runs of ``alike`` equal random tokens."""
    return [rng.randint(*TOKENS) for _ in range(-(-tokens // alike)) for _ in range(alike)][:tokens]


async def ask(session, url: str, ids: list[int], new: int) -> dict:
    """One streamed request: seconds to the first token and to the last, and how many there were."""
    from benchmarks.quality.serving import greedy_body

    begin, first, said = time.perf_counter(), None, b""
    async with session.post(url + "/generate", json=greedy_body(ids, new, stream=True)) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                first, said = first or time.perf_counter(), line
    meta = json.loads(said[len(b"data: ") :])["meta_info"]
    if meta["completion_tokens"] != new:
        raise SystemExit(f"bench_serving: an answer has {meta['completion_tokens']} tokens of {new}")
    return dict(first=first - begin, last=time.perf_counter() - begin, cached=meta["cached_tokens"])


async def load(url: str, prompts: list[list[int]], new: int, at_once: int) -> dict:
    """All prompts, so many at a time."""
    import aiohttp

    turn = asyncio.Semaphore(at_once)

    async def one(session, ids):
        async with turn:
            return await ask(session, url, ids, new)

    limits = dict(timeout=aiohttp.ClientTimeout(600), read_bufsize=1 << 20)
    begin = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), **limits) as session:
        answers = await asyncio.gather(*(one(session, ids) for ids in prompts))
    wall = time.perf_counter() - begin
    first = [1e3 * answer["first"] for answer in answers]
    each = [1e3 * (answer["last"] - answer["first"]) / max(new - 1, 1) for answer in answers]
    return dict(
        seconds=round(wall, 2),
        output_tokens_per_s=round(len(prompts) * new / wall, 1),
        ttft_ms=round(statistics.median(first), 1),
        ttft_ms_max=round(max(first), 1),
        tpot_ms=round(statistics.median(each), 2),
        cached_tokens=sum(answer["cached"] for answer in answers),
    )


def measure(server, scenario: Scenario, alike: int) -> dict:
    """One scenario on an empty cache; the document of shared questions is in it."""
    rng = random.Random(str(scenario))
    while server.post_quietly("/flush_cache", {}) >= 400:  # refused while the last batch ends
        time.sleep(0.5)
    if scenario.kind == "unique":
        prompts = [prompt(rng, scenario.tokens, alike) for _ in range(scenario.requests)]
    else:
        document = prompt(rng, scenario.tokens, alike)
        server.greedy(document, 1)
        prompts = [document + prompt(rng, rng.randint(*QUESTION), alike) for _ in range(scenario.requests)]
    return asyncio.run(load(server.url, prompts, scenario.new, scenario.at_once))


def run(backend: str, model: str, args: argparse.Namespace, logs: Path) -> list[dict]:
    from benchmarks.quality.serving import Server

    longest = max(WARM_UP, *(s.tokens + s.new for s in args.scenarios)) + 2 * QUESTION[1]
    requests = max(s.at_once for s in args.scenarios)
    options = f"--load-format dummy --dtype bfloat16 --skip-tokenizer-init --attention-backend {backend} --page-size 64"
    options += f" --chunked-prefill-size 8192 --context-length {longest} --max-running-requests {requests}"
    options += f" --sampling-backend pytorch --grammar-backend none --log-level warning {args.server_args}"
    options += f" {args.hsa_args if backend == 'hsa' else args.dense_args}"
    begin = time.perf_counter()
    with Server(backend, logs, Path(model), options.split()) as server:
        started = round(time.perf_counter() - begin, 1)
        rng = random.Random(0)
        asyncio.run(load(server.url, [prompt(rng, WARM_UP, 1) for _ in range(4)], 8, 4))
        rows = []
        for scenario in args.scenarios:
            before = server.counters() if backend == "hsa" else {}
            row = dict(backend=backend, scenario=str(scenario), start_s=started, **measure(server, scenario, args.alike))
            if backend == "hsa":
                after = server.counters()
                row["counters"] = {name: after[name] - before[name] for name in after}
            rows.append(row)
            print(row, flush=True)
            if backend == "hsa" and not 0 < row["counters"]["pages_selected"] < row["counters"]["pages_candidate"]:
                raise SystemExit(f"bench_serving: {scenario} left no page out; HSA was not measured")
    return rows


def main() -> None:
    import torch
    import triton

    sys.path.insert(0, str(ROOT))
    from sglang.version import __version__ as release

    from benchmarks.retrieval.runner import commit

    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = geometries.write_config(args.geometry, Path(folder))
        logs = args.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        rows = [row for backend in args.backends for row in run(backend, model, args, logs)]
    gpu, torch_version, triton_version = torch.cuda.get_device_name(), torch.__version__, triton.__version__
    provenance = dict(command=" ".join(sys.argv), commit=commit(), release=release, gpu=gpu, geometry=args.geometry)
    print(json.dumps(dict(provenance, torch=torch_version, triton=triton_version, alike=args.alike, rows=rows)))


if __name__ == "__main__":
    main()
