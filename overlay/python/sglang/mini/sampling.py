# SPDX-License-Identifier: Apache-2.0
"""From logits to a token, and from tokens to text that can be shown."""

from __future__ import annotations

from functools import partial
from typing import List, Optional, Sequence

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sglang.mini.api import SamplingParams

# Beyond them a quotient leaves float32; nothing but the most likely token, or every token alike, is drawn long before.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-30, 1e30


def distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities ``[vocab]`` of logits ``[vocab]`` float32: temperature (above 0), then top_k, then top_p."""
    temperature = min(max(params.temperature, LEAST_TEMPERATURE), MOST_TEMPERATURE)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    # Measured against the largest: a tiny temperature must not overflow.
    return warpers(None, (logits - logits.max())[None]).softmax(-1)[0]


def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    generators: Sequence[torch.Generator],
) -> List[Optional[int]]:
    """Next token of each request, from logits ``[B, vocab]`` float32; None where they are not numbers.

    Each request draws from its own generator, so its tokens do not depend on its neighbours.
    """
    tokens: List[Optional[int]] = logits.argmax(-1).tolist()
    for i, valid in enumerate(logits.amax(-1).isfinite().tolist()):
        if not valid:
            tokens[i] = None
        elif params[i].temperature > 0:
            probs = distribution(logits[i], params[i])
            tokens[i] = int(torch.multinomial(probs, 1, generator=generators[i]))
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
        self.context, self.fresh = list(prompt[-self.CONTEXT :]), []
        self.text = ""  # decoded
        self.shown = 0  # characters of it that were handed out
        self.stopped = False

    def push(self, token: int, last: bool) -> str:
        """Add a token, ``last`` if it is the request's last; returns the text that became certain."""
        if self.tokenizer is None or self.stopped:
            return ""
        self.fresh.append(token)
        decode = partial(self.tokenizer.decode, skip_special_tokens=True)
        before, after = decode(self.context), decode(self.context + self.fresh)
        if last or not after.endswith("\ufffd"):
            self.text += after[len(before) :]
            self.context, self.fresh = self.fresh, []
        tail = self.text[self.shown :]  # no stop string begins before it
        ends = [at for at in map(tail.find, self.stop) if at >= 0]
        if ends:
            tail, self.stopped = tail[: min(ends)], True
            self.text = self.text[: self.shown] + tail
        # Characters at the end that may begin a stop string.
        longest = ((s, min(len(s) - 1, len(tail))) for s in self.stop)
        starts = (s[:n] for s, most in longest for n in range(1, most + 1))
        held = max((len(s) for s in starts if tail.endswith(s)), default=0)
        piece = tail if last or self.stopped else tail[: len(tail) - held]
        self.shown += len(piece)
        return piece
