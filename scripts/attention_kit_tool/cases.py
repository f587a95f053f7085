# SPDX-License-Identifier: Apache-2.0
"""The cases: those that the kit makes, and batches for its runner modes, which it leaves to the tests that use it.

The kit's own contexts are one or two pages long. The cases called long have more, so that HSA has pages to select.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attention_kit_tool import entries
from attention_kit_tool.entries import KIT

if TYPE_CHECKING:
    from sglang.test.kits.attention_unittest.attention_methods.dense_attention import DenseAttentionCase

LONG = dict(max_context_len=512)
DRAFT_STEPS = 3

PAGE_1 = "HSA selects pages, and a page of one token has no representation but its key"
SLIDING_WINDOW = "the only layer has a sliding window, so no layer is left for HSA"
SCATTERED = "the slots of a page are out of order, as no allocator hands them out; HSA reads a page by its number"
PREFILL_GRAPH = "the work lists of a prefill are made on the host, so HSA refuses CUDA graphs of prefill"
TREE = "HSA verifies and drafts chains; it refuses --speculative-eagle-topk above 1"
ALGORITHM = "HSA refuses this algorithm of speculative decoding"
NGRAM = "n-gram drafts form a tree, which HSA refuses"


@dataclass(frozen=True)
class Case:
    """One call of a function of the kit.

    Attributes:
        name: mode and name of the batch.
        entry: the function, as module.function.
        batch: the kit's description of the batch; its backend is filled in later.
        options: keyword arguments of the function.
        draft_tokens: most tokens of a draft, which HSA's window must hold; 0 without drafts.
        unfit: why HSA cannot run it; empty if it can.
    """

    name: str
    entry: str
    batch: DenseAttentionCase
    options: dict[str, Any] = field(default_factory=dict)
    draft_tokens: int = 0
    unfit: str = ""

    @property
    def needs_cuda(self) -> bool:
        """CUDA graphs do, and passes over draft tokens, which HSA's references have not."""
        return self.entry != entries.ATTENTION


def all_cases() -> list[Case]:
    return [*kit_cases(), *_long_cases(), *_graph_cases(), *_verify_cases(), *_draft_extend_cases(), *_draft_cases()]


def dense_attention():
    """The kit's module of dense attention."""
    return import_module(f"{KIT}.attention_methods.dense_attention")


def runner_mode(name: str):
    """One of the kit's modules that run batches.

    Each imports the kit's modules of all methods. Of those whose packages are not installed here a stand-in takes the place,
    since dense attention uses none of them.
    """
    for method in entries.METHODS:
        full_name = f"{KIT}.attention_methods.{method}_attention"
        try:
            import_module(full_name)
        except Exception:
            sys.modules[full_name] = _StandIn(full_name)
    return import_module(f"{KIT}.runner_modes.{name}")


class _StandIn(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str):
        if name.startswith("__"):  # who inspects modules asks for these, and takes no for an answer
            raise AttributeError(name)
        return object


def kit_cases() -> list[Case]:
    """Every batch that the kit's module of dense attention makes; some are made by several of its functions."""
    module, found = dense_attention(), {}
    for maker in sorted(name for name in vars(module) if re.fullmatch(r"make_\w+_cases", name)):
        for batch in getattr(module, maker)(""):
            unfit = SLIDING_WINDOW if batch.sliding_window_size is not None else PAGE_1 if batch.page_size == 1 else ""
            found[batch.name] = Case(f"eager: {batch.name}", entries.ATTENTION, batch, unfit=unfit)
    return list(found.values())


def _batch(name: str, mode: str, heads: tuple[int, int], page_size: int, prefixes: tuple, new: tuple = ()):
    """A batch of the kit.

    Args:
        mode: name of a forward mode.
        heads: (of queries, of keys).
        prefixes: cached tokens of each request; new: those of the pass, one each in decode.
    """
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    make, modes = dense_attention().DenseAttentionCase, ForwardMode
    return make(name, "", modes[mode], *heads, page_size, prefix_lens=prefixes, extend_lens=new)


def _long_cases() -> list[Case]:
    mixed = _batch("long_gqa_extend_mixed", "EXTEND", (4, 2), 16, (0, 48, 100, 255), (65, 33, 17, 1))
    pages_of_64 = _batch("long_mha_extend_page64", "EXTEND", (4, 4), 64, (0, 64, 127, 200), (130, 63, 2, 65))
    decode = _batch("long_gqa_decode_mixed", "DECODE", (4, 2), 16, (7, 63, 64, 65, 200, 400))
    decode_64 = _batch("long_mqa_decode_page64", "DECODE", (4, 1), 64, (127, 128, 129, 400))
    wide = dict(LONG, head_dim=128)
    batches = mixed, pages_of_64, decode, decode_64
    found = [Case(f"eager: {batch.name}", entries.ATTENTION, batch, LONG) for batch in batches]
    found += [Case(f"eager: {batch.name} head_dim 128", entries.ATTENTION, batch, wide) for batch in (mixed, decode)]
    for layout, unfit in (("contiguous", ""), ("interleaved_pages", ""), ("non_monotonic_extend", SCATTERED)):
        options = dict(LONG, loc_layout=layout)
        for batch in (mixed, decode)[: 1 if unfit else 2]:
            found.append(Case(f"eager: {batch.name} {layout}", entries.ATTENTION, batch, options, unfit=unfit))
    ragged = _batch("mha_extend_ragged_page_boundary", "EXTEND", (4, 4), 16, (0, 8, 16), (15, 8, 1))
    for breakable, name in ((False, "piecewise"), (True, "breakable")):
        options = dict(breakable=breakable, static_num_tokens=32)
        found.append(Case(f"split op: {ragged.name} {name}", entries.SPLIT_OP, ragged, options, unfit=PREFILL_GRAPH))
    return found


