# SPDX-License-Identifier: Apache-2.0
"""Chat on the command line: python -m sglang.mini --model DIR"""

from __future__ import annotations

import argparse
import json
import sys
from typing import List, Optional

HELP = "/reset forgets the conversation, /stats shows the cache, /exit ends; Ctrl-C stops an answer"
DTYPES = ("float32", "float16", "bfloat16")
ENGINE_OPTIONS = {
    "backend": (str, "torch, sgl_kernel or hsa (default: ATTN_BACKEND, or torch)"),
    "device": (str, "cpu, cuda or mps (default: cuda if there is one)"),
    "dtype": (str, "float32, float16 or bfloat16 (default: float32 on a CPU)"),
    "page_size": (int, "tokens per page (default: 512, with hsa 64)"),
    "token_budget": (int, "tokens that the cache holds (default: 16384)"),
    "chunk_size": (int, "prompt tokens per pass (default: 2048)"),
    "max_running": (int, "requests that run at once (default: 32)"),
    "eviction": (str, "lru or lfu (default: lru)"),
    "tp_size": (int, "only 1 is supported"),
    "hsa_topk": (int, "pages that HSA selects (default: 32)"),
    "hsa_window_size": (int, "recent tokens that HSA always attends (default: 512)"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sglang.mini",
        description="Chat with a Hugging Face model on SGLang's attention kernels.",
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a Hugging Face checkpoint")
    add("--system", help="system message of the conversation")
    add("--max-tokens", type=int, default=256, help="of an answer (default: 256)")
    add("--temperature", type=float, default=0.0, help="0 is greedy")
    add("--top-p", type=float, default=1.0)
    add("--top-k", type=int, default=0, help="0 keeps all tokens")
    add("--seed", type=int)
    add("--stop", action="append", default=[], help="string that ends an answer")
    add_engine_options(parser)
    return parser


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Options of the engine, also those of the benchmarks; what is not given is left to MiniEngine."""
    group = parser.add_argument_group("engine")
    for name, (kind, text) in ENGINE_OPTIONS.items():
        group.add_argument("--" + name.replace("_", "-"), type=kind, help=text)


def engine_arguments(args: argparse.Namespace) -> dict:
    """Keyword arguments of MiniEngine from parsed options; imports torch.

    Raises:
        MiniError: for a dtype or an HSA option that does not exist.
    """
    import torch

    from sglang.mini.api import MiniError

    given = {name: getattr(args, name) for name in ENGINE_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if "dtype" in given:
        if given["dtype"] not in DTYPES:
            raise MiniError(
                f"dtype {given['dtype']!r} is not known: use {', '.join(DTYPES)}."
            )
        given["dtype"] = getattr(torch, given["dtype"])
    hsa = {name[4:]: given.pop(name) for name in list(given) if name[:4] == "hsa_"}
    if hsa:
        from sglang.srt.layers.attention.hsa.config import HSAConfig

        try:
            given["hsa"] = HSAConfig(**hsa)
        except ValueError as error:
            raise MiniError(str(error)) from None
    return given


def encode(tokenizer, messages: List[dict]) -> List[int]:
    """Token ids of a conversation; without a chat template those of its last message."""
    if not tokenizer.chat_template:
        return tokenizer(messages[-1]["content"]).input_ids
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


def chat(engine, params, system: Optional[str]) -> int:
    """Answer every line of standard input; returns the number of lines that failed."""
    start = [{"role": "system", "content": system}] if system else []
    messages, failed = list(start), 0
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return failed
        if line == "/exit":
            return failed
        elif line == "/reset":
            messages = list(start)
        elif line == "/stats":
            print(json.dumps(engine.stats()))
        elif line.startswith("/"):
            print(HELP, file=sys.stderr)
        elif line:
            messages.append({"role": "user", "content": line})
            answer, error = "", None
            try:
                tokens = encode(engine.tokenizer, messages)
            except Exception as failure:  # of the tokenizer or its chat template
                tokens, error = [], f"the line cannot be read ({failure!r})"
            deltas = iter(()) if error else engine.stream(tokens, params)
            try:
                for delta in deltas:
                    print(delta.text, end="", flush=True)
                    answer, error = answer + delta.text, delta.error
            except KeyboardInterrupt:
                deltas.close()  # cancels the request
            print()
            if error:
                print(f"error: {error}", file=sys.stderr)
                failed += 1
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def main(argv: Optional[List[str]] = None) -> int:
    args = build_parser().parse_args(argv)
    from sglang.mini import MiniEngine, MiniError, SamplingParams

    names = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
    try:
        params = SamplingParams(**{name: getattr(args, name) for name in names})
        engine = MiniEngine(args.model, **engine_arguments(args))
        if engine.tokenizer is None:
            raise MiniError(
                f"{args.model} has no tokenizer: a chat needs one, MiniEngine.generate does not."
            )
    except MiniError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stats = engine.stats()
    kind = "chat" if engine.tokenizer.chat_template else "completion, no chat template"
    print(
        f"{type(engine.runner.model).__name__} ({kind}): backend {stats['backend']} on {stats['device']}, "
        f"{stats['dtype']}, {stats['pages']} pages of {stats['page_size']} tokens. {HELP}.",
        file=sys.stderr,
    )
    return 1 if chat(engine, params, args.system) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
