# SPDX-License-Identifier: Apache-2.0
"""Kinds of page representation E_i and how a query scores against them.

E_i is a pure function of the page's keys as attention reads them (rotated, dequantised), computed in float32.

    kind       E_i per page and KV head         raw score of query q, softmax scale s
    mean       mu                               s q.mu
    mean_std   mu, sigma                        s sum_d (q_d mu_d + abs(q_d) sigma_d)
    landmark   key of the page's last slot      s q.K_last
    slow_keys  every key, 4 bits per channel,   s max_j q.K'_j
               slowest half of the channels

The first three are linear: ``raw[h, c] = query_features(q[h]) . E[c]``, one matrix product. landmark stores nothing: it is
read from the K cache.

prior is of checkpoints that were trained for HSA (HiLS): the query of the page's landmark, one per query head, weighs the
keys, and E_i is their mean k' under its softmax, with the entropy b' of that softmax beside it. The raw score of a
selection query is s q.k' + b', which is the log-sum-exp of the page at the landmark's query, and near it to first order.

slow_keys approximates the largest logit of the page. Rotary embedding turns each pair of channels at a frequency of its
own; a query far from the page meets the fast pairs at what is in effect a random angle, and the slow ones say what the
token is. Each kept channel of a page has its own lowest value and step, so that outlying channels cost the others nothing.
docs/quality.md has the measurements behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Optional, Tuple, Union

import torch

LEVELS = 15  # largest 4-bit code
SMALLEST_STEP = 2.0**-100


@dataclass(frozen=True)
class LinearKind:
    """A representation of ``width * head_dim`` numbers that scores by one product.

    Attributes:
        name: value of ``--hsa-chunk-repr``.
        width: repr_dim in multiples of head_dim.
        stored: False when E_i is a view of the K cache and needs no buffer.
        from_keys: keys ``[N, page_size, H_kv, D]`` float32 -> ``[N, H_kv, width * D]`` float32.
        query_features: (q ``[..., D]`` float32, softmax scale) -> ``[..., width * D]`` float32.

    Its kernels take what they compute from ``ops/linear_kinds.py``.
    """

    name: str
    width: int
    stored: bool
    from_keys: Callable[[torch.Tensor], torch.Tensor]
    query_features: Callable[[torch.Tensor, float], torch.Tensor]
    slow = False
    biased = False

    def repr_dim(self, head_dim: int, page_size: int, group: int = 1) -> int:
        """Elements of a page's representation per KV head, which ``group`` query heads share."""
        return self.width * head_dim

    def storage_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype of stored representations of keys in ``dtype``, which is not an 8-bit one."""
        return dtype

    def represent(
        self, keys: torch.Tensor, channels: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Keys ``[N, page_size, H_kv, D]`` float32 -> representations ``[N, H_kv, repr_dim]`` float32."""
        return self.from_keys(keys)

    def raw_scores(
        self,
        q: torch.Tensor,
        reprs: torch.Tensor,
        scale: float,
        channels: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Scores of pages ``[T, H_kv, G, C]`` float32.

        Args:
            q: queries by KV head ``[T, H_kv, G, D]``.
            reprs: ``[C, H_kv, repr_dim]``.
            scale: softmax scale.
        """
        features = self.query_features(q.float(), scale)
        return torch.einsum("tgnr,cgr->tgnc", features, reprs.float())


@dataclass(frozen=True)
class SlowKeys:
    """Every key of the page in 4 bits per channel, of the channels that rotate slowest.

    A representation is bytes: for each of the R channels its lowest value, then its step (both bfloat16), then for each
    key R / 2 bytes, of which byte i holds the codes of channels i (low bits) and i + R / 2. A code is the level next to the
    key, the upper one in the middle of two.

    The arguments ``channels`` are the kept channels of the layer ``[R]`` int32, see ``slow_channels``.
    """

    name = "slow_keys"
    stored = True
    slow = True
    biased = False

    def repr_dim(self, head_dim: int, page_size: int, group: int = 1) -> int:
        """Bytes of a page's representation per KV head."""
        kept = num_channels(head_dim)
        return 4 * kept + page_size * kept // 2

    def storage_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Bytes, whatever the dtype of the keys."""
        return torch.uint8

    def represent(self, keys: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        """Keys ``[N, page_size, H_kv, D]`` float32 -> representations ``[N, H_kv, repr_dim]`` uint8."""
        kept = keys[..., channels.long()].transpose(1, 2)  # [N, H_kv, P, R]
        low, high = kept.amin(dim=2), kept.amax(dim=2)
        low = low.to(torch.bfloat16)
        step = ((high - low.float()) / LEVELS).clamp(min=SMALLEST_STEP)
        step = step.to(torch.bfloat16)
        above, steps = kept - low.float().unsqueeze(2), step.float().unsqueeze(2)
        # The products are exact: no implementation rounds a key to another level.
        code = sum((above >= (level + 0.5) * steps).byte() for level in range(LEVELS))
        first, second = code.chunk(2, dim=-1)
        parts = (
            low.view(torch.uint8),
            step.view(torch.uint8),
            (first | second << 4).flatten(2),
        )
        return torch.cat(parts, dim=-1)

    def keys(self, reprs: torch.Tensor, num_kept: int) -> torch.Tensor:
        """The kept channels of the keys ``[..., page_size, R]`` float32 that representations ``[..., repr_dim]`` stand for."""
        low, step = (
            reprs[..., start : start + 2 * num_kept].contiguous().view(torch.bfloat16)
            for start in (0, 2 * num_kept)
        )
        packed = reprs[..., 4 * num_kept :].unflatten(-1, (-1, num_kept // 2))
        code = torch.cat([packed & LEVELS, packed >> 4], dim=-1)
        return low.float().unsqueeze(-2) + step.float().unsqueeze(-2) * code

    def raw_scores(
        self,
        q: torch.Tensor,
        reprs: torch.Tensor,
        scale: float,
        channels: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of pages ``[T, H_kv, G, C]`` float32; arguments as of ``LinearKind.raw_scores``."""
        # As the kernels multiply them: in the dtype of the queries.
        keys = self.keys(reprs, len(channels)).to(q.dtype).float()  # [C, H_kv, P, R]
        logits = torch.einsum("tgnr,cgjr->tgncj", q[..., channels.long()].float(), keys)
        return scale * logits.amax(dim=-1)


@dataclass(frozen=True)
class Prior:
    """The keys of a page as the query of its landmark weighs them: k' ``[G * D]`` and b' ``[G]`` per KV head.

    Source: HiLS-Attention, arXiv 2607.02980.
    """

    name = "prior"
    stored = True
    slow = False
    biased = True

    def repr_dim(self, head_dim: int, page_size: int, group: int = 1) -> int:
        """Elements of k' per KV head: one vector for each of its query heads."""
        return group * head_dim

    def storage_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype of k' of keys in ``dtype``; b' is float32."""
        return dtype

    def represent(
        self, keys: torch.Tensor, queries: torch.Tensor, scale: float
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """k' and b' of pages.

        Args:
            keys: ``[N, slots_per_page, H_kv, D]`` float32.
            queries: of the pages' landmarks ``[N, H_kv, G, D]``.
            scale: softmax scale.

        Returns:
            (k' ``[N, H_kv, G * D]``, b' ``[N, H_kv, G]``) float32.
        """
        logits = scale * torch.einsum("ngrd,njgd->ngrj", queries.float(), keys)
        log_share = torch.log_softmax(logits, dim=-1)
        share = log_share.exp()
        mean = torch.einsum("ngrj,njgd->ngrd", share, keys)
        return mean.flatten(2), -(share * log_share).sum(dim=-1)

    def raw_scores(
        self,
        q: torch.Tensor,
        reprs: torch.Tensor,
        scale: float,
        channels: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Scores of pages before their b' ``[T, H_kv, G, C]`` float32; arguments as of ``LinearKind.raw_scores``."""
        keys = reprs.float().unflatten(-1, q.shape[-2:])  # [C, H_kv, G, D]
        return scale * torch.einsum("tgnd,cgnd->tgnc", q.float(), keys)


def num_channels(head_dim: int) -> int:
    """Channels that slow_keys keeps: half of a head's, up to a power of two, at least the 8 of a word of codes."""
    return max(8, 1 << ((head_dim + 1) // 2 - 1).bit_length())


def slow_channels(frequencies: torch.Tensor) -> torch.Tensor:
    """Channels that slow_keys keeps, ascending ``[R]`` int32.

    Args:
        frequencies: angle per position by which rotary embedding turns each channel of a head ``[D]``, 0 where it
            turns none.
    """
    kept = num_channels(len(frequencies))
    order = torch.sort(frequencies.abs().float().cpu(), stable=True).indices
    return order[:kept].sort().values.int()


def _linear_features(q: torch.Tensor, scale: float) -> torch.Tensor:
    return scale * q


def _mean_std(keys: torch.Tensor) -> torch.Tensor:
    mean = keys.mean(dim=1)
    std = (keys - mean.unsqueeze(1)).square().mean(dim=1).sqrt()
    return torch.cat([mean, std], dim=-1)


def _mean_std_features(q: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.cat([scale * q, scale * q.abs()], dim=-1)


PageRepr = Union[LinearKind, SlowKeys, Prior]
PRIOR = Prior()
# Of keys alone, which any checkpoint has.
KINDS: Dict[str, PageRepr] = {
    kind.name: kind
    for kind in (
        SlowKeys(),
        LinearKind("mean_std", 2, True, _mean_std, _mean_std_features),
        LinearKind("mean", 1, True, lambda keys: keys.mean(dim=1), _linear_features),
        LinearKind("landmark", 1, False, lambda keys: keys[:, -1], _linear_features),
    )
}


def kind_named(name: str) -> PageRepr:
    """The kind that ``--hsa-chunk-repr`` calls so."""
    return PRIOR if name == PRIOR.name else KINDS[name]