def _graph_cases() -> list[Case]:
    batches = (
        (_batch("mha_decode_page_boundary", "DECODE", (4, 4), 16, (14, 15, 16)), {}),
        (_batch("gqa_decode_page_boundary", "DECODE", (4, 2), 16, (14, 15, 16)), {}),
        (_batch("mqa_decode_bsz1", "DECODE", (4, 1), 16, (7,)), {}),
        (_batch("long_gqa_decode", "DECODE", (4, 2), 16, (63, 64, 400)), LONG),
        (_batch("long_mha_decode_page64", "DECODE", (4, 4), 64, (127, 128, 129, 400)), LONG),
    )
    return [Case(f"graph decode: {batch.name}", entries.GRAPH_DECODE, batch, options) for batch, options in batches]


def _verify_cases() -> list[Case]:
    short = _batch("chain", "TARGET_VERIFY", (4, 4), 16, (4, 7), (3, 3))
    boundary = _batch("chain_page_boundary", "TARGET_VERIFY", (4, 2), 16, (13, 16, 31), (4, 4, 4))
    long = _batch("long_chain", "TARGET_VERIFY", (4, 2), 16, (62, 127, 400), (4, 4, 4))
    chosen = [(batch, 1, "eagle", {}, "") for batch in (short, boundary)] + [(long, 1, "eagle", LONG, "")]
    others = (("frozen_kv_mtp", ALGORITHM), ("dflash", ALGORITHM), ("ngram", NGRAM))
    chosen += [(short, 2, "eagle", {}, TREE)] + [(short, 1, kind, {}, unfit) for kind, unfit in others]
    return [
        Case(
            f"{mode}: {kind} {batch.name if topk == 1 else 'tree'}",
            entry,
            batch,
            dict(options, topk=topk, spec_kind=kind),
            max(batch.input_lens),
            unfit,
        )
        for mode, entry in (("verify", entries.VERIFY), ("graph verify", entries.VERIFY_GRAPH))
        for batch, topk, kind, options, unfit in chosen
    ]


def _draft_extend_cases() -> list[Case]:
    short = _batch("fixed_tokens", "DRAFT_EXTEND_V2", (4, 4), 16, (4, 7), (3, 3))
    long = _batch("long_fixed_tokens", "DRAFT_EXTEND_V2", (4, 2), 16, (62, 127, 400), (4, 4, 4))
    found = []
    for style in ("small_real", "prod_fill"):
        for rows in (2, 4, 8):
            options = dict(pad_style=style, cuda_graph_capture_batch_size=rows)
            found.append(Case(f"graph draft extend: {short.name} {style} {rows}", entries.DRAFT_EXTEND, short, options, 3))
        options = dict(LONG, pad_style=style)
        found.append(Case(f"graph draft extend: {long.name} {style} 4", entries.DRAFT_EXTEND, long, options, 4))
    for batch, options in ((short, {}), (long, LONG)):
        tokens = max(batch.input_lens)
        found.append(Case(f"draft extend runner: {batch.name}", entries.DRAFT_EXTEND_RUNNER, batch, options, tokens))
    return found


def _draft_cases() -> list[Case]:
    short = _batch("chain", "DECODE", (4, 4), 16, (4, 7))
    long = _batch("long_chain", "DECODE", (4, 2), 16, (62, 127, 400))
    tree = _batch("tree", "DECODE", (4, 4), 1, (4, 7))
    steps = dict(speculative_num_steps=DRAFT_STEPS, speculative_num_draft_tokens=DRAFT_STEPS + 1)
    branches = dict(topk=2, speculative_num_steps=DRAFT_STEPS, speculative_num_draft_tokens=4)
    tokens = DRAFT_STEPS + 1
    return [
        Case(f"draft runner: {short.name}", entries.DRAFT_RUNNER, short, steps, tokens),
        Case(f"draft runner: {long.name}", entries.DRAFT_RUNNER, long, dict(steps, **LONG), tokens),
        Case(f"draft runner: {tree.name}", entries.DRAFT_RUNNER, tree, branches, tokens, TREE),
        Case(f"draft runner: frozen_kv_mtp {short.name}", entries.FROZEN_KV_DRAFT, short, {}, tokens, ALGORITHM),
    ]
