# SPDX-License-Identifier: Apache-2.0
"""Many requests: batch sizes and context lengths, prefix hits, eviction.

python -m benchmarks.mini.bench_suite --model DIR
python -m benchmarks.mini.bench_suite --geometry qwen3-0.6b --batch-sizes 1,8,32 --contexts 1024,4096 --token-budget 262144

Tokens are checked against transformers' logits before anything is timed. The last line is one JSON object.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from itertools import product
from typing import Dict, List, Optional, Tuple

from benchmarks.mini.bench_common import Bench, bench_parser, ints, run_main
from sglang.mini.api import MiniError, SamplingParams
from sglang.mini.engine import MiniEngine


def time_batch(
    bench: Bench, prompts: List[List[int]], engine: Optional[MiniEngine]
) -> Tuple[float, float]:
    """(seconds to the first token of all requests, tokens/s after it) of a batch."""
    after = len(prompts) * (bench.args.new_tokens - 1)  # tokens but the first ones
    start = time.perf_counter()
    if engine is None:
        bench.generate_hf(prompts, 1)
        first = time.perf_counter()
        bench.generate_hf(prompts, bench.args.new_tokens)
        whole = time.perf_counter() - first
        return first - start, after / (whole - (first - start))
    requests = [engine.submit(prompt, bench.params) for prompt in prompts]
    while not all(request.result.token_ids for request in requests):
        engine.step()
    first = time.perf_counter()
    # Requests whose prompts ran first already decoded meanwhile.
    early = sum(len(request.result.token_ids) - 1 for request in requests)
    while engine.step():
        pass
    return first - start, (after - early) / (time.perf_counter() - first)


def prefix_hits(bench: Bench, arm: str, context: int) -> Dict:
    """TTFB of prompts that share all but their last page, without and with the prefix cache."""
    row = {"arm": arm, "prompt": context}
    for name, cached in (("cold_s", False), ("warm_s", True)):
        engine = bench.engine(arm, prefix_cache=cached)
        tail = min(engine.kv.page_size, context - 1)
        shared, times = bench.prompt(context, seed=0)[:-tail], []
        for seed in range(bench.args.repeats + 1):
            prompt = shared + bench.prompt(tail, seed=seed + 1)
            (result,) = bench.complete(engine, [prompt], SamplingParams(max_tokens=1))
            times.append(result.first_token_s)
        row[name] = statistics.median(times[1:])  # the first fills the cache
    row["cached_tokens"] = result.cached_tokens
    row["speedup"] = row["cold_s"] / row["warm_s"]
    return row


def eviction(bench: Bench, arm: str, policy: str, context: int) -> Dict:
    """A cache that holds five of eight prompts: the first comes twice, then every other one once, three times over."""
    size = bench.engine(arm).kv.page_size
    length = max(2, context // size) * size + 1
    budget = 5 * -(-(length + bench.args.new_tokens) // size) * size
    engine = bench.engine(arm, exact=True, eviction=policy, token_budget=budget)
    row = {"arm": arm, "policy": policy, "prompt": length, "budget": budget}
    shares = []
    for which in 3 * (0, *range(8)):
        prompt = bench.prompt(length, seed=which)
        (result,) = bench.complete(engine, [prompt])
        bench.check(prompt, result.token_ids)
        shares.append(result.cached_tokens / length)
    row["hit_share"] = statistics.mean(shares)
    row["pages_evicted"] = engine.stats()["pages_evicted"]
    if not row["pages_evicted"]:
        raise MiniError(f"{arm}: nothing was evicted, so nothing was measured.")
    return row


def main(argv=None) -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--batch-sizes", type=ints, default="1,8")
    parser.add_argument("--contexts", type=ints, default="128,1024")
    args = parser.parse_args(argv)
    bench = Bench(args)
    engines = [arm for arm in bench.arms if arm != "hf"]
    longest, shortest = max(args.contexts), min(args.contexts)
    timed = partial(time_batch, bench)
    jobs = [
        ("throughput", partial(bench.measure, arm, context, batch, timed))
        for context, batch, arm in product(args.contexts, args.batch_sizes, bench.arms)
    ]
    jobs += [("prefix", partial(prefix_hits, bench, arm, longest)) for arm in engines]
    jobs += [
        ("eviction", partial(eviction, bench, arm, policy, shortest))
        for arm, policy in product(engines, ("lru", "lfu"))
    ]
    bench.run("suite", jobs)


if __name__ == "__main__":
    run_main(main)
