# SPDX-License-Identifier: Apache-2.0
"""Time of HiSparse's swap-in per call, the pinned release's kernel and the patched one side by side.

    PYTHONPATH=sglang/python python benchmarks/bench_hisparse_swap_in.py [--reps 60]

Each contestant runs the same steps on its own copy of the state, in a CUDA graph of eight steps; replays alternate. Two of
the contestants appear twice: the difference between the twins is the noise. ``keep`` is the share of a step's top-k that the
next step selects again; steps repeat every eight, so what it costs shows in ``misses``, the tokens that a request copies from
the host per step. The last line of the output is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import cuda_only
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hisparse"))

from hisparse_release import KERNEL  # noqa: E402, the line above makes it importable
from pin import pin_file  # noqa: E402
from swap_in import call, compile_kernel, draw_top_k, make_state  # noqa: E402

ITEM_BYTES, CONTEXT, STEPS = 1152, 65536, 8


class Contestant:
    def __init__(self, module, cpu, top_ks, dtype):
        self.module, self.state = module, cpu.copy("cuda")
        self.state.seq_lens = self.state.seq_lens.to(dtype)
        self.real = torch.full((1,), len(cpu.seq_lens), dtype=torch.int32, device="cuda")
        self.top_ks = [torch.from_numpy(t).cuda() for t in top_ks]
        self.out = torch.full_like(self.top_ks[0], -1)
        self.times = []
        self.step(0)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(STEPS):
                self.step(i)

    def step(self, i):
        call(self.module, self.state, self.top_ks[i], self.out, self.real)

    def replay(self):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        self.times.append(start.elapsed_time(end) * 1000 / STEPS)

    def misses(self):
        """Tokens that a step copies from the host, per request, in the state that the replays have settled in."""
        changed = 0
        for i in range(STEPS):
            before = self.state.device_buffer_tokens.clone()
            self.step(i)
            changed += int((self.state.device_buffer_tokens != before).sum())
        return round(changed / STEPS / len(self.state.seq_lens), 1)

    def host_us(self, calls=200):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for i in range(calls):
            self.step(i % STEPS)
        elapsed = time.perf_counter() - begin
        torch.cuda.synchronize()
        return elapsed / calls * 1e6


def measure(top_k, buffer, bs, keep, reps, pinned):
    """Medians in microseconds by contestant."""
    rng, lengths = np.random.default_rng(bs), [CONTEXT - 7 * i for i in range(bs)]
    cpu = make_state(lengths, buffer, torch.int32, item_bytes=ITEM_BYTES, host_tokens=200_000, seed=bs)
    top_ks = [draw_top_k(lengths, top_k, rng)]
    while len(top_ks) < STEPS:
        top_ks.append(draw_top_k(lengths, top_k, rng, top_ks[-1], keep))
    after = compile_kernel(top_k, buffer, item_bytes=ITEM_BYTES)
    field = {"after": (after, torch.int32), "after int64": (after, torch.int64), "after again": (after, torch.int32)}
    if pinned:
        before = compile_kernel(top_k, buffer, item_bytes=ITEM_BYTES, source=pinned)
        field = {"before": (before, torch.int32), **field, "before again": (before, torch.int32)}
    field = {name: Contestant(module, cpu, top_ks, dtype) for name, (module, dtype) in field.items()}
    order = list(field.values())
    for rep in range(reps + 5):
        for contestant in order if rep % 2 else order[::-1]:
            contestant.replay()
    result = {name: round(statistics.median(c.times[5:]), 2) for name, c in field.items()}
    spread = {name: round(float(np.subtract(*np.percentile(c.times[5:], [75, 25]))), 2) for name, c in field.items()}
    assert all(torch.equal(c.state.device_buffer, order[0].state.device_buffer) for c in order[1:])
    host = {name: round(c.host_us(), 2) for name, c in field.items() if "again" not in name}
    misses = order[0].misses()
    return dict(top_k=top_k, buffer=buffer, bs=bs, keep=keep, misses=misses, us=result, iqr=spread, host_us=host)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reps", type=int, default=60)
    options = cuda_only.parse_args(parser)
    pinned = pin_file(KERNEL)
    rows = []
    for top_k, buffer, bs, keep, compare in (
        (2048, 4096, 1, 0.9, True),
        (2048, 4096, 16, 0.9, True),
        (2048, 4096, 64, 0.9, True),
        (2048, 4096, 64, 0.7, True),
        (2048, 4096, 64, 0.5, True),
        (2048, 4096, 64, 1.0, True),
        (512, 1024, 64, 0.9, True),
        (2048, 7232, 64, 0.9, True),
        (2048, 7296, 64, 0.9, False),
        (2048, 16384, 64, 0.9, False),
        (2048, 32768, 32, 0.9, False),
    ):
        rows.append(measure(top_k, buffer, bs, keep, options.reps, pinned if compare else None))
        print(json.dumps(rows[-1]), flush=True)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    ).stdout.strip()
    print(json.dumps(dict(
        bench="hisparse_swap_in", gpu=torch.cuda.get_device_name(), driver=driver, torch=torch.__version__,
        item_bytes=ITEM_BYTES, context=CONTEXT, steps_per_graph=STEPS, reps=options.reps, rows=rows,
    )))


if __name__ == "__main__":
    main()
