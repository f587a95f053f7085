# SPDX-License-Identifier: Apache-2.0
"""Many requests: batch sizes and context lengths, prefix hits, eviction.

python -m sglang.mini.bench_suite --model DIR
python -m sglang.mini.bench_suite --geometry qwen3-0.6b --batch-sizes 1,8,32 --contexts 1024,4096 --token-budget 262144

Tokens are compared with transformers' before anything is timed. The last line is one JSON object.
"""

from __future__ import annotations

import statistics
import time
from typing import Callable, Dict, List, Tuple

from tqdm import tqdm

from sglang.mini.api import MiniError, SamplingParams
from sglang.mini.bench_common import Bench, bench_parser, print_table, run_main


def time_batch(engine, prompts: List[List[int]], tokens: int) -> Tuple[float, float]:
    """(seconds to the first token of all requests, seconds for the rest)."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()
    requests = [engine.submit(prompt, params) for prompt in prompts]
    while not all(request.result.token_ids for request in requests):
        engine.step()
    first = time.perf_counter()
    made = sum(len(request.result.token_ids) for request in requests)
    while not all(request.finished for request in requests):
        engine.step()
    rest = time.perf_counter() - first
    # Requests whose prompts ran first already decoded meanwhile: scale to all tokens but the first.
    total = len(prompts) * tokens
    return first - start, rest * (total - len(prompts)) / (total - made)


def time_hf(bench: Bench, prompts: List[List[int]], tokens: int) -> Tuple[float, float]:
    times = []
    for count in (1, tokens):
        start = time.perf_counter()
        bench.generate_hf(prompts, count)
        times.append(time.perf_counter() - start)
    return times[0], times[1] - times[0]


def throughput(bench: Bench, arm: str, batch: int, context: int, args) -> Dict:
    """Prefill and decode of ``batch`` different prompts at once."""
    prompts = [bench.prompt(context, seed=s) for s in range(batch)]
    row, engine = {"arm": arm, "batch": batch, "context": context}, None
    if arm != "hf":
        engine = bench.engine(arm, prefix_cache=False)
        expected = bench.generate_hf(prompts, args.new_tokens)
        row.update(bench.check(arm, prompts, expected))
    runs = []
    for _ in range(args.repeats + 1):
        if engine:
            runs.append(time_batch(engine, prompts, args.new_tokens))
        else:
            runs.append(time_hf(bench, prompts, args.new_tokens))
    prefill, decode = map(statistics.median, zip(*runs[1:]))
    step = decode / (args.new_tokens - 1)
    lengths = [context + args.new_tokens // 2] * batch
    row["ttfb_s"], row["tokens_per_s"] = prefill, batch / step
    row["prefill_roofline"] = batch * bench.prefill_roof(context) / prefill
    row["decode_roofline"] = bench.decode_roof(lengths, engine) / step
    if arm == "hsa":
        row["counters"] = engine.stats()["hsa"]
    return row


def prefix_hits(bench: Bench, arm: str, args) -> Dict:
    """TTFB of prompts that share all but their last page, without and with the prefix cache."""
    row = {"arm": arm, "context": max(args.contexts)}
    for name, cached in (("cold_s", False), ("warm_s", True)):
        engine = bench.engine(arm, prefix_cache=cached)
        size = engine.kv.page_size
        shared = bench.prompt(row["context"], seed=0)
        tail = min(size, row["context"] - 1)
        times = []
        for seed in range(args.repeats + 1):
            prompt = shared[:-tail] + bench.prompt(tail, seed=seed + 1)
            result = engine.generate(prompt, SamplingParams(max_tokens=1))
            if result.error:
                raise MiniError(f"{arm}: {result.error}")
            times.append(result.first_token_s)
        row[name] = statistics.median(times[1:])  # the first fills the cache
    row["cached_tokens"], row["prompt"] = result.cached_tokens, row["context"]
    row["speedup"] = row["cold_s"] / row["warm_s"]
    return row


def eviction(bench: Bench, arm: str, policy: str, args) -> Dict:
    """A cache that holds five of eight prompts: the first comes twice, then every other one once, three times over."""
    size = bench.engine(arm).kv.page_size
    length = max(2, min(args.contexts) // size) * size + 1
    each = length + args.new_tokens
    budget = 5 * -(-each // size) * size
    engine = bench.exact_engine(arm, eviction=policy, token_budget=budget)
    prompts = [bench.prompt(length, seed=s) for s in range(8)]
    params = SamplingParams(max_tokens=args.new_tokens, ignore_eos=True)
    reference, hit, seen = {}, 0, 0
    for which in 3 * (0, *range(8)):
        result = engine.generate(prompts[which], params)
        if result.error:
            raise MiniError(f"{arm}: {result.error}")
        first = reference.setdefault(which, result.token_ids)
        bench.compare(prompts[which], first, result.token_ids)
        hit, seen = hit + result.cached_tokens, seen + length
    stats = engine.stats()
    if not stats["pages_evicted"]:
        raise MiniError(f"{arm}: nothing was evicted, so nothing was measured.")
    return {
        "arm": arm,
        "policy": policy,
        "prompt": length,
        "budget": budget,
        "hit_share": hit / seen,
        "pages_evicted": stats["pages_evicted"],
    }


def main(argv=None) -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--contexts", default="128,1024", help="prompt lengths")
    args = parser.parse_args(argv)
    sizes = [int(n) for n in args.batch_sizes.split(",")]
    args.contexts = [int(n) for n in args.contexts.split(",")]
    if args.new_tokens < 2 or args.repeats < 1:
        raise MiniError("use at least 2 --new-tokens and at least 1 --repeats.")
    bench = Bench(args)
    engines = [arm for arm in bench.arms if arm != "hf"]
    jobs: List[Tuple[str, Callable]] = [
        (
            "throughput",
            lambda a=arm, b=batch, c=context: throughput(bench, a, b, c, args),
        )
        for context in args.contexts
        for batch in sizes
        for arm in bench.arms
    ]
    jobs += [("prefix", lambda a=arm: prefix_hits(bench, a, args)) for arm in engines]
    jobs += [
        ("eviction", lambda a=arm, p=policy: eviction(bench, a, p, args))
        for arm in engines
        for policy in ("lru", "lfu")
    ]
    tables: Dict[str, List[Dict]] = {"throughput": [], "prefix": [], "eviction": []}
    for name, job in (bar := tqdm(jobs)):
        bar.set_description(name)
        tables[name].append(job())
    for name, rows in tables.items():
        print(f"\n{name}")
        hidden = ("counters", "widest_gap")
        columns = dict.fromkeys(key for row in rows for key in row if key not in hidden)
        print_table(rows, tuple(columns))
    bench.finish({"bench": "suite", "new_tokens": args.new_tokens, **tables})


if __name__ == "__main__":
    run_main(main)
