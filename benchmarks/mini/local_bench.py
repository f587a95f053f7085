# SPDX-License-Identifier: Apache-2.0
"""One request at a time: time to the first token and tokens per second, against transformers.

python -m benchmarks.mini.local_bench --model DIR
python -m benchmarks.mini.local_bench --geometry qwen3-0.6b --prompt-tokens 128,4096

Tokens are checked against transformers' logits before anything is timed. The last line is one JSON object.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import product
from typing import List, Optional, Tuple

from transformers import TextIteratorStreamer

from benchmarks.mini.bench_common import Bench, bench_parser, ints, run_main
from sglang.mini.api import MiniError
from sglang.mini.engine import MiniEngine


def time_stream(
    bench: Bench, prompts: List[List[int]], engine: Optional[MiniEngine]
) -> Tuple[float, float]:
    """(TTFB s, tokens/s) of one prompt, read token by token from a stream: transformers' is its TextIteratorStreamer."""
    start = time.perf_counter()
    if engine:
        stream = engine.stream(prompts, bench.params)
        arrivals = [time.perf_counter() for _ in stream]
    else:
        stream = TextIteratorStreamer(bench.tokenizer, skip_prompt=True, timeout=600)
        generate = partial(bench.generate_hf, streamer=stream)
        worker = threading.Thread(
            target=generate, args=(prompts, bench.args.new_tokens)
        )
        worker.start()
        # A piece for every token, empty within a word, and one for the end.
        arrivals = [time.perf_counter() for _ in stream][:-1]
        worker.join()
    rate = (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
    return arrivals[0] - start, rate


def main(argv=None) -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--prompt-tokens", type=ints, default="128,1024")
    args = parser.parse_args(argv)
    bench = Bench(args)
    if bench.tokenizer is None:
        raise MiniError(f"{args.model} has no tokenizer, which the streamer needs.")
    timed = partial(time_stream, bench)
    shapes = product(bench.arms, args.prompt_tokens)
    jobs = [("rows", partial(bench.measure, arm, n, 1, timed)) for arm, n in shapes]
    bench.run("local", jobs)


if __name__ == "__main__":
    run_main(main)
