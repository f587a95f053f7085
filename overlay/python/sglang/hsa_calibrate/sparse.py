# SPDX-License-Identifier: Apache-2.0
"""Attention of a block of query rows over one sequence: dense, or over window, sinks and selected pages.

Both compute every logit, since the exact attention mass of what is left out is wanted as well. Only the choice of pages
is HSA's own code. Everything is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch

from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.layout import (
    num_candidate_pages,
    window_start_page,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams
from sglang.srt.layers.attention.hsa.selector import HSASelector

NEG_INF = float("-inf")
# A page left out may outweigh all that is kept by more than float32 can say; beyond exp(60) its share is 1 anyway.
LARGEST_EXPONENT = 60.0


@dataclass(frozen=True)
class Layer:
    """One attention layer as it is called.

    Attributes:
        index: layer of the model.
        scale: softmax scale.
        softcap: bound of the logits, ``softcap * tanh(logit / softcap)``, or None.
        sliding_window: keys that a query attends at most, itself included, or None for all.
        channels: channels that slow_keys keeps ``[R]`` int32, or None.
    """

    index: int
    scale: float
    softcap: Optional[float] = None
    sliding_window: Optional[int] = None
    channels: Optional[torch.Tensor] = None


@dataclass(frozen=True)
class BlockResult:
    """Output of T query rows, and where their attention mass lies. C pages reach the last row's position.

    Attributes:
        output: ``[T, H_kv, G, D_v]`` float32.
        positions: of the rows ``[T]`` int64.
        candidate: pages that a row may select ``[T, C]`` bool.
        selected: pages that a row selected ``[H_kv, T, C]`` bool.
        mass: exact attention mass of each page, 1 in all ``[H_kv, G, T, C]`` float32.
        attended: exact mass of the keys that are attended ``[H_kv, G, T]`` float32.
    """

    output: torch.Tensor
    positions: torch.Tensor
    candidate: torch.Tensor
    selected: torch.Tensor
    mass: torch.Tensor
    attended: torch.Tensor


def dense_block(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: int, layer: Layer
) -> torch.Tensor:
    """Causal attention, within the sliding window if the layer has one ``[T, H_kv, G, D_v]`` float32.

    Args:
        q: ``[T, H_kv, G, D]``, the queries at indices ``first``, ``first + 1``, ... of the keys.
        keys: ``[H_kv, N, D]`` float32.
        values: ``[H_kv, N, D_v]`` float32.
    """
    end = first + q.shape[0]
    logits = _logits(q, keys[:, :end], layer)
    ahead = torch.arange(end, device=q.device) - _rows(q, first)[:, None]
    hidden = ahead > 0
    if layer.sliding_window is not None:
        hidden |= ahead <= -layer.sliding_window
    weights = logits.masked_fill_(hidden, NEG_INF).softmax(dim=-1)
    return _weighted(weights, values[:, :end])


def sparse_block(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    reprs: torch.Tensor,
    first: int,
    layer: Layer,
    config: HSAConfig,
    exact: bool = False,
) -> BlockResult:
    """Attention over window, sinks and the pages selected by each row and KV head.

    Args:
        q: ``[T, H_kv, G, D]`` in the model's dtype, the queries at positions ``first``, ``first + 1``, ...
        keys: ``[H_kv, N, D]`` float32, N a multiple of the page size; what lies after the last row is not read.
        values: ``[H_kv, N, D_v]`` float32, finite.
        reprs: representations of the complete pages ``[pages, H_kv, repr_dim]``.
        exact: select by exact attention mass and not by the representations.
    """
    page_size, (_, num_kv_heads, group, _) = config.page_size, q.shape
    positions = _rows(q, first)
    num_pages = (first + len(q) - 1) // page_size + 1
    end = num_pages * page_size
    logits = _logits(q, keys[:, :end], layer)
    index = torch.arange(first, end, device=q.device)
    logits[..., first:].masked_fill_(index > positions[:, None], NEG_INF)
    by_page = logits.view(num_kv_heads, group, len(q), num_pages, page_size)

    page = torch.arange(num_pages, device=q.device)
    start = window_start_page(positions, config.effective_window, page_size)
    always = (page < config.sink_pages) | (page >= start[:, None])
    lse = None
    if config.selection_strategy == "softmax_head":
        near = by_page.masked_fill(~always[..., None], NEG_INF).flatten(-2)
        lse = near.logsumexp(dim=-1).permute(2, 0, 1).flatten(1)
    if exact:
        selected = select_exact(by_page, positions, config)
    else:
        selected = select(q, reprs, positions, num_pages, layer, config, lse)
    keep = (always | selected).unsqueeze(1)  # [H_kv, 1, T, C]

    # Relative to the largest logit that is kept, so that the weights of what is kept are exact.
    top = by_page.amax(dim=-1).masked_fill_(~keep, NEG_INF).amax(dim=-1, keepdim=True)
    logits.sub_(top).clamp_(max=LARGEST_EXPONENT).exp_()
    mass = by_page.sum(dim=-1)  # [H_kv, G, T, C]
    kept, total = (mass * keep).sum(dim=-1), mass.sum(dim=-1)
    by_page.mul_(keep.unsqueeze(-1))
    output = _weighted(logits, values[:, :end]) / kept.permute(2, 0, 1).unsqueeze(-1)
    return BlockResult(
        output=output,
        positions=positions,
        candidate=~always & (page < start[:, None]),
        selected=selected,
        mass=mass / total.unsqueeze(-1),
        attended=kept / total,
    )


def select(
    q: torch.Tensor,
    reprs: torch.Tensor,
    positions: torch.Tensor,
    num_pages: int,
    layer: Layer,
    config: HSAConfig,
    lse: Optional[torch.Tensor],
) -> torch.Tensor:
    """Pages that each row and KV head selects ``[H_kv, T, num_pages]`` bool.

    Args:
        q: ``[T, H_kv, G, D]``.
        reprs: ``[pages, H_kv, repr_dim]``.
        positions: of the rows, ascending ``[T]``.
        lse: log-sum-exp of window and sinks ``[T, H_q]``; needed by ``softmax_head``.
    """
    params = AttentionParams(config, layer.scale, layer.softcap or 0.0)
    selector = HSASelector(params, layer.channels)
    counts = _candidates(positions, config)
    most = int(counts[-1])
    logits = torch.empty(q.shape[0], q.shape[1], 0, device=q.device)
    if most:
        pages = torch.arange(most, device=q.device)
        logits, _ = selector.compute_logits(
            q.flatten(1, 2),
            reprs[config.sink_pages : config.sink_pages + most],
            pages < counts[:, None],
            lse,
        )
    return _best(logits, num_pages, selector)


def select_exact(
    by_page: torch.Tensor, positions: torch.Tensor, config: HSAConfig
) -> torch.Tensor:
    """Pages with the most exact mass, summed over the heads of a KV head ``[H_kv, T, num_pages]`` bool.

    Args:
        by_page: logits ``[H_kv, G, T, num_pages, page_size]``, -inf where a row does not see a key.
        positions: of the rows, ascending ``[T]``.
    """
    counts = _candidates(positions, config)
    lse = by_page.logsumexp(dim=-1)  # [H_kv, G, T, num_pages]
    share = (lse - lse.logsumexp(dim=-1, keepdim=True)).exp().sum(dim=1)
    num_pages, most = lse.shape[-1], int(counts[-1])
    share = share.transpose(0, 1)[..., config.sink_pages : config.sink_pages + most]
    pages = torch.arange(share.shape[-1], device=share.device)
    hidden = (pages >= counts[:, None]).unsqueeze(1)
    selector = HSASelector(AttentionParams(config, sm_scale=1.0))
    return _best(share.masked_fill(hidden, NEG_INF), num_pages, selector)


def _candidates(positions: torch.Tensor, config: HSAConfig) -> torch.Tensor:
    """Candidate pages of each row ``[T]``."""
    window, size = config.effective_window, config.page_size
    return num_candidate_pages(positions, window, size, config.sink_pages)


def _best(logits: torch.Tensor, num_pages: int, selector: HSASelector) -> torch.Tensor:
    """The best of scores ``[T, H_kv, candidates]`` as a mask ``[H_kv, T, num_pages]``."""
    shape = (*logits.shape[:2], num_pages + 1)  # the last column takes the padding
    chosen = torch.zeros(shape, dtype=torch.bool, device=logits.device)
    if logits.shape[-1]:
        pages = torch.arange(logits.shape[-1], device=logits.device)
        first = selector.params.sink_pages
        _, picked = selector.topk_transform(logits, pages + first)
        chosen.scatter_(-1, picked.long().masked_fill(picked < 0, num_pages), True)
    return chosen[..., :num_pages].transpose(0, 1)


def _rows(q: torch.Tensor, first: int) -> torch.Tensor:
    return torch.arange(first, first + q.shape[0], device=q.device)


def _logits(q: torch.Tensor, keys: torch.Tensor, layer: Layer) -> torch.Tensor:
    """``[H_kv, G, T, N]`` float32."""
    num_rows, num_kv_heads, group, head_dim = q.shape
    rows = q.float().permute(1, 2, 0, 3).reshape(num_kv_heads, -1, head_dim)
    logits = torch.matmul(rows * layer.scale, keys.transpose(1, 2))
    if layer.softcap is not None:
        logits.div_(layer.softcap).tanh_().mul_(layer.softcap)
    return logits.view(num_kv_heads, group, num_rows, -1)


def _weighted(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Weights ``[H_kv, G, T, N]``, values ``[H_kv, N, D_v]`` -> ``[T, H_kv, G, D_v]``."""
    num_kv_heads, group, num_rows, _ = weights.shape
    output = torch.matmul(weights.flatten(1, 2), values)
    return output.view(num_kv_heads, group, num_rows, -1).permute(2, 0, 1, 3)
