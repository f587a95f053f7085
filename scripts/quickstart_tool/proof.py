# SPDX-License-Identifier: Apache-2.0
"""What must hold: HSA left pages out and found the answer, and with all pages it is dense attention."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.quality.serving import Server, ServingError

from .scene import Scene

NEW_TOKENS = 16
# Both sides compute in float32 and differ only in the order of their sums.
LOGPROB_TOLERANCE = 1e-4


class Failure(Exception):
    """Something that the quickstart was to prove does not hold; one line."""


@dataclass(frozen=True)
class Answer:
    """One server's answer."""

    name: str
    text: str
    right: bool
    seconds: float
    share: str = "all pages"

    def line(self) -> str:
        mark = "RIGHT" if self.right else "wrong"
        return f"  {self.name:17} {mark}  {self.seconds:5.1f} s  {self.share:34} {self.text.splitlines()[0] if self.text else ''}"


def ask(server: Server, scene: Scene, share: str = "all pages") -> Answer:
    started = time.monotonic()
    text = scene.said(server.post(scene.path, scene.body))
    found = Answer(server.name, text, scene.right(text), time.monotonic() - started, share)
    print(f"  answer: {text}", flush=True)
    return found


def attended(server: Server) -> str:
    """Share of the candidate pages that was attended.

    Raises:
        Failure: the work so far was not HSA, or left no page out.
    """
    counted = server.counters()
    for name in ("rows_sparse", "pages_selected", "reprs_written"):
        if counted[name] == 0:
            raise Failure(f"{name} is 0: the request was not served by HSA")
    chosen, candidates = counted["pages_selected"], counted["pages_candidate"]
    if chosen >= candidates:
        raise Failure("every candidate page was selected: attention was not sparse")
    print(f"  counted: {chosen:,} of {candidates:,} candidate pages attended")
    return f"{chosen / candidates:.0%} of the candidate pages"


def check_all_pages(server: Server, topk: int) -> None:
    counted = server.counters()
    print(f"  counted: {counted['pages_selected']:,} of {counted['pages_candidate']:,} candidate pages attended")
    if not 0 < counted["pages_selected"] == counted["pages_candidate"]:
        raise Failure(f"--hsa-topk {topk} did not select every candidate page")


def generate(server: Server, ids: list[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens, and the log-probabilities of every prompt token but the first and of every new token."""
    meta = server.greedy(ids, NEW_TOKENS, return_logprob=True, logprob_start_len=0)["meta_info"]
    prompt, new = meta["input_token_logprobs"], meta["output_token_logprobs"]
    if len(prompt) != len(ids) or len(new) != NEW_TOKENS:
        raise ServingError(f"'{server.name}' returned {len(prompt)} + {len(new)} log-probabilities")
    return [token for _, token, *_ in new], [value for value, *_ in prompt[1:] + new]


def compare(dense, full) -> None:
    """HSA with all pages selected against dense attention."""
    (dense_ids, dense_lp), (full_ids, full_lp) = dense, full
    same = sum(a == b for a, b in zip(full_ids, dense_ids))
    gap = max(abs(a - b) for a, b in zip(full_lp, dense_lp))
    print(f"\nHSA with all pages against dense attention, float32, greedy, over {len(dense_lp)} tokens:")
    print(f"  {same} of {NEW_TOKENS} new tokens equal, largest difference of a log-probability {gap:.1e}")
    if full_ids != dense_ids:
        raise Failure("HSA with all pages selected generates other tokens than dense attention")
    if gap > LOGPROB_TOLERANCE:
        raise Failure(f"HSA with all pages selected is off by {gap:.1e} in log-probability, more than {LOGPROB_TOLERANCE:g}")


def conclude_trained(scene: Scene, trained: Answer) -> None:
    """The answer of a checkpoint that was trained for HSA."""
    print(trained.line())
    if not trained.right:
        raise Failure(f"{trained.name} did not find the answer")
    print(f"  {scene.wanted!r} stands {scene.distance:,} tokens back, which its windows do not see.")


def conclude(scene: Scene, dense: Answer, sparse: Answer, window: Answer) -> None:
    """The answers side by side, and whether they show what they should."""
    print("\nThe answers side by side:")
    for answer in (dense, sparse, window):
        print(answer.line())
    if not dense.right:
        raise Failure("dense attention did not find the answer: this model and text are no test of selection")
    if not sparse.right:
        raise Failure(f"{sparse.name} did not find the answer, dense attention did")
    if window.right:
        raise Failure("the window alone found the answer: this proves nothing about selection")
    print(f"  {scene.wanted!r} stands {scene.distance:,} tokens back: found by dense attention and by {sparse.name},")
    print("  missed by the window alone.")
