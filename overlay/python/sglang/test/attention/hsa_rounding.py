# SPDX-License-Identifier: Apache-2.0
"""How far an engine's log-probabilities lie from those of its model in float32, which tells rounding from a fault."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch

# What an engine that sums in other orders may err more than another in the mean. Two ranks err up to 6 % more than one.
MORE_ROUNDING = 1.3
# Of what one page less of eight moves, the most that rounding may, which swaps pages of nearly the same score. Two ranks on a
# CPU move a tenth of it in float16; in bfloat16 half, which tells nothing.
SHARE_OF_A_PAGE = 0.25


class Float32Model:
    """The transformers model of a checkpoint in float32 on a CPU."""

    def __init__(self, path: str):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model = model.eval()

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """Log-probability of each token but the first, given those before it ``[len(ids) - 1]`` float32."""
        ids = torch.tensor(ids)
        logits = self.model(ids[None]).logits[0, :-1]
        return logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0].numpy()

    def errors(
        self, prompts: Sequence[Sequence[int]], outputs: Sequence[dict]
    ) -> np.ndarray:
        """Distances ``[T]`` of ``logprobs`` of all an engine's answers from the model's, which reads the same tokens."""
        distances = []
        for prompt, output in zip(prompts, outputs, strict=True):
            found = logprobs(output)
            expected = self.logprobs([*prompt, *output["output_ids"]])
            distances.append(np.abs(found - expected[-len(found) :]))
        return np.concatenate(distances)


def logprobs(output: dict) -> np.ndarray:
    """Log-probabilities of the tokens of a prompt, where they were asked for, and of its answer."""
    meta = output["meta_info"]
    entries = [*meta.get("input_token_logprobs", ()), *meta["output_token_logprobs"]]
    return np.array([entry[0] for entry in entries if entry[0] is not None])


def assert_same_rounding(errors: np.ndarray, others: np.ndarray) -> None:
    """That an engine errs in the mean no more than another of the same dtype, but for rounding."""
    print(f"mean error {errors.mean():.5f}, of the other engine {others.mean():.5f}")
    assert 0 < errors.mean() <= MORE_ROUNDING * others.mean()


def distances(
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[dict],
    references: Sequence[dict],
    first: int,
) -> np.ndarray:
    """Distances ``[T]`` of two engines' ``logprobs`` from position ``first`` on, of answers until their texts part."""
    found = []
    for prompt, got, expected in zip(prompts, outputs, references, strict=True):
        pairs = zip(got["output_ids"], expected["output_ids"], strict=True)
        same = [a == b for a, b in pairs]
        parted = len(same) - same.index(False) if False in same else 0
        distance = np.abs(logprobs(got) - logprobs(expected))
        end = len(prompt) + len(same)
        position = np.arange(end - len(distance), end)
        found.append(distance[(position >= first) & (position < end - parted)])
    return np.concatenate(found)


def assert_same_pages(distance: np.ndarray, of_a_page: np.ndarray) -> None:
    """That two engines, which leave pages out, read the same pages but for scores within rounding of each other.

    Args:
        distance: ``distances`` of the two from the first position on whose pages are left out.
        of_a_page: of one of them, and itself with one page less for every query.
    """
    assert _share_of_a_page(distance, of_a_page) <= SHARE_OF_A_PAGE


def assert_other_pages(distance: np.ndarray, of_a_page: np.ndarray) -> None:
    """That two engines read pages that rounding does not explain; arguments as of ``assert_same_pages``."""
    assert _share_of_a_page(distance, of_a_page) > SHARE_OF_A_PAGE


def _share_of_a_page(distance: np.ndarray, of_a_page: np.ndarray) -> float:
    moved, page = np.median(distance), np.median(of_a_page)
    print(f"{len(distance)} tokens move by {moved:.5f}, one page less by {page:.5f}")
    assert min(len(distance), len(of_a_page)) >= 100 and page > 0
    return moved / page
