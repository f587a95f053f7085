#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask a small pretrained model about a long text: densely, with HSA and with the window alone. Then one trained for HSA.

Run by quickstart.sh inside its environment, on the CPU. Fails unless HSA answers what dense attention answers, the
window alone does not, HSA with all pages selected is dense attention to the token, and the trained one answers too.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benchmarks.quality.serving import Server, ServingError  # noqa: E402, the line above makes these importable
from benchmarks.retrieval import window_only  # noqa: E402
from quickstart_tool import proof, scene  # noqa: E402
from quickstart_tool.proof import Failure  # noqa: E402

TOPK = 8
ALL_PAGES = 1024
PAGE = 64
WINDOW = 576  # tokens: HSA's window of 512, extended to a page boundary
OPTIONS = ["--device", "cpu", "--dtype", "float32", "--max-total-tokens", "16384", "--max-running-requests", "4"]


def server(name: str, asked: scene.Scene, logs: Path, *options: str) -> Server:
    # A machine's GPUs stay out of it: what is shown here is the CPU path, the same everywhere.
    env = {"CUDA_VISIBLE_DEVICES": "", "SGLANG_EXTERNAL_MODEL_PACKAGE": window_only.__name__}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return Server(name, logs, asked.model, [*OPTIONS, *options], env)


def run(work: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    asked = scene.choose()
    print(*asked.about, sep="\n")
    hsa = ("--attention-backend", "hsa", "--hsa-prefill", "sparse", "--hsa-topk")
    dense = ("--attention-backend", "torch_native")
    with server(f"HSA {TOPK} pages", asked, work, *hsa, str(TOPK)) as running:
        print(f"  page budget: {TOPK} pages of {PAGE} tokens per query and KV head, {TOPK * PAGE} of {asked.tokens:,} tokens,")
        print(f"  and the window of at most {WINDOW} tokens and the first page")
        found = proof.ask(running, asked)
        share = proof.attended(running)
    with server("window alone", asked, work, *dense, "--json-model-override-args",
                window_only.override(WINDOW, asked.architecture)) as running:  # fmt: skip
        print(f"  the same weights see the last {WINDOW} tokens of every layer, nothing else")
        guessed = proof.ask(running, asked, f"the last {WINDOW} tokens")
    with server("HSA all pages", asked, work, *hsa, str(ALL_PAGES)) as running:
        full = proof.generate(running, asked.ids)
        proof.check_all_pages(running, ALL_PAGES)
    with server("dense attention", asked, work, *dense) as running:
        known = proof.ask(running, asked)
        exact = proof.generate(running, asked.ids)
    proof.compare(exact, full)
    proof.conclude(asked, known, proof.Answer(found.name, found.text, found.right, found.seconds, share), guessed)


def run_trained(work: Path) -> None:
    asked = scene.needle(scene.TRAINED)
    print("\nA checkpoint that was trained for HSA, served as it is:", *asked.about, sep="\n")
    with server("trained for HSA", asked, work, "--attention-backend", "hsa") as running:
        found = proof.ask(running, asked)
        share = proof.attended(running)
    proof.conclude_trained(asked, proof.Answer(found.name, found.text, found.right, found.seconds, share))


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
        run_trained(work)
    except (Failure, ServingError) as failure:
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
