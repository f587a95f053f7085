# SPDX-License-Identifier: Apache-2.0
"""Triton kernel for the lengths of a decode step's rows where pages end with landmarks (see ``landmark_rows``)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SEQUENCES_PER_PROGRAM = 128


@triton.jit(do_not_specialize=["sequences"])
def _landmark_lengths_kernel(
    seq_lens, out, sequences, SLOTS: tl.constexpr, BLOCK: tl.constexpr
):
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = b < sequences
    tokens = tl.load(seq_lens + b, mask=live, other=0).to(tl.int32)
    # A row of at most one key pads a CUDA graph.
    places = tl.where(tokens > 1, tokens + (tokens - 1) // SLOTS, 0)
    completes = (tokens > 1) & (tokens % SLOTS == 0)
    tl.store(out + b, places, mask=live)
    tl.store(out + sequences + b, tl.where(completes, places + 1, 0), mask=live)


def landmark_lengths(
    seq_lens: torch.Tensor, out: torch.Tensor, slots_per_page: int
) -> torch.Tensor:
    """Places up to each row's own, which they include.

    Args:
        seq_lens: tokens of each sequence, the new one included ``[B]``, any integer dtype; at most 1 for padding.
        out: ``[2 * B]`` int32, first the tokens' rows, then the landmarks'; 0 for padding, and for the landmark of a page
            that is not complete.

    Returns:
        ``out``.
    """
    sequences = len(seq_lens)
    _landmark_lengths_kernel[(triton.cdiv(sequences, SEQUENCES_PER_PROGRAM),)](
        seq_lens, out, sequences, SLOTS=slots_per_page, BLOCK=SEQUENCES_PER_PROGRAM
    )
    return out
