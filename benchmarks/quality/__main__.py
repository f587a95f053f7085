# SPDX-License-Identifier: Apache-2.0
"""Check on a pretrained model that HSA loses nothing against dense attention: see docs/quality.md."""

from __future__ import annotations

import argparse
import functools
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.retrieval import runner

from . import arms, documents, fetch, gates, measure, model, picture, report
from .serving import Server, ServingError

TIERS = {
    "full": dict(lengths=[4096, 7500], keys=40, limits=gates.FULL),
    "small": dict(lengths=[2816], keys=6, limits=gates.SMALL),
}
SMALL_BUDGET = 8
# On a CPU the cache would take most of the memory that is free.
CPU_OPTIONS = ["--device", "cpu", "--dtype", "float32", "--max-total-tokens", "16384"]
# A small model needs little cache; log-probabilities of whole prompts need room beside it.
GPU_OPTIONS = ["--dtype", "bfloat16", "--mem-fraction-static", "0.5"]


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split(":")[0])
    main.add_argument("--tier", choices=TIERS, default="full", help="small is for a CPU (default: %(default)s)")
    main.add_argument("--out", type=Path, required=True, help="folder of gates.json, the picture and the servers' logs")
    main.add_argument("--gguf", type=Path, help=f"{fetch.FILE}, on a machine without a package index")
    main.add_argument(
        "--arm", action="append", default=[], metavar="NAME=VALUE,...",
        help=f"one more arm, as often as given; names: {', '.join(arms.OPTIONS)}",
    )  # fmt: skip
    main.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where torch sees a device")
    main.add_argument("--dense-backend", help="attention backend of the dense arm (default: fa3 if it loads, else triton)")
    main.add_argument("--server-args", default="", help="options for every server, in one string")
    main.add_argument("--keys", type=int, help="pass keys per length")
    main.add_argument("--lengths", nargs="+", type=int, help="tokens")
    main.add_argument("--retrieval-samples", type=int, default=20, help="per task, length and depth; 0: no suite")
    main.add_argument("--concurrency", type=int, default=16, help="requests in flight (default: %(default)s)")
    main.add_argument(
        "--text", nargs="+", type=Path, metavar="FILE", help="texts, one document each (default: the topics of Python's help)"
    )
    main.add_argument("--commit", help="what is measured, where git cannot tell")
    return main


def run(args: argparse.Namespace, command: list[str]) -> int:
    """Measure every arm; the exit status."""
    import torch
    from transformers import AutoTokenizer

    tier = TIERS[args.tier]
    small = args.tier == "small"
    on_cpu = args.device == "cpu" or args.device is None and not torch.cuda.is_available()
    samples = 0 if small else args.retrieval_samples
    more = [arms.parse(text) for text in args.arm]
    chosen = arms.small(SMALL_BUDGET, more) if small else arms.full(arms.default_budget(), more)
    limits, lengths = tier["limits"], args.lengths or tier["lengths"]

    folder = model.folder(args.gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encode = functools.partial(tokenizer.encode, add_special_tokens=False, verbose=False)
    texts, digest = documents.tokenized(encode, max(lengths), files=args.text)
    asked = measure.contexts(texts, encode, tokenizer.bos_token_id, lengths, args.keys or tier["keys"], small)

    backend = arms.dense_backend(args.dense_backend, on_cpu)
    args.out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = dict(
        version=report.VERSION,
        complete=False,
        holds=False,
        failures=[],
        gates=gates.declared(limits, samples > 0),
        rows=[],
        retrieval=[],
        tier=args.tier,
        model=f"{fetch.FILE}, sha256 {fetch.SHA256}",
        documents=dict(source=[file.name for file in args.text] if args.text else "pydoc_data.topics", count=len(texts), sha256=digest),
        commit=args.commit or runner.commit(),
        machine=report.machine(on_cpu),
        dense_backend=backend,
        dtype="float32" if on_cpu else "bfloat16",
        command=report.command(command),
        answers={},
    )
    print("gates, before anything is measured:", *content["gates"], sep="\n  ", flush=True)

    count = measure.sentence_counter(encode)
    options = (CPU_OPTIONS if on_cpu else GPU_OPTIONS) + shlex.split(args.server_args)
    concurrency = args.concurrency
    env = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    dense: dict[int, dict[str, Any]] = {}
    suites: dict[str, dict[str, Any]] = {}
    for arm in chosen:
        with Server(arm.name, args.out, folder, arm.arguments(backend, on_cpu) + options, env, show=False) as server:
            info = server.get("/server_info")
            for context in asked:
                before = server.counters() if arm.role != arms.DENSE else {}
                begun = time.monotonic()
                found = measure.context(server, context, tokenizer.decode, concurrency)
                seconds = time.monotonic() - begun
                content["answers"].setdefault(arm.name, {})[str(context.length)] = found["answers"]
                text = f"{found['keys']} of {found['keys_total']} keys, perplexity {found['ppl']:.3f}, {seconds:.0f} s"
                print(f"  {context.length:,} tokens: {text}", flush=True)
                if arm.role == arms.DENSE:
                    dense[context.length] = found
                else:
                    counters = measure.counted(before, server.counters())
                    content["rows"].append(report.row(arm, found, dense[context.length], info, counters, seconds))
                report.save(args.out / "gates.json", content)
            if samples and arm.role in (arms.DENSE, arms.DEFAULT):
                suites[arm.role] = measure.suite(server, args.out, arm.role, count, samples, 2 * concurrency)
                print(f"  retrieval: {suites[arm.role]['results']} answers", flush=True)
                if len(suites) == 2:
                    content["retrieval"] = measure.suite_rows(suites[arms.DENSE], suites[arms.DEFAULT])
                    report.save(args.out / "gates.json", content)

    failures = gates.judge(content["rows"], content["retrieval"], limits)
    content.update(complete=True, holds=not failures, failures=failures)
    report.save(args.out / "gates.json", content)
    title = f"SmolLM2-135M on real text, {content['machine'].get('gpu', 'CPU')}, {content['dtype']}"
    (args.out / "gates.svg").write_text(picture.draw(content["rows"], title), encoding="utf-8")
    print("\n" + report.table(content["rows"]))
    if content["retrieval"]:
        print("\n" + report.suite_table(content["retrieval"]))
    print("\n" + ("all gates hold" if not failures else "a gate does not hold:\n  " + "\n  ".join(failures)))
    return 1 if failures else 0


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are stopped on its way
    try:
        return run(args, given)
    except (arms.ArmError, documents.DocumentError, fetch.ModelError, runner.RunError, ServingError) as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"quality: interrupted; what was measured is in {args.out}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
