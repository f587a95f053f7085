# SPDX-License-Identifier: Apache-2.0
"""What both benchmarks share: the model and its arms, the check before the timing, rooflines, tables."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from typing import Callable, Dict, List, Optional, Sequence

import torch

from sglang.mini.__main__ import add_engine_options, engine_arguments
from sglang.mini.api import MiniError, SamplingParams
from sglang.mini.engine import MiniEngine
from sglang.mini.model import ATTENTION, ModelRunner, load, pick_device
from sglang.mini.random_model import random_model


def bench_parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", help="folder of a checkpoint; without it random weights are used")
    add("--geometry", default="qwen3-tiny", help="random model: qwen3-tiny, -0.6b, -8b")
    add("--arms", default="hf,torch,sgl_kernel,hsa", help="what to compare")
    add("--new-tokens", type=int, default=32, help="tokens per request, at least 2")
    add("--repeats", type=int, default=3, help="timed runs, after one to warm up")
    add_engine_options(parser)
    return parser


class Bench:
    """A model, and the arms that run it: ``hf`` (plain transformers) and the engine's backends.

    Attributes:
        arms: those that run here. skipped: the others, with the reason.
        peaks: what the machine reaches in this run, see ``machine_peaks``.
    """

    def __init__(self, args: argparse.Namespace):
        self.options = options = engine_arguments(args)
        self.hsa = options.pop("hsa")
        if options.pop("backend"):
            raise MiniError("a benchmark compares backends: use --arms.")
        device = pick_device(options["device"])
        cpu = device.type == "cpu"
        dtype = options["dtype"] or (torch.float32 if cpu else torch.bfloat16)
        make, what = (load, args.model) if args.model else (random_model, args.geometry)
        self.model, self.tokenizer = make(what, device, dtype)
        self.specs = ModelRunner(self.model).specs
        self.peaks = machine_peaks(self.model.device, dtype)
        self.arms, self.skipped = [], {}
        for arm in args.arms.split(","):
            backend = None if arm == "hf" else self.engine(arm).backend
            if backend is None or backend.available():
                self.arms.append(arm)
            else:
                self.skipped[arm] = backend.reason

    def engine(self, arm: str, **changes) -> MiniEngine:
        hsa = self.hsa if arm == "hsa" else None
        options = {**self.options, "hsa": hsa, "backend": arm, **changes}
        return MiniEngine(self.model, self.tokenizer, **options)

    def exact_engine(self, arm: str, **changes) -> MiniEngine:
        """As ``engine``; HSA selects every page, which makes it dense attention."""
        if arm == "hsa":
            from sglang.srt.layers.attention.hsa.config import HSAConfig

            topk = self.options["token_budget"]
            changes["hsa"] = dataclasses.replace(self.hsa or HSAConfig(), topk=topk)
        return self.engine(arm, **changes)

    def prompt(self, length: int, seed: int) -> List[int]:
        generator = torch.Generator().manual_seed(seed)
        vocab = self.model.config.vocab_size
        return torch.randint(vocab, (length,), generator=generator).tolist()

    @contextlib.contextmanager
    def plain_model(self):
        """The model with transformers' own attention; SDPA has no soft cap."""
        capped = any(spec.softcap for spec in self.specs)
        self.model.set_attn_implementation("eager" if capped else "sdpa")
        yield self.model
        self.model.set_attn_implementation(ATTENTION)

    def generate_hf(self, prompts: List[List[int]], tokens: int, **kwargs):
        """Greedy tokens of transformers ``[B, tokens]`` for prompts of one length, past any end of sequence."""
        ids = torch.tensor(prompts, device=self.model.device)
        with self.plain_model() as model:
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                **kwargs,
            )
        return out[:, ids.shape[1] :].tolist()

    def compare(self, prompt: List[int], want: List[int], got: List[int]):
        """(tokens before the two part, relative gap of the plain model's logits there).

        Raises:
            MiniError: they part where it is no near-tie: the gap is above 2^-12 of the largest logit in float32,
                or above 5 % of it in 16 bits.
        """
        same = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b), None)
        if same is None:
            return len(want), 0.0
        ids = torch.tensor([prompt + want[:same]], device=self.model.device)
        with self.plain_model() as model, torch.inference_mode():
            out = model(ids, logits_to_keep=1, use_cache=False).logits[0, -1].float()
        gap = abs(float(out[want[same]] - out[got[same]])) / float(out.abs().max())
        limit = 2**-12 if self.model.dtype == torch.float32 else 0.05
        if gap > limit:
            raise MiniError(
                f"token {same} differs from the reference at a relative gap of {gap:.4f}, above {limit:.4f}."
            )
        return same, gap

    def check(self, arm: str, prompts: List[List[int]], expected) -> Dict[str, float]:
        """Compare an arm's greedy tokens with transformers', HSA with every page selected.

        Raises:
            MiniError: a request failed, or tokens differ.
        """
        params = SamplingParams(max_tokens=len(expected[0]), ignore_eos=True)
        done = self.exact_engine(arm).generate(prompts, params)
        for result in done:
            if result.error:
                raise MiniError(f"{arm}: {result.error}")
        same, gaps = zip(
            *(
                self.compare(prompt, want, result.token_ids)
                for prompt, want, result in zip(prompts, expected, done)
            )
        )
        total = len(expected) * len(expected[0])
        return {"equal": sum(same) / total, "widest_gap": max(gaps)}

    def decode_roof(
        self, lengths: Sequence[int], engine: Optional[MiniEngine] = None
    ) -> float:
        """Least seconds for one token of requests of these lengths: weights, keys and values are read once."""
        model, config = self.model, getattr(
            engine and engine.backend.ops, "config", None
        )
        embedding = model.get_input_embeddings().weight
        tied = embedding is model.get_output_embeddings().weight
        elements = sum(p.numel() for p in model.parameters())
        elements -= 0 if tied else embedding.numel()
        for spec in self.specs:
            width = spec.num_kv_heads * spec.head_dim
            for n in lengths:
                keys = min(n, spec.window or n)
                if config and not spec.window:
                    chosen = (config.topk + config.sink_pages) * config.page_size
                    keys = min(n, config.effective_window + chosen)
                    kind = engine.backend.ops.kind
                    elements += n // config.page_size * kind.width * width
                elements += 2 * keys * width
        return elements * model.dtype.itemsize / self.peaks["bytes_per_s"]

    def prefill_roof(self, length: int) -> float:
        """Least seconds for one prompt with dense attention: its products, or reading the weights."""
        body = sum(p.numel() for p in self.model.model.layers.parameters())
        flops = 2.0 * body * length
        for spec in self.specs:
            pairs = length * min(length / 2, spec.window or length)
            flops += 4 * pairs * spec.num_heads * spec.head_dim
        read = body * self.model.dtype.itemsize / self.peaks["bytes_per_s"]
        return max(flops / self.peaks["flops"], read)

    def finish(self, result: Dict) -> None:
        """Print what was skipped, then the result with the machine as one JSON line."""
        for arm, reason in self.skipped.items():
            print(f"{arm} was skipped: {reason}")
        config, device = self.model.config, self.model.device
        cuda = device.type == "cuda"
        machine = {
            "model": config.model_type,
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "device": torch.cuda.get_device_name(device) if cuda else device.type,
            "dtype": str(self.model.dtype).split(".")[-1],
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "peaks": self.peaks,
        }
        print(json.dumps({**machine, **result, "skipped": self.skipped}))


def machine_peaks(device: torch.device, dtype: torch.dtype) -> Dict[str, float]:
    """Bytes/s of a read or a copy, the larger, and flop/s of a matrix product, measured now."""
    cuda = device.type == "cuda"

    def best_time(call: Callable) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            call()
            if cuda:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    data = torch.ones((1 << 30 if cuda else 1 << 27) // 4, device=device)
    target = torch.empty_like(data)
    moved = {data.sum: data.nbytes, lambda: target.copy_(data): 2 * data.nbytes}
    bandwidth = max(size / best_time(call) for call, size in moved.items())
    n = 8192 if cuda else 512
    a = torch.ones(n, n, device=device, dtype=dtype)
    return {"bytes_per_s": bandwidth, "flops": 2 * n**3 / best_time(lambda: a @ a)}


def print_table(rows: List[Dict], columns: Sequence[str]) -> None:
    def text(value):
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    cells = [tuple(columns)]
    cells += [tuple(text(row.get(name, "")) for name in columns) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def run_main(main: Callable[[], None]) -> None:
    """Run a benchmark; a refusal is one line and exit code 2."""
    try:
        main()
    except MiniError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
