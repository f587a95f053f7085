# SPDX-License-Identifier: Apache-2.0
"""What both benchmarks share: the model and its arms, the check before the timing, rooflines, the result."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from contextlib import contextmanager
from typing import Callable, Dict, List, Sequence, Tuple

import pandas
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.peaks import measure_peaks
from sglang.mini.__main__ import add_engine_options, engine_arguments
from sglang.mini.api import Completion, MiniError, SamplingParams
from sglang.mini.engine import MiniEngine
from sglang.mini.model import ATTENTION, ModelRunner, load, pick_device
from sglang.srt.layers.attention.hsa.config import HSAConfig

SHAPE = "num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim vocab_size"
GEOMETRIES = {
    "qwen3-tiny": (4, 128, 256, 8, 2, 32, 4096),
    "qwen3-0.6b": (28, 1024, 3072, 16, 8, 128, 151936),
    "qwen3-8b": (36, 4096, 12288, 32, 8, 128, 151936),
}


def random_model(name: str, device: torch.device, dtype: torch.dtype):
    """A Qwen3 of one of GEOMETRIES, and a tokenizer whose words are numbers. The same weights every time."""
    from tokenizers import Tokenizer, models

    if name not in GEOMETRIES:
        raise MiniError(f"geometry {name!r} is not known: use {', '.join(GEOMETRIES)}.")
    shape = dict(zip(SHAPE.split(), GEOMETRIES[name]))
    shape.update(max_position_embeddings=1 << 20, eos_token_id=None)
    config = AutoConfig.for_model("qwen3", **shape)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(0)
    for key, weight in sorted(model.named_parameters()):
        if weight.dim() == 2:
            # Logits differ clearly, so a lost page changes the tokens, and 16 bits hardly change the logits.
            fan_in = 1 if "embed" in key else weight.shape[1]
            loud = any(part in key for part in ("q_proj", "k_proj", "o_proj", "lm_"))
            weight.data.normal_(0, (2 if loud else 1) / fan_in**0.5)
    words = models.WordLevel({str(i): i for i in range(config.vocab_size)}, "0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    return model.eval(), tokenizer


def ints(text: str) -> List[int]:
    return [int(part) for part in text.split(",")]


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
        peaks: bytes/s of a read or a copy, the larger, and flop/s of a matrix product, measured now.
    """

    def __init__(self, args: argparse.Namespace):
        if args.new_tokens < 2 or args.repeats < 1:
            raise MiniError("use at least 2 --new-tokens and at least 1 --repeats.")
        self.args = args
        self.params = SamplingParams(max_tokens=args.new_tokens, ignore_eos=True)
        self.options = engine_arguments(args)
        if self.options.pop("backend", None):
            raise MiniError("a benchmark compares backends: use --arms.")
        device = pick_device(self.options.get("device"))
        plain = torch.float32 if device.type == "cpu" else torch.bfloat16
        dtype = self.options.get("dtype", plain)
        make, what = (load, args.model) if args.model else (random_model, args.geometry)
        self.model, self.tokenizer = make(what, device, dtype)
        self.specs = ModelRunner(self.model).specs
        self.peaks = measure_peaks(device, dtype)
        self.arms, self.skipped = [], {}
        for arm in args.arms.split(","):
            if arm != "hf" and (reason := self.engine(arm).backend.reason):
                self.skipped[arm] = reason
            else:
                self.arms.append(arm)

    def engine(self, arm: str, exact: bool = False, **changes) -> MiniEngine:
        """The engine of an arm; ``exact`` lets HSA select every page, which makes it dense attention."""
        options = {**self.options, "backend": arm, **changes}
        hsa = options.pop("hsa", None) or HSAConfig()
        if arm == "hsa":
            options["hsa"] = dataclasses.replace(hsa, topk=10**6) if exact else hsa
        return MiniEngine(self.model, self.tokenizer, **options)

    def prompt(self, length: int, seed: int) -> List[int]:
        generator = torch.Generator().manual_seed(seed)
        vocab = self.model.config.vocab_size
        return torch.randint(vocab, (length,), generator=generator).tolist()

    def complete(self, engine: MiniEngine, prompts, params=None) -> List[Completion]:
        """What the engine answers; MiniError if a request failed."""
        results = engine.generate(prompts, params or self.params)
        for error in filter(None, (result.error for result in results)):
            raise MiniError(f"{engine.backend.name}: {error}")
        return results

    @contextmanager
    def plain(self):
        """The model with transformers' own attention: SDPA, or eager for a soft cap, which SDPA lacks."""
        capped = any(spec.softcap for spec in self.specs)
        self.model.set_attn_implementation("eager" if capped else "sdpa")
        try:
            with torch.inference_mode():
                yield self.model
        finally:
            self.model.set_attn_implementation(ATTENTION)

    def generate_hf(self, prompts: List[List[int]], tokens: int, **kwargs):
        """Greedy tokens of transformers ``[B, tokens]`` for prompts of one length, past any end of sequence."""
        ids = torch.tensor(prompts, device=self.model.device)
        options = dict(max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        options.update(attention_mask=torch.ones_like(ids), **kwargs)
        options["eos_token_id"] = self.model.config.vocab_size  # no token ends it
        with self.plain() as model:
            return model.generate(ids, **options)[:, ids.shape[1] :].tolist()

    def check(self, prompt: List[int], answer: List[int]) -> Tuple[float, float]:
        """(share of tokens that the plain model would choose, widest gap of its logits where it would not).

        Raises:
            MiniError: the gap to the largest logit is more than a near-tie: more than 2^-12 of it in float32, or
                more than 5 % of it in 16 bits.
        """
        ids = torch.tensor([prompt + answer], device=self.model.device)
        with self.plain() as model:
            out = model(ids, logits_to_keep=len(answer) + 1, use_cache=False)
        logits = out.logits[0, :-1].float()  # [tokens, vocab]
        chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        gaps = (logits.amax(-1) - chosen) / logits.abs().amax(-1)
        gap, token = (x.item() for x in gaps.max(0))
        limit = 2**-12 if self.model.dtype == torch.float32 else 0.05
        if not gap <= limit:  # also if it is not a number
            raise MiniError(
                f"token {token} differs from the reference at a relative gap of {gap:.4f}, above {limit:.4f}."
            )
        return (gaps == 0).float().mean().item(), gap

    def measure(self, arm: str, length: int, batch: int, time_arm: Callable) -> Dict:
        """Check an arm's greedy tokens, then time it without a prefix cache.

        Args:
            time_arm: (prompts, engine or None for ``hf``) -> (seconds to the first token of all, tokens/s after it).

        Raises:
            MiniError: a request failed, or its tokens are wrong.
        """
        prompts = [self.prompt(length, seed) for seed in range(batch)]
        row, engine = {"arm": arm, "prompt": length, "batch": batch}, None
        if arm != "hf":
            results = self.complete(self.engine(arm, exact=True), prompts)
            checks = [self.check(p, r.token_ids) for p, r in zip(prompts, results)]
            equal, gaps = zip(*checks)
            row["equal"], row["widest_gap"] = statistics.mean(equal), max(gaps)
            engine = self.engine(arm, prefix_cache=False)
        runs = [time_arm(prompts, engine) for _ in range(self.args.repeats + 1)]
        ttfb, rate = map(statistics.median, zip(*runs[1:]))
        row["ttfb_s"], row["tokens_per_s"] = ttfb, rate
        row["prefill_roofline"] = batch * self.prefill_roof(length) / ttfb
        middle = length + self.args.new_tokens // 2
        least = self.decode_roof(middle, batch, engine)
        row["decode_roofline"] = least * rate / batch
        if arm == "hsa":
            row["counters"] = engine.stats()["hsa"]
        return row

    def decode_roof(self, length: int, batch: int, engine) -> float:
        """Least seconds for one token of each request: weights, keys and values are read once."""
        model, backend = self.model, engine and engine.backend
        embedding = model.get_input_embeddings().weight
        elements = sum(p.numel() for p in model.parameters())
        if embedding is not model.get_output_embeddings().weight:
            elements -= embedding.numel()
        for spec in self.specs:
            rows = 2 * min(length, spec.window or length)
            if spec.layer in getattr(backend, "layers", ()):
                config = backend.config
                chosen = (config.topk + config.sink_pages) * config.page_size
                rows = 2 * min(length, config.effective_window + chosen)
                pages = length // config.page_size
                row_bytes = spec.head_dim * model.dtype.itemsize
                dtype = backend.kind.storage_dtype(model.dtype)
                size = backend.kind.repr_dim(spec.head_dim, config.page_size)
                rows += pages * size * dtype.itemsize / row_bytes
            elements += batch * rows * spec.num_kv_heads * spec.head_dim
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

    def run(self, name: str, jobs: Sequence[Tuple[str, Callable[[], Dict]]]) -> None:
        """Run jobs of (table, call -> row); print the tables, and all with the machine as one JSON line."""
        tables: Dict[str, List[Dict]] = {}
        try:
            for title, job in (bar := tqdm(jobs)):
                bar.set_description(title)
                tables.setdefault(title, []).append(job())
        finally:  # an error or an interrupt leaves the rows before it
            for title, rows in tables.items():
                table = pandas.DataFrame(rows).drop(columns="counters", errors="ignore")
                form = dict(index=False, float_format="{:.3g}".format, na_rep="")
                print(f"\n{title}\n{table.to_string(**form)}")
        for arm, reason in self.skipped.items():
            print(f"{arm} was skipped: {reason}")
        device = self.model.device
        cuda = device.type == "cuda"
        result = {
            "bench": name,
            "options": vars(self.args),
            "model": self.model.config.model_type,
            "device": torch.cuda.get_device_name(device) if cuda else device.type,
            "dtype": str(self.model.dtype).split(".")[-1],
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "peaks": self.peaks,
            "skipped": self.skipped,
        }
        print(json.dumps({**result, **tables}))


def run_main(main: Callable[[], None]) -> None:
    """Run a benchmark; a refusal is one line and exit code 2."""
    try:
        main()
    except MiniError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
