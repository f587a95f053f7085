# SPDX-License-Identifier: Apache-2.0
"""What page selection covers of exact attention, without a task: a table per layer, KV head, kind, strategy, K, window.

    python benchmarks/selection_recall.py --model examples/needle/checkpoint --lengths 8192 --out recall
    python benchmarks/selection_recall.py --synthetic --lengths 8192 --out recall-synthetic

Queries, rotated keys and softmax scale are those of the model's own attention calls (transformers), or heavy-tailed
synthetic ones. Pages are scored and selected by the project's reference ops. Writes OUT.csv, OUT.svg and OUT.json.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import torch

from sglang.srt.layers.attention.hsa.chunk_repr import KINDS
from sglang.srt.layers.attention.hsa.config import SELECTION_STRATEGIES
from sglang.srt.layers.attention.hsa.layout import num_candidate_pages, window_start_page
from sglang.srt.layers.attention.hsa.ops.select_pages.reference import compute_logits, topk_transform

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import recall_plot  # noqa: E402
from benchmarks.retrieval import samples  # noqa: E402
from benchmarks.retrieval.runner import commit  # noqa: E402
from benchmarks.retrieval.tasks import TASKS  # noqa: E402

WIDEST = max(kind.width for kind in KINDS.values())
COLUMNS = (
    "source length layer kv_head kind strategy topk equal_bytes window sinks queries mass mass_best mass_local "
    "pages top_page"
).split()


@dataclass(frozen=True)
class Attention:
    """One layer's attention call for some of its queries.

    Attributes:
        q: rotated queries ``[N, H_q, D]`` float32.
        k: rotated keys of the whole sequence ``[S, H_kv, D]`` float32.
        positions: of the queries ``[N]`` int64; each sees keys 0 to its position.
        scale: of the softmax.
    """

    source: str
    layer: int
    q: torch.Tensor
    k: torch.Tensor
    positions: torch.Tensor
    scale: float


class Pages:
    """Exact attention of the queries, summed over pages, and the pages' representations."""

    def __init__(self, call: Attention, page_size: int):
        self.call, self.page_size = call, page_size
        length, self.kv_heads, dim = call.k.shape
        self.count = -(-length // page_size)
        whole = length // page_size
        q = call.q.view(call.q.shape[0], self.kv_heads, -1, dim)  # [N, H_kv, G, D]
        logits = torch.einsum("nhgd,shd->nhgs", q, call.k) * call.scale
        hidden = torch.arange(length) > call.positions[:, None]
        logits = logits.masked_fill(hidden[:, None, None, :], float("-inf"))
        padded = torch.nn.functional.pad(logits, (0, self.count * page_size - length), value=float("-inf"))
        self.page_lse = padded.unflatten(-1, (self.count, page_size)).logsumexp(-1)  # [N, H_kv, G, C]
        self.mass = (self.page_lse - self.page_lse.logsumexp(-1, keepdim=True)).exp()  # [N, H_kv, G, C]
        keys = call.k[: whole * page_size].unflatten(0, (whole, page_size))
        # An incomplete page is never a candidate.
        self.repr = {name: kind.from_keys(keys) for name, kind in KINDS.items()}

    def parts(self, window: int, sinks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks ``[N, C]``: pages that are always attended, and candidate pages."""
        page = torch.arange(self.count)
        start = window_start_page(self.call.positions, window, self.page_size)[:, None]
        count = num_candidate_pages(self.call.positions, window, self.page_size, sinks)[:, None]
        candidate = (page >= sinks) & (page < sinks + count)
        last = (self.call.positions // self.page_size)[:, None]
        return ((page < sinks) | (page >= start)) & (page <= last), candidate

    def select(self, kind: str, strategy: str, topk: int, window: int, sinks: int) -> torch.Tensor:
        """Mask of the selected pages ``[N, H_kv, C]``."""
        local, candidate = self.parts(window, sinks)
        represented = self.repr[kind]
        lse = self.page_lse.masked_fill(~local[:, None, None, :], float("-inf")).logsumexp(-1)
        logits, _ = compute_logits(
            self.call.q,
            represented,
            candidate[:, : represented.shape[0]],
            kind=kind,
            strategy=strategy,
            sm_scale=self.call.scale,
            local_lse=lse.flatten(1),
        )
        chosen, _ = topk_transform(logits, topk, torch.arange(represented.shape[0]))
        return _mask(chosen.long(), self.count)

    def best(self, topk: int, window: int, sinks: int) -> torch.Tensor:
        """Mask of the pages with the most exact attention mass, summed over the heads of a KV head ``[N, H_kv, C]``."""
        _, candidate = self.parts(window, sinks)
        mass = self.mass.sum(dim=2).masked_fill(~candidate[:, None, :], float("-inf"))
        chosen, _ = topk_transform(mass, topk, torch.arange(self.count))
        return _mask(chosen.long(), self.count)


def _mask(chosen: torch.Tensor, count: int) -> torch.Tensor:
    """Page indices padded with -1 to a mask over ``count`` pages."""
    mask = torch.zeros(*chosen.shape[:-1], count + 1, dtype=torch.bool)
    return mask.scatter_(-1, chosen.masked_fill(chosen < 0, count), True)[..., :count]


def recall(pages: Pages, kind: str, strategy: str, topk: int, window: int, sinks: int) -> list[dict]:
    """Coverage per KV head, as means over the queries that have more than ``topk`` candidates.

    mass: share of the exact attention mass on window, sinks and selected pages.
    mass_best: the same for the best pages of that number. mass_local: without any selected page.
    pages: share of the best pages that were selected. top_page: how often the very best one was.
    """
    local, candidate = pages.parts(window, sinks)
    sparse = candidate.sum(-1) > topk
    if not sparse.any():
        return []
    chosen = pages.select(kind, strategy, topk, window, sinks)[sparse]
    best = pages.best(topk, window, sinks)[sparse]
    first = pages.best(1, window, sinks)[sparse]
    mass = pages.mass[sparse].mean(dim=2)  # [N, H_kv, C]
    floor = (mass * local[sparse][:, None, :]).sum(-1)
    columns = dict(
        mass=floor + (mass * chosen).sum(-1),
        mass_best=floor + (mass * best).sum(-1),
        mass_local=floor,
        pages=(chosen & best).sum(-1) / best.sum(-1),
        top_page=(chosen & first).any(-1).float(),
    )
    return [
        dict(kv_head=head, queries=int(sparse.sum()), **{name: float(v[:, head].mean()) for name, v in columns.items()})
        for head in range(pages.kv_heads)
    ]


def equal_bytes(kind: str, topk: int, candidates: int, page_size: int) -> int:
    """Pages that ``kind`` may attend for the bytes that the widest kind reads at ``topk``.

    Scoring reads width * D elements of every candidate, attending 2 * D * page_size of a page.
    """
    return topk + candidates * (WIDEST - KINDS[kind].width) // (2 * page_size)


def rows(call: Attention, args: argparse.Namespace) -> Iterator[dict]:
    """The table's rows of one attention call."""
    pages = Pages(call, args.page_size)
    for window, sinks in itertools.product(args.windows, args.sinks):
        most = int(num_candidate_pages(call.positions, window, args.page_size, sinks).max())
        for topk, kind, strategy in itertools.product(args.topk, args.kinds, args.strategies):
            equal = equal_bytes(kind, topk, most, args.page_size)
            for used, is_equal in {topk: False, equal: True}.items() if equal != topk else ((topk, "both"),):
                for row in recall(pages, kind, strategy, used, window, sinks):
                    yield dict(
                        source=call.source, length=call.k.shape[0], layer=call.layer, kind=kind, strategy=strategy,
                        topk=used, equal_bytes={False: "", True: topk, "both": topk}[is_equal], window=window, sinks=sinks, **row,
                    )  # fmt: skip


def model_calls(folder: str, length: int, task: str, seed: int, queries: int) -> Iterator[Attention]:
    """Attention calls of a checkpoint on a sample of the suite, with queries at its answer.

    Args:
        queries: as many positions of the text, evenly spread, are taken in addition.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    calls = []

    def capture(module, query, key, value, attention_mask, scaling=None, **more):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        calls.append((module.layer_idx, query[0], key[0], scale))
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)

    AttentionInterface.register("capture", capture)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="capture"
    ).eval()
    sample = samples.make(task, length, 0.5, seed, lambda text: len(tokenizer(text)["input_ids"]))
    prompt, reply = (
        tokenizer(sample.prompt)["input_ids"],
        tokenizer(sample.reply, add_special_tokens=False)["input_ids"],
    )
    ids = torch.tensor([prompt + reply])
    with torch.no_grad():
        model(ids, use_cache=False)
    answer = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    spread = torch.linspace(0, len(prompt) - 2, queries).long()
    for layer, query, key, scale in calls:
        for name, positions in (("answer", answer), ("text", spread)):
            if len(positions):
                q = query[:, positions].transpose(0, 1).contiguous()
                yield Attention(f"{task} {name}", layer, q, key.transpose(0, 1).contiguous(), positions, scale)


def synthetic_call(length: int, seed: int, queries: int, tail: float = 3.0) -> Attention:
    """Heavy-tailed keys: 2 KV heads of 64 with 2 query heads each, rotated at theta 1e6.

    A key is a slowly drifting topic plus noise, both of Student's t distribution with ``tail`` degrees of freedom,
    with a few channels that are large everywhere, as seen in language models. A query looks for the topic of a
    position drawn from its past, plus noise.
    """
    generator = torch.Generator().manual_seed(seed)
    kv_heads, group, dim = 2, 2, 64

    def student(*shape: int) -> torch.Tensor:
        chi = torch.randn(*shape, int(tail), generator=generator).square().sum(-1)
        return torch.randn(*shape, generator=generator) * (tail / chi).sqrt()

    step = 1 / 96  # a topic lasts about as many tokens
    topic = student(kv_heads, dim)
    topics = []
    for innovation in student(length, kv_heads, dim):
        topic = (1 - step) * topic + (2 * step) ** 0.5 * innovation
        topics.append(topic)
    topics = torch.stack(topics)  # [S, H_kv, D]
    bias = torch.zeros(dim)
    bias[torch.randperm(dim, generator=generator)[:4]] = 6.0
    k = topics + student(length, kv_heads, dim) + bias
    positions = torch.linspace(length // 2, length - 1, queries).long()
    past = (torch.rand(queries, generator=generator) * positions).long()
    wanted = topics[past].repeat_interleave(group, dim=1)
    q = 1.5 * wanted + student(queries, kv_heads * group, dim)
    return Attention("synthetic", 0, rope(q, positions), rope(k, torch.arange(length)), positions, dim**-0.5)


def rope(x: torch.Tensor, positions: torch.Tensor, theta: float = 1e6) -> torch.Tensor:
    """Rotate ``[N, H, D]`` by its positions ``[N]``."""
    dim = x.shape[-1]
    angle = positions[:, None].double() * theta ** (-torch.arange(0, dim, 2).double() / dim)  # [N, D / 2]
    cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder of a checkpoint")
    source.add_argument("--synthetic", action="store_true", help="heavy-tailed synthetic keys")
    parser.add_argument("--out", required=True, help="path of the outputs without its ending")
    parser.add_argument("--tasks", nargs="+", default=["multikey", "variables", "frequent"], choices=TASKS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[8192])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--queries", type=int, default=32, help="positions of the text (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--strategies", nargs="+", default=list(SELECTION_STRATEGIES), choices=SELECTION_STRATEGIES)
    parser.add_argument("--topk", nargs="+", type=int, default=[4, 8, 16, 32, 64])
    parser.add_argument("--windows", nargs="+", type=int, default=[512])
    parser.add_argument("--sinks", nargs="+", type=int, default=[1])
    parser.add_argument("--page-size", type=int, default=64)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    sums: dict[tuple, dict] = {}
    for length, seed in itertools.product(args.lengths, args.seeds):
        try:
            if args.synthetic:
                calls = iter([synthetic_call(length, seed, args.queries)])
            else:
                calls = itertools.chain.from_iterable(
                    model_calls(args.model, length, task, seed, args.queries) for task in args.tasks
                )
            table = [row for call in calls for row in rows(call, args)]
        except (OSError, ValueError) as error:
            print(f"selection_recall: {str(error).splitlines()[0]}", file=sys.stderr)
            return 2
        for row in table:
            row["length"] = length
            key = tuple(row[name] for name in COLUMNS[: COLUMNS.index("queries")])
            held = sums.setdefault(key, dict.fromkeys(COLUMNS[COLUMNS.index("queries") :], 0.0))
            for name in held:  # means weighed by the number of queries
                held[name] += row["queries"] * (1 if name == "queries" else row[name])
    if not sums:
        print(
            "selection_recall: no query has more candidates than --topk; use longer --lengths or a smaller K",
            file=sys.stderr,
        )
        return 2
    table = []
    for key, held in sums.items():
        queries = held.pop("queries")
        shares = {name: round(value / queries, 5) for name, value in held.items()}
        table.append(dict(zip(COLUMNS, key), queries=int(queries), **shares))
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{out}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    Path(f"{out}.svg").write_text(recall_plot.plot(table), encoding="utf-8")
    provenance = dict(command=sys.argv, commit=commit(), torch=torch.__version__, rows=len(table), arguments=vars(args))
    Path(f"{out}.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    print(recall_plot.summary(table))
    print(json.dumps(dict(provenance, best=recall_plot.ranking(table)[:3])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
