# SPDX-License-Identifier: Apache-2.0
"""How far an engine's log-probabilities lie from those of its model in float32, which tells rounding from a fault."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch

# Ranks round each partial sum, and other kernels sum in other orders: a few roundings more than another engine's. A head or a
# page that is read wrongly moves log-probabilities by a hundred times as much.
MORE_ROUNDING = 2.0


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
        """Distances ``[T]`` of the log-probabilities of all tokens in an engine's answers, which the model reads too."""
        distances = []
        for prompt, output in zip(prompts, outputs, strict=True):
            expected = self.logprobs([*prompt, *output["output_ids"]])
            distances.append(np.abs(logprobs(output) - expected[len(prompt) - 1 :]))
        return np.concatenate(distances)


def logprobs(output: dict) -> np.ndarray:
    """Log-probabilities of an answer's tokens."""
    return np.array(
        [entry[0] for entry in output["meta_info"]["output_token_logprobs"]]
    )


def assert_same_rounding(errors: np.ndarray, others: np.ndarray) -> None:
    """That an engine's errors are in the mean those of another of the same dtype."""
    print(f"mean error {errors.mean():.5f}, of the other engine {others.mean():.5f}")
    assert 0 < errors.mean() <= MORE_ROUNDING * others.mean()


def assert_same_pages(
    outputs: Sequence[dict], references: Sequence[dict], rounding: np.ndarray
) -> None:
    """That two engines, which leave pages out, read the same pages but for scores within rounding of each other.

    A page that is swapped moves the log-probabilities of its token, and of a later one that reads it; where it swaps a greedy
    token, the texts part ways. So a third of all tokens are compared at least, and nine of ten of them are alike.

    Args:
        rounding: errors of an engine that leaves no page out.
    """
    distances, tokens = [], 0
    for got, expected in zip(outputs, references, strict=True):
        pairs = zip(got["output_ids"], expected["output_ids"], strict=True)
        same = [a == b for a, b in pairs]
        alike = same.index(False) if False in same else len(same)
        tokens += len(same)
        distances.append(np.abs(logprobs(got) - logprobs(expected))[:alike])
    distance = np.concatenate(distances)
    near = (distance <= 10 * rounding.mean()).mean()
    print(
        f"{len(distance)} of {tokens} tokens before texts part, median distance {np.median(distance):.5f}, "
        f"{near:.3f} within {10 * rounding.mean():.5f}"
    )
    assert len(distance) >= tokens / 3
    assert np.median(distance) <= MORE_ROUNDING * rounding.mean()
    assert near >= 0.9
