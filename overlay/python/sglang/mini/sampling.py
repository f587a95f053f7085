# SPDX-License-Identifier: Apache-2.0
"""From logits to a token, and from tokens to text that can be shown."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch

from sglang.mini.api import SamplingParams


def distribution(
    logits: torch.Tensor, params: SamplingParams
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Tokens that may be drawn, most likely first, and their probabilities.

    Args:
        logits: of one request ``[vocab]`` float32.
        params: temperature above 0; temperature, then top_k, then top_p apply.

    Returns:
        (probabilities ``[N]`` that add up to 1, token ids ``[N]`` int64), N at most vocab.
    """
    # Measured against the largest: a tiny temperature must not overflow.
    scaled = (logits - logits.max()) / params.temperature
    values, ids = torch.sort(scaled, descending=True, stable=True)
    if params.top_k:
        values, ids = values[: params.top_k], ids[: params.top_k]
    probs = values.softmax(-1)
    # A token stays if those before it do not reach top_p yet; the first always does.
    keep = int((probs.cumsum(-1) - probs < params.top_p).sum())
    return probs[:keep] / probs[:keep].sum(), ids[:keep]


def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    generators: Sequence[torch.Generator],
) -> List[Optional[int]]:
    """Next token of each request; None where the logits are not numbers.

    Each request draws from its own generator, so its tokens do not depend on its neighbours.

    Args:
        logits: ``[B, vocab]`` float32.
    """
    broken = torch.isnan(logits).any(-1).tolist()
    tokens: List[Optional[int]] = logits.argmax(-1).tolist()
    for i, p in enumerate(params):
        if broken[i]:
            tokens[i] = None
        elif p.temperature > 0:
            probs, ids = distribution(logits[i], p)
            draw = float(torch.rand((), generator=generators[i], dtype=torch.float64))
            place = int((probs.double().cumsum(-1) <= draw).sum())
            tokens[i] = int(ids[min(place, len(ids) - 1)])
    return tokens


class TextStream:
    """Text of a growing token sequence, in pieces that are never taken back.

    A piece waits while its last character is incomplete, and while it may be the beginning of a stop string.

    Args:
        tokenizer: of the model, or None: no text then.
        prompt: tokens before the first; a tokenizer may need them to place spaces.
        stop: strings that end the text.
    """

    CONTEXT = 5  # tokens decoded again before the new ones

    def __init__(self, tokenizer, prompt: Sequence[int], stop: Sequence[str]):
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens = list(prompt[-self.CONTEXT :])
        self.begin, self.read = 0, len(self.tokens)
        self.text = ""  # decoded
        self.shown = 0  # characters of it that were handed out
        self.stopped = False

    def push(self, token: int, last: bool) -> str:
        """Add a token, ``last`` if it is the request's last; returns the text that became certain."""
        if self.tokenizer is None or self.stopped:
            return ""
        self.tokens.append(token)
        before = self._decode(self.tokens[self.begin : self.read])
        after = self._decode(self.tokens[self.begin :])
        if last or not after.endswith("\ufffd"):
            self.text += after[len(before) :]
            self.begin, self.read = self.read, len(self.tokens)
        ends = [at for at in map(self.text.find, self.stop) if at >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True
        held = 0 if last or self.stopped else self._held()
        piece = self.text[self.shown : len(self.text) - held]
        self.shown += len(piece)
        return piece

    def _held(self) -> int:
        """Characters at the end that may begin a stop string."""
        return max(
            (
                n
                for stop in self.stop
                for n in range(1, len(stop))
                if self.text.endswith(stop[:n])
            ),
            default=0,
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)
