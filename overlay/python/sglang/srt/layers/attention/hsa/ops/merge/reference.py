# SPDX-License-Identifier: Apache-2.0
"""Reference of the merge op: one softmax from two partial ones."""

from __future__ import annotations

from typing import Tuple

import torch


def merge_state(
    o_a: torch.Tensor, lse_a: torch.Tensor, o_b: torch.Tensor, lse_b: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Merge attention over two disjoint key sets.

    Args:
        o_a, o_b: partial outputs ``[T, H_q, D_v]`` float32, each normalised over its own keys.
        lse_a, lse_b: natural log-sum-exp of their logits ``[T, H_q]`` float32; -inf marks an empty set,
            whose output must be finite.

    Returns:
        (o ``[T, H_q, D_v]``, lse ``[T, H_q]``), float32. Two empty sets give o = 0, lse = -inf.
    """
    top = torch.maximum(lse_a, lse_b)
    # exp(-inf - -inf) is NaN: an all-empty row is measured against 0 instead.
    top = torch.where(top == float("-inf"), torch.zeros_like(top), top)
    w_a, w_b = torch.exp(lse_a - top), torch.exp(lse_b - top)
    total = w_a + w_b
    norm = total.clamp(min=torch.finfo(total.dtype).tiny).unsqueeze(-1)
    o = (w_a.unsqueeze(-1) * o_a + w_b.unsqueeze(-1) * o_b) / norm
    return o, top + torch.log(total)
