# SPDX-License-Identifier: Apache-2.0
"""Which pages of a prompt the rows of its answer selected, and where their exact attention mass lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch

from sglang.hsa_calibrate import CalibrateError
from sglang.hsa_calibrate.loading import Text
from sglang.hsa_calibrate.measure import Bench, Setting
from sglang.hsa_calibrate.simulation import CHUNK, chunked_logits
from sglang.hsa_calibrate.sparse import BlockResult


@dataclass(frozen=True)
class Trace:
    """One setting. L layers with full attention, C pages; all float32 on the CPU.

    Attributes:
        setting: what was run.
        selected: share of the row-heads that could select a page and did; -1 where none could ``[L, C]``.
        heads: KV heads that selected a page in some row ``[L, C]`` int64.
        mass: exact attention mass of a page, averaged over rows and query heads ``[L, C]``.
        missed: the part of it that was not attended ``[L, C]``.
        perplexity: of the answer.
    """

    setting: Setting
    selected: torch.Tensor
    heads: torch.Tensor
    mass: torch.Tensor
    missed: torch.Tensor
    perplexity: float


@dataclass(frozen=True)
class Conversation:
    """A prompt and its answer.

    Attributes:
        prompt: text before the answer.
        answer: tokens of the answer.
        answer_text: the same as text.
        own: whether the answer is the model's greedy continuation.
        perplexity: of the answer, under dense attention.
    """

    prompt: Text
    answer: Tuple[int, ...]
    answer_text: str
    own: bool
    perplexity: float


class _Watch:
    """Observer that sums what rows from ``first`` on do, by layer."""

    def __init__(self, first: int, num_pages: int):
        self.first, self.num_pages = first, num_pages
        self.sums: Dict[int, Dict[str, torch.Tensor]] = {}

    def __call__(self, layer: int, result: BlockResult) -> None:
        rows = result.positions >= self.first
        if not bool(rows.any()):
            return
        candidate = result.candidate[rows]  # [T, C]
        selected = result.selected[:, rows] & candidate
        mass = result.mass[:, :, rows].mean(dim=(0, 1))
        missed = (candidate & ~selected).unsqueeze(1) * result.mass[:, :, rows]
        new = {
            "could": candidate.sum(dim=0) * len(selected),
            "did": selected.sum(dim=(0, 1)),
            "heads": selected.sum(dim=1),  # [H_kv, C], of which those above 0 count
            "mass": mass.sum(dim=0),
            "missed": missed.mean(dim=(0, 1)).sum(dim=0),
        }
        before = self.sums.setdefault(layer, {})
        for name, value in new.items():
            value = torch.nn.functional.pad(
                value.cpu(), (0, self.num_pages - value.shape[-1])
            )
            before[name] = before.get(name, 0) + value

    def stacked(self, name: str, layers: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.sums[layer][name] for layer in layers])


@torch.inference_mode()
def converse(
    bench: Bench, tokenizer, prompt: Text, answer: Optional[str], new_tokens: int
) -> Conversation:
    """The prompt with the answer given, or with the model's greedy continuation.

    Raises:
        CalibrateError: for an answer without tokens, or a prompt that leaves the model no room for one.
    """
    config = bench.model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    own = answer is None
    ids = () if own else tuple(tokenizer(answer, add_special_tokens=False).input_ids)
    if not own and not ids:
        raise CalibrateError("--answer is empty; leave it out for the model's own.")
    length = new_tokens if own else len(ids)
    if context and len(prompt.ids) + length > context:
        raise CalibrateError(
            f"{prompt.name} has {len(prompt.ids)} tokens, which with {length} of the answer is beyond the model's "
            f"context of {context}; use a shorter --prompt."
        )
    if own:
        ids = greedy(bench.model, prompt.ids, new_tokens)
    nll = answer_nll(bench.model, prompt.ids, ids)
    return Conversation(prompt, ids, tokenizer.decode(ids), own, nll.exp().item())


def trace(bench: Bench, conversation: Conversation, setting: Setting) -> Trace:
    """Run prompt and answer with HSA in every row, and watch the rows that predict the answer."""
    prompt, answer = conversation.prompt.ids, conversation.answer
    num_rows = len(prompt) + len(answer) - 1
    num_pages = (num_rows - 1) // bench.config.page_size + 1
    watch = _Watch(len(prompt) - 1, num_pages)
    with bench.simulation(setting, watch, observe_dense=True).installed(bench.model):
        nll = answer_nll(bench.model, prompt, answer)
    layers = bench.layers.full
    could, did = watch.stacked("could", layers), watch.stacked("did", layers)
    return Trace(
        setting=setting,
        selected=torch.where(could > 0, did / could.clamp(min=1), -1.0),
        heads=(watch.stacked("heads", layers) > 0).sum(dim=1),
        mass=watch.stacked("mass", layers) / len(answer),
        missed=watch.stacked("missed", layers) / len(answer),
        perplexity=nll.exp().item(),
    )


def answer_nll(
    model: torch.nn.Module, prompt: Sequence[int], answer: Sequence[int]
) -> torch.Tensor:
    """Mean negative log-likelihood of an answer's tokens after a prompt."""
    ids, first = [*prompt, *answer], len(prompt) - 1
    targets = torch.tensor(answer)
    parts: List[torch.Tensor] = []
    for start, logits in chunked_logits(model, ids[:-1]):
        if start + len(logits) > first:
            parts.append(logits[max(first - start, 0) :].cpu())
    return torch.nn.functional.cross_entropy(torch.cat(parts), targets)


def greedy(
    model: torch.nn.Module, prompt: Sequence[int], new_tokens: int
) -> Tuple[int, ...]:
    """The model's most likely continuation token by token, up to its end token, under dense attention."""
    from transformers import DynamicCache

    cache, answer = DynamicCache(config=model.config), []
    end = model.generation_config.eos_token_id
    ends = set(end if isinstance(end, (list, tuple)) else [end])
    tokens = torch.tensor([list(prompt)], device=model.device)
    for part in tokens.split(CHUNK, dim=1):
        out = model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
    while True:
        answer.append(int(out.logits[0, -1].argmax()))
        if len(answer) == new_tokens or answer[-1] in ends:
            return tuple(answer)
        last = torch.tensor([answer[-1:]], device=model.device)
        out = model(last, past_key_values=cache, use_cache=True)
