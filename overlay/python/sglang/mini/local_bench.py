# SPDX-License-Identifier: Apache-2.0
"""One request at a time: time to the first token and tokens per second, against transformers.

python -m sglang.mini.local_bench --model DIR
python -m sglang.mini.local_bench --geometry qwen3-0.6b --prompt-tokens 128,4096

Tokens are compared with transformers' before anything is timed. The last line is one JSON object.
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import List, Tuple

from tqdm import tqdm
from transformers import TextIteratorStreamer

from sglang.mini.api import MiniError, SamplingParams
from sglang.mini.bench_common import Bench, bench_parser, print_table, run_main


class _Streamer(TextIteratorStreamer):
    """Notes when tokens arrive, since their text may wait for the end of a word."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True)
        self.arrivals: List[float] = []

    def put(self, value):
        self.arrivals.append(time.perf_counter())
        super().put(value)


def time_hf(bench: Bench, prompt: List[int], tokens: int) -> Tuple[float, float]:
    """(TTFB s, tokens/s) of transformers' generate in a thread, read through its TextIteratorStreamer."""
    streamer = _Streamer(bench.tokenizer)
    worker = threading.Thread(
        target=bench.generate_hf, args=([prompt], tokens), kwargs={"streamer": streamer}
    )
    start = time.perf_counter()
    worker.start()
    for _ in streamer:
        pass
    worker.join()
    return _rates(start, streamer.arrivals[1:])  # the first is the prompt


def time_engine(engine, prompt: List[int], tokens: int) -> Tuple[float, float]:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()
    arrivals = [time.perf_counter() for _ in engine.stream(prompt, params)]
    return _rates(start, arrivals)


def _rates(start: float, arrivals: List[float]) -> Tuple[float, float]:
    rate = (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
    return arrivals[0] - start, rate


def main(argv=None) -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--prompt-tokens", default="128,1024", help="prompt lengths")
    args = parser.parse_args(argv)
    lengths = [int(n) for n in args.prompt_tokens.split(",")]
    if args.new_tokens < 2 or args.repeats < 1:
        raise MiniError("use at least 2 --new-tokens and at least 1 --repeats.")
    bench = Bench(args)
    if bench.tokenizer is None:
        raise MiniError(f"{args.model} has no tokenizer, which the streamer needs.")
    prompts = {n: bench.prompt(n, seed=n) for n in lengths}
    expected = {n: bench.generate_hf([prompts[n]], args.new_tokens) for n in lengths}

    rows = []
    bar = tqdm(total=len(bench.arms) * len(lengths) * (args.repeats + 1))
    for arm in bench.arms:
        engine = None
        if arm != "hf":
            # Every repeat computes the whole prompt.
            engine = bench.engine(arm, prefix_cache=False)
        for n in lengths:
            bar.set_description(f"{arm} {n}")
            row = {"arm": arm, "prompt": n}
            if engine:
                row.update(bench.check(arm, [prompts[n]], expected[n]))
            runs = []
            for _ in range(args.repeats + 1):
                if engine:
                    runs.append(time_engine(engine, prompts[n], args.new_tokens))
                else:
                    runs.append(time_hf(bench, prompts[n], args.new_tokens))
                bar.update()
            ttfb, rate = map(statistics.median, zip(*runs[1:]))
            row["ttfb_s"], row["tokens_per_s"] = ttfb, rate
            row["prefill_roofline"] = bench.prefill_roof(n) / ttfb
            middle = n + args.new_tokens // 2
            row["decode_roofline"] = bench.decode_roof([middle], engine) * rate
            if arm == "hsa":
                row["counters"] = engine.stats()["hsa"]
            rows.append(row)
    bar.close()
    columns = ("arm", "prompt", "ttfb_s", "tokens_per_s", "prefill_roofline")
    print_table(rows, (*columns, "decode_roofline", "equal"))
    bench.finish({"bench": "local", "new_tokens": args.new_tokens, "rows": rows})


if __name__ == "__main__":
    run_main(main)
