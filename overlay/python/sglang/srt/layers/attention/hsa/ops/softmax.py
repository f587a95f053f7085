# SPDX-License-Identifier: Apache-2.0
"""Masked softmax attention in float32: the arithmetic that the attend references share."""

from __future__ import annotations

from typing import Tuple

import torch

from sglang.srt.layers.attention.hsa.params import AttentionParams

NEG_INF = float("-inf")


def masked_logits(
    q: torch.Tensor,
    k: torch.Tensor,
    mask: torch.Tensor,
    params: AttentionParams,
) -> torch.Tensor:
    """Attention logits, -inf where masked.

    Args:
        q: ``[..., T, D]`` float32.
        k: ``[..., J, D]`` float32.
        mask: broadcastable to ``[..., T, J]``, True where the key is attended.
        params: softmax scale, and soft cap c of ``c tanh(logit / c)``.

    Returns:
        ``[..., T, J]`` float32.
    """
    logits, cap = torch.matmul(q, k.transpose(-1, -2)), params.logit_cap
    logits = logits.mul_(params.sm_scale)
    if cap > 0:
        logits = logits.div_(cap).tanh_().mul_(cap)
    return logits.masked_fill_(~mask, NEG_INF)


def rescale_pages(
    logits: torch.Tensor, scores: torch.Tensor, keys_per_page: int
) -> torch.Tensor:
    """Shift each page's logits so that the page's log-sum-exp becomes its given score.

    A softmax over the result weighs pages by softmax(scores) and keys by the softmax within their page.

    Args:
        logits: ``[..., T, C * keys_per_page]`` float32.
        scores: ``[..., T, C]`` float32, -inf for a page that is not attended.

    Returns:
        ``[..., T, C * keys_per_page]`` float32.
    """
    paged = logits.unflatten(-1, (-1, keys_per_page))
    page_lse = torch.logsumexp(paged, dim=-1, keepdim=True)
    shifted = paged - page_lse + scores.unsqueeze(-1)
    return shifted.masked_fill(page_lse == NEG_INF, NEG_INF).flatten(-2)


def softmax_attend(
    logits: torch.Tensor, v: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Softmax of the logits times the values.

    Args:
        logits: ``[..., T, J]`` float32; a row of -inf attends nothing.
        v: ``[..., J, D_v]`` float32.

    Returns:
        (o ``[..., T, D_v]``, lse ``[..., T]``) float32; a row that attends nothing gets o = 0, lse = -inf.
    """
    lse = torch.logsumexp(logits, dim=-1)
    # exp(-inf - -inf) is NaN: an empty row is measured against 0 instead.
    p = torch.exp(logits - lse.masked_fill(lse == NEG_INF, 0.0).unsqueeze(-1))
    return torch.matmul(p, v), lse
