# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode step time through sgl.Engine: HSA against dense backends, same geometry, random weights.

Prefill is the time of one new token after an emptied cache; the decode step is the slope between two output lengths of
the same cached prompt, in the median and at its fastest, since a small model's step waits for a host that others share.
Each HSA arm fails unless its counters say that pages were selected. Ends in one JSON line.

    python benchmarks/bench_steps.py --backends hsa flashinfer fa3 --shapes 8192x1 32768x1 32768x16
    python benchmarks/bench_steps.py --backends hils fa3 --geometry 7b --shapes 65536x1

``hils`` is HSA on a checkpoint of the shape that was trained for it; dense backends serve the one that was not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cuda_only
import geometries

ENOUGH = 10  # seconds of timed prefills


def shape(text: str) -> tuple[int, int]:
    """(tokens, requests) of ``LENGTHxBATCH``."""
    length, batch = text.split("x")
    return int(length), int(batch)


def option(text: str) -> tuple[str, str | int]:
    """(name, value) of ``NAME=VALUE``."""
    name, value = text.split("=")
    return "hsa_" + name, int(value) if name == "topk" else value


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="345m", choices=geometries.GEOMETRIES)
    parser.add_argument("--backends", nargs="+", default=["hsa", "flashinfer"])
    parser.add_argument("--dense", default="flashinfer", help="HSA's dense backend (default: %(default)s)")
    parser.add_argument(
        "--shapes", nargs="+", type=shape, default=[(8192, 1), (32768, 1)], metavar="LENGTHxBATCH",
        help="prompt tokens and requests (default: 8192x1 32768x1)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, nargs=2, default=[32, 160], metavar=("FEW", "MANY"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--prefills", type=int, default=3,
        help=f"timed prefills, none for 0, unless they take {ENOUGH} s before (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--hsa", nargs="+", type=option, default=[], metavar="NAME=VALUE",
        help="options of the HSA arm, such as topk=16 prefill=sparse",
    )  # fmt: skip
    parser.add_argument("--page-size", type=int, default=64, help="of the dense arms (default: %(default)s)")
    parser.add_argument("--deterministic", action="store_true", help="with --enable-deterministic-inference; HSA beside Triton then")
    parser.add_argument("--prefill-graphs", action="store_true", help="the dense arms keep SGLang's CUDA graphs of prefill")
    parser.add_argument(
        "--alike", type=int, default=1,
        help="prompts are runs of so many equal tokens, whose rows agree about pages as a trained model's do (default: %(default)s)",
    )  # fmt: skip
    return cuda_only.parse_args(parser)


def measure(engine, length: int, batch: int, args: argparse.Namespace) -> dict:
    """Median and spread of the prefill and the step time in milliseconds."""
    prompts = [[(7 * (i // args.alike) + 13 * b) % 50000 + 10 for i in range(length)] for b in range(batch)]

    def seconds(new: int) -> float:
        begin = time.perf_counter()
        engine.generate(input_ids=prompts, sampling_params=dict(temperature=0, ignore_eos=True, max_new_tokens=new))
        return time.perf_counter() - begin

    seconds(1)  # compiles what is not compiled yet
    prefills = []
    while len(prefills) < args.prefills and sum(prefills) < ENOUGH * 1e3:
        engine.flush_cache()
        prefills.append(seconds(1) * 1e3)  # the last one leaves the prompts in the radix cache
    seconds(args.steps[0])
    few, many = args.steps
    steps = [(seconds(many) - seconds(few)) / (many - few) * 1e3 for _ in range(args.repeats)]
    return dict(
        length=length,
        batch=batch,
        prefill_ms=round(statistics.median(prefills), 1) if prefills else None,
        prefill_spread_ms=round(max(prefills) - min(prefills), 1) if prefills else None,
        prefills=len(prefills),
        step_ms=round(statistics.median(steps), 4),
        spread_ms=round(max(steps) - min(steps), 4),
        fastest_step_ms=round(min(steps), 4),
    )


def run(backend: str, model: str, args: argparse.Namespace) -> list[dict]:
    import sglang as sgl
    from sglang.test.attention.hsa_release import graphs_up_to, without_prefill_graphs

    tokens = max(length for length, _ in args.shapes) + args.steps[1] + 128
    requests = max(batch for _, batch in args.shapes)
    sparse = backend in ("hsa", "hils")
    options = dict(attention_backend=backend, page_size=64 if backend == "hsa" else args.page_size)
    if backend == "hsa":
        options.update(hsa_dense_backend=args.dense, **dict(args.hsa))
    elif backend == "hils":
        options = dict(attention_backend="hsa")
    if sparse or not args.prefill_graphs:
        options.update(without_prefill_graphs())
    if args.deterministic:
        options.update(enable_deterministic_inference=True)
        if backend == "hsa":
            options.update(hsa_dense_backend="triton")
    with sgl.Engine(
        model_path=model,
        load_format="dummy",
        dtype="bfloat16",
        skip_tokenizer_init=True,
        context_length=tokens,
        max_running_requests=requests,
        **graphs_up_to(requests),
        max_total_tokens=max(length * batch for length, batch in args.shapes) + 1024 * requests,
        chunked_prefill_size=8192,
        sampling_backend="pytorch",
        grammar_backend="none",
        log_level="error",
        **options,
    ) as engine:
        rows = []
        for length, batch in args.shapes:
            row = dict(backend=backend, **measure(engine, length, batch, args))
            rows.append(row)
            print(row, flush=True)
            engine.flush_cache()
        counters = engine.get_server_info()["internal_states"][0].get("hsa_counters")
    if sparse:
        print("counters", counters, flush=True)
        if not (counters["rows_sparse"] and counters["pages_selected"] < counters["pages_candidate"]):
            raise SystemExit("bench_steps: the HSA arm selected nothing; nothing was measured")
    return rows


def main() -> None:
    import torch
    import triton

    from sglang.version import __version__ as release

    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for backend in args.backends:
            write = geometries.write_hils_config if backend == "hils" else geometries.write_config
            rows += run(backend, write(args.geometry, Path(folder) / backend), args)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    provenance = dict(
        command=" ".join(sys.argv),
        commit=commit,
        release=release,
        gpu=torch.cuda.get_device_name(),
        torch=torch.__version__,
        triton=triton.__version__,
        geometry=args.geometry,
        repeats=args.repeats,
        hsa=dict(args.hsa),
    )
    print(json.dumps(dict(provenance, rows=rows)))


if __name__ == "__main__":
    main()
