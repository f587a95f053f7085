# SPDX-License-Identifier: Apache-2.0
"""Rows of landmarks: what a checkpoint that was trained for HSA computes at the end of every page, beside the tokens.

A landmark of HiLS is embedded and goes through all layers like a token, but nobody attends to it and its logits are
dropped. So it is a row and no token: it has no id that anyone sees, no slot in the cache and no place in the radix tree.
The pass that writes the last token of a page has one more row for the page, at the position of the next token. Its query
in each HSA layer makes the page's representation, so that every complete page has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import numpy as np
import torch

from sglang.srt.layers.attention.hsa import compat

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


@dataclass(frozen=True)
class LandmarkRows:
    """Where the rows of a pass with T tokens and M landmarks are.

    Attributes:
        tokens: row of each token ``[T]`` int64.
        landmarks: row of each landmark ``[M]`` int64.
        last_tokens: index of its page's last token in the batch ``[M]`` int64.
        positions: position of each landmark ``[M]`` int64.
        tokens_first: the rows of all tokens, then those of all landmarks, so that none has to be gathered.
    """

    tokens: torch.Tensor
    landmarks: torch.Tensor
    last_tokens: torch.Tensor
    positions: torch.Tensor
    tokens_first: bool = False

    @property
    def num_rows(self) -> int:
        return len(self.tokens) + len(self.landmarks)

    def insert(
        self, tokens: torch.Tensor, landmarks: torch.Tensor | float
    ) -> torch.Tensor:
        """Rows ``[T + M, ...]`` of values of the tokens ``[T, ...]`` and of the landmarks, one for all or ``[M, ...]``."""
        if not len(self.landmarks):
            return tokens
        rows = tokens.new_empty((self.num_rows, *tokens.shape[1:]))
        if self.tokens_first:
            count = len(self.tokens)
            rows[:count], rows[count:] = tokens, landmarks
        else:
            rows[self.tokens], rows[self.landmarks] = tokens, landmarks
        return rows

    def drop(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of the tokens ``[T, ...]``."""
        if self.tokens_first:
            return rows[: len(self.tokens)]
        return rows[self.tokens] if len(self.landmarks) else rows


def plan_landmark_rows(
    seq_lens: np.ndarray,
    new_tokens: np.ndarray,
    slots_per_page: int,
    device: torch.device | str,
) -> LandmarkRows:
    """Rows of a pass whose lengths the host knows, in the order of each sequence.

    Args:
        seq_lens: tokens of each sequence, its new ones included ``[B]`` int64.
        new_tokens: new tokens of each sequence ``[B]`` int64, packed one sequence after another.
        slots_per_page: tokens per page.
        device: of the result.
    """
    begin = np.cumsum(new_tokens) - new_tokens
    token = np.arange(new_tokens.sum())
    position = token + np.repeat(seq_lens - new_tokens - begin, new_tokens)
    completes = (position + 1) % slots_per_page == 0
    row = token + np.cumsum(completes) - completes
    parts = row, row[completes] + 1, token[completes], position[completes] + 1
    joined = torch.from_numpy(np.concatenate(parts))
    if torch.device(device).type == "cuda":
        joined = joined.pin_memory()  # a copy of other memory would wait for the device
    joined = joined.to(device, non_blocking=True)
    return LandmarkRows(*joined.split([len(part) for part in parts]))


def decode_landmark_rows(seq_lens: torch.Tensor) -> LandmarkRows:
    """Rows of a step with one token per sequence, first those of all tokens, then a landmark's for each, needed or not.

    So a CUDA graph holds them: a row that completes no page attends nothing and writes nothing.

    Args:
        seq_lens: tokens of each sequence, the new one included ``[B]``.
    """
    token = torch.arange(len(seq_lens), device=seq_lens.device)
    landmark = token + len(seq_lens)
    return LandmarkRows(token, landmark, token, seq_lens.long(), tokens_first=True)


def of_batch(forward_batch: ForwardBatch) -> Optional[LandmarkRows]:
    """The rows of a pass that has begun; None for an empty batch.

    Raises:
        ValueError: without ``--attention-backend hsa``.
    """
    if forward_batch.forward_mode.is_idle():
        return None
    backend = compat.backend_of(forward_batch)
    if not hasattr(backend, "landmark_rows"):
        raise ValueError(
            "this checkpoint was trained for HSA and has landmarks, which --attention-backend hsa alone serves; add it."
        )
    return backend.landmark_rows(forward_batch)
