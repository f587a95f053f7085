# SPDX-License-Identifier: Apache-2.0
"""Runs a case of the kit on a backend, and decides what two backends' outcomes say about HSA."""

from __future__ import annotations

import dataclasses
import traceback
import unittest
from contextlib import ExitStack
from functools import partial
from typing import Optional, TextIO
from unittest import mock

import torch

from attention_kit_tool import entries
from attention_kit_tool.cases import Case, dense_attention, runner_mode
from attention_kit_tool.hsa import kit_with_hsa

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NEEDS_CUDA, UNFIT = "needs a CUDA device", "not applicable"

# The kit's tolerance, 0.03, is as large as the mean over a long context. Two backends differ in how they round float16.
BESIDE = 5e-3


@dataclasses.dataclass
class Outcome:
    """What came of a case on one backend.

    Attributes:
        outputs: what the kit compared with its reference, or with another run of the same backend.
        counts: HSA's counters by name; empty unless it passed on HSA.
    """

    status: str
    note: str = ""
    outputs: list[torch.Tensor] = dataclasses.field(default_factory=list)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Verdict:
    """A row of the table.

    Attributes:
        distance: largest difference of the two backends' outputs; None if one of them has none.
        worse: whether HSA fails where the other backend passes.
    """

    case: Case
    hsa: Outcome
    peer: Outcome
    distance: Optional[float] = None

    @property
    def worse(self) -> bool:
        return self.peer.status == PASSED and self.hsa.status in (FAILED, SKIPPED)


def judge(case: Case, peer: str, device: str, topk: int, log: Optional[TextIO]) -> Verdict:
    """Run a case on HSA and on another backend.

    Args:
        peer: the other backend.
        topk: pages that HSA selects.
        log: tracebacks are written to it.
    """
    if case.unfit:
        return Verdict(case, Outcome(UNFIT, case.unfit), Outcome(""))
    if case.needs_cuda and device != "cuda":
        return Verdict(case, Outcome(NEEDS_CUDA), Outcome(NEEDS_CUDA))
    hsa = _run(case, "hsa", device, topk, log)
    verdict = Verdict(case, hsa, _run(case, peer, device, topk, log))
    if hsa.status == verdict.peer.status == PASSED:
        verdict.distance = _distance(hsa.outputs, verdict.peer.outputs)
        if verdict.distance > BESIDE:
            hsa.status, hsa.note = FAILED, f"it differs from {peer} by {verdict.distance:.2g}, more than {BESIDE}"
    return verdict


def _run(case: Case, backend: str, device: str, topk: int, log: Optional[TextIO]) -> Outcome:
    outcome, compare = Outcome(PASSED), torch.testing.assert_close

    def record(actual, expected, *args, **kwargs):
        if isinstance(actual, torch.Tensor):
            outcome.outputs.append(actual.detach().cpu())
        compare(actual, expected, *args, **kwargs)

    with ExitStack() as stack:
        try:
            counted = stack.enter_context(kit_with_hsa(case, topk, device)) if backend == "hsa" else None
            stack.enter_context(mock.patch.object(torch.testing, "assert_close", record))
            stack.enter_context(torch.no_grad())
            run = _entry(case, stack)
            run(unittest.TestCase(), dataclasses.replace(case.batch, backend=backend), device=device, **case.options)
            outcome.counts = counted.totals() if counted else {}
        except unittest.SkipTest as skip:
            outcome.status, outcome.note = SKIPPED, str(skip)
        except Exception as error:
            outcome.status, outcome.note = FAILED, _ends(error)
            if log:
                print(f"== {case.name} on {backend}", traceback.format_exc(), sep="\n", file=log, flush=True)
    if outcome.counts:
        selected, candidates = outcome.counts["pages_selected"], outcome.counts["pages_candidate"]
        if selected != candidates:
            outcome.status, outcome.note = FAILED, f"HSA selected {selected} of {candidates} pages, and was to select all"
    return outcome


def _entry(case: Case, stack: ExitStack):
    """The kit's function, with slots in order where it needs them so."""
    name, function = case.entry.split(".")
    if name == "dense_attention":
        return getattr(dense_attention(), function)
    module = runner_mode(name)
    if case.entry in entries.REWRITES_PREFIX:
        build = partial(module.build_dense_attention_fixture, loc_layout="contiguous")
        stack.enter_context(mock.patch.object(module, "build_dense_attention_fixture", build))
    return getattr(module, function)


def _ends(error: Exception) -> str:
    """Type, first and last line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + "; ".join(dict.fromkeys(lines[:1] + lines[-1:]))


def _distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference of two backends' outputs; infinite if they are not of the same shapes."""
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        return float("inf")
    differences = [(a.double() - b.double()).abs().max().item() for a, b in zip(ours, theirs) if a.numel()]
    return max(differences, default=0.0)
