# SPDX-License-Identifier: Apache-2.0
"""Kinds of page representation E_i and how a query scores against them.

Every kind is bilinear: ``raw[h, c] = query_features(q[h]) . E[c]``, so one matrix product serves all of
them, whatever the kind. E_i is a pure function of the page's keys as attention reads them (rotated,
dequantised), computed in float32.

    kind      E_i per page and KV head      raw score of query q, softmax scale s
    mean      mu                            s q.mu
    mean_var  mu, var                       s q.mu + s^2/2 sum_d q_d^2 var_d
    min_max   lo, hi                        s sum_d max(q_d lo_d, q_d hi_d)
    landmark  key of the page's last slot   s q.K_last

mean_var is the second cumulant expansion of log mean exp(s q.K_j) over the page. min_max is the upper bound
of Quest (arXiv 2406.10774). landmark stores nothing: it is read from the K cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch


@dataclass(frozen=True)
class ChunkReprKind:
    """One kind of page representation.

    Attributes:
        name: value of ``--hsa-chunk-repr``.
        width: repr_dim in multiples of head_dim.
        stored: False when E_i is a view of the K cache and needs no buffer.
        from_keys: keys ``[N, page_size, H_kv, D]`` float32 -> ``[N, H_kv, width * D]`` float32.
        query_features: (q ``[..., D]`` float32, softmax scale) -> ``[..., width * D]`` float32.
        biased: whether each KV head also has a float32 bias that is added to its scores.
    """

    name: str
    width: int
    stored: bool
    from_keys: Callable[[torch.Tensor], torch.Tensor]
    query_features: Callable[[torch.Tensor, float], torch.Tensor]
    biased: bool = False


def _linear_features(q: torch.Tensor, scale: float) -> torch.Tensor:
    return scale * q


def _mean_var(keys: torch.Tensor) -> torch.Tensor:
    mean = keys.mean(dim=1)
    var = (keys - mean.unsqueeze(1)).square().mean(dim=1)
    return torch.cat([mean, var], dim=-1)


def _mean_var_features(q: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.cat([scale * q, 0.5 * scale * scale * q.square()], dim=-1)


def _min_max(keys: torch.Tensor) -> torch.Tensor:
    return torch.cat([keys.amin(dim=1), keys.amax(dim=1)], dim=-1)


def _min_max_features(q: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.cat([scale * q.clamp(max=0), scale * q.clamp(min=0)], dim=-1)


KINDS = {
    kind.name: kind
    for kind in (
        ChunkReprKind("mean", 1, True, lambda keys: keys.mean(dim=1), _linear_features),
        ChunkReprKind("mean_var", 2, True, _mean_var, _mean_var_features),
        ChunkReprKind("min_max", 2, True, _min_max, _min_max_features),
        ChunkReprKind("landmark", 1, False, lambda keys: keys[:, -1], _linear_features),
    )
}
