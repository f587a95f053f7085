# SPDX-License-Identifier: Apache-2.0
"""Calibrate HSA on a model and your own texts: python -m sglang.hsa_calibrate --model DIR --text FILES"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional

from sglang.hsa_calibrate import CalibrateError

DEFAULT_BUDGETS = (4, 8, 16, 32)
DEFAULT_TOKENS = 4096


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sglang.hsa_calibrate",
        description="Perplexity and attended attention mass of HSA on a model and your own texts, and the options that "
        "keep a stated loss.",
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a Hugging Face checkpoint")
    add("--text", required=True, nargs="+", metavar="FILE", help="UTF-8 texts")
    add("--budgets", type=int, nargs="+", metavar="PAGES",
        help=f"pages that a query selects (default: {' '.join(map(str, DEFAULT_BUDGETS))})")  # fmt: skip
    add(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="page representations (default: HSA's default)",
    )
    add("--exact", action="store_true",
        help="also measure an exact choice of pages: what the budget alone loses")  # fmt: skip
    add("--strategy", help="selection strategy (default: HSA's default)")
    add("--layers", help="layers that use HSA (default: HSA's)")
    add("--max-loss", type=float, default=0.003,
        help="relative perplexity that may be lost (default: 0.003)")  # fmt: skip
    add("--max-dense-layers", type=int,
        help="more layers left out of HSA at most (default: an eighth; 0: none)")  # fmt: skip
    add(
        "--tokens",
        type=int,
        help=f"of each text, its first (default: {DEFAULT_TOKENS})",
    )
    add(
        "--skip",
        type=int,
        help="first rows of each text that are not scored (default: the window)",
    )
    add(
        "--window-size",
        type=int,
        help="recent tokens that are always attended (default: HSA's)",
    )
    add("--page-size", type=int, help="tokens per page (default: HSA's)")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default: float32 on a CPU",
    )
    add("--json", metavar="FILE", help="write everything that was measured")
    page = parser.add_argument_group("page of selections")
    page.add_argument("--html", metavar="FILE", help="write the page")
    page.add_argument(
        "--prompt", metavar="FILE", help="its prompt (default: the first text)"
    )
    page.add_argument(
        "--answer", metavar="TEXT", help="its answer (default: the model's own)"
    )
    page.add_argument(
        "--new-tokens",
        type=int,
        default=16,
        help="of the model's own answer (default: 16)",
    )
    return parser


def make_config(args: argparse.Namespace):
    """HSA's options as asked for, with the largest budget and the first kind.

    Raises:
        CalibrateError: for a kind, strategy, budget or size that does not exist.
    """
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.page_repr import KINDS

    for kind in args.kinds or ():
        if kind not in KINDS:
            raise CalibrateError(
                f"--kinds {kind}: there is no such representation; use {', '.join(KINDS)}."
            )
    if args.budgets and min(args.budgets) < 1:
        raise CalibrateError(f"--budgets {min(args.budgets)}: use 1 page or more.")
    for name, least in (
        ("max_loss", 0),
        ("max_dense_layers", 0),
        ("tokens", 2),
        ("skip", 0),
        ("new_tokens", 1),
    ):
        value = getattr(args, name)
        if value is not None and not value >= least:
            option = name.replace("_", "-")
            raise CalibrateError(f"--{option} {value}: use {least} or more.")
    given = {
        "topk": max(args.budgets or DEFAULT_BUDGETS),
        "selection_strategy": args.strategy,
        "layers": args.layers,
        "window_size": args.window_size,
        "page_size": args.page_size,
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        configs = [
            HSAConfig(**given, chunk_repr=kind)
            for kind in args.kinds or (HSAConfig.chunk_repr,)
        ]
    except ValueError as error:
        raise CalibrateError(str(error)) from None
    return configs[0]


def calibrate(args: argparse.Namespace) -> int:
    """Measure, search, report; returns the exit status: 0, or 1 if no setting keeps the loss.

    Raises:
        CalibrateError: for anything that cannot be done.
    """
    from sglang.hsa_calibrate import loading, recommend, report
    from sglang.hsa_calibrate.measure import EXACT, Bench, Measurement, Setting
    from sglang.hsa_calibrate.probe import kept_channels, probe
    from sglang.srt.layers.attention.hsa.page_repr import KINDS

    config = make_config(args)
    kinds = list(dict.fromkeys(args.kinds or [config.chunk_repr]))
    budgets = sorted(set(args.budgets or DEFAULT_BUDGETS))
    skip = config.effective_window if args.skip is None else args.skip
    for file in (args.html, args.json):
        if file and not Path(file).absolute().parent.is_dir():
            raise CalibrateError(f"{file} cannot be written: there is no such folder.")
    model, tokenizer = loading.load_model(args.model, args.device, args.dtype)
    length = loading.num_tokens(args.tokens, DEFAULT_TOKENS, model)
    texts = [loading.read_text(file, tokenizer).cut(length) for file in args.text]
    loading.check_lengths(texts, config, skip)
    layers = probe(model)
    slow = any(KINDS[kind].slow for kind in kinds)
    channels = kept_channels(model, layers) if slow else {}
    try:
        bench = Bench(model, layers, texts, config, channels, skip)
    except ValueError as error:
        raise CalibrateError(str(error)) from None
    prompt = loading.read_text(args.prompt, tokenizer) if args.prompt else texts[0]

    say(f"{type(model).__name__}: {layers.count} layers, {len(layers.full)} with full attention, {len(bench.named)} with HSA; "
        f"{sum(len(text.ids) for text in texts)} tokens in {len(texts)} texts, {model.dtype} on {model.device}")  # fmt: skip
    conversation = None
    if args.html:  # first: it may be refused
        from sglang.hsa_calibrate import page, trace

        conversation = trace.converse(
            bench, tokenizer, prompt, args.answer, args.new_tokens
        )
    clock = time.monotonic()
    dense = bench.dense()
    say(f"dense: perplexity {dense.perplexity:.3f} ({time.monotonic() - clock:.0f} s)")
    measured: Dict[Setting, Measurement] = {}

    def measure(setting: Setting) -> recommend.Outcome:
        clock = time.monotonic()
        m = measured[setting] = bench.sparse(setting)
        layers = (
            f", dense layers {recommend.ranges(setting.dense_layers)}"
            if setting.dense_layers
            else ""
        )
        say(f"{setting.kind}, {setting.topk} pages{layers}: perplexity {m.perplexity:.3f}, "
            f"mass {report.percent(m.mean_mass)} ({time.monotonic() - clock:.0f} s)")  # fmt: skip
        return recommend.Outcome(setting, m.loss(dense), m.mass)

    limit = recommend.dense_layer_limit(len(bench.named))
    if args.max_dense_layers is not None:
        limit = min(args.max_dense_layers, len(bench.named) - 1)
    found = recommend.recommend(kinds, budgets, measure, args.max_loss, limit)
    if args.exact:
        for topk in budgets:
            measure(Setting(EXACT, topk))

    shown_kinds = [*kinds, EXACT]
    rows = sorted(
        measured.values(),
        key=lambda m: (
            shown_kinds.index(m.setting.kind),
            m.setting.topk,
            len(m.setting.dense_layers),
        ),
    )
    best = measured[found.best.setting]
    print(report.mass_table(rows), end="\n\n")
    print(report.table(bench, dense, rows), end="\n\n")
    name = Path(args.model).absolute().name
    if args.json:
        asked = {"strategy": config.selection_strategy, "kinds": kinds, "budgets": budgets, "skip": skip,
                 "max_dense_layers": limit, "window_size": config.window_size, "page_size": config.page_size,
                 "device": str(model.device), "dtype": str(model.dtype)}  # fmt: skip
        data = report.as_json(name, asked, bench, dense, rows, found, args.max_loss)
        write(args.json, json.dumps(data, indent=1) + "\n")
    if conversation:
        shown = [m for m in rows if not m.setting.dense_layers or m is best]
        traces = [trace.trace(bench, conversation, m.setting) for m in shown]
        html = page.render(
            name, tokenizer, bench, conversation, dense, shown, traces, found
        )
        write(args.html, html)
        say(f"page: {args.html}")
    print("\n".join(report.verdict(bench, found, dense, best, args.max_loss)))
    return 0 if found.passed else 1


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CalibrateError(f"{file} cannot be written: {error.strerror}.") from None


def main(argv: Optional[List[str]] = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return calibrate(args)
    except CalibrateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
