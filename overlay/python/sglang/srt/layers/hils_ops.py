# SPDX-License-Identifier: Apache-2.0
"""Norms and rotary embeddings of HiLS checkpoints, with the rounding that they were trained with."""

from __future__ import annotations

import math
from typing import Dict, NamedTuple, Optional, Tuple, Union

import torch
from torch import nn

from sglang.srt.configs.hils import HiLSConfig, OlmoHiLSConfig
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers import hils_kernels
from sglang.srt.layers.attention.hsa import compat

# Of the norms in layers with HSA, whatever rms_norm_eps is.
LANDMARK_EPS = 1e-6


def on_kernels(x: torch.Tensor) -> bool:
    """Whether norms and rotary embeddings of x run on the kernels of ``hils_kernels``: on a CUDA device."""
    return x.is_cuda


class HiLSNorm(nn.Module):
    """RMS norm of the last dimension, rounded before its weight multiplies."""

    all_heads, ranks = False, 1

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.float()
        squares = values.square().mean(dim=-1, keepdim=True)
        return (values * torch.rsqrt(squares + self.eps)).to(x.dtype) * self.weight


class HiddenNorm(HiLSNorm):
    """Norm of hidden states ``[T, hidden_size]``, with the sum before or after it."""

    def forward(
        self, x: torch.Tensor, residual: Optional[torch.Tensor] = None
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """(norm of x, x); with a residual (norm of their sum, their sum)."""
        if on_kernels(x):
            return hils_kernels.norm(x, residual, self.weight, self.eps)
        if residual is not None:
            x = x + residual
        return super().forward(x), x

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The residual and the norm of x, added."""
        if on_kernels(x):
            return hils_kernels.norm_add(x, residual, self.weight, self.eps)
        return residual + super().forward(x)


class AllHeadsNorm(nn.Module):
    """RMS norm over the heads of all ranks ``[T, H, D]``; a rank has its heads' part of the weight."""

    all_heads = True

    def __init__(self, head_dim: int, total_heads: int, eps: float):
        super().__init__()
        self.eps, self.width = eps, head_dim * total_heads
        self.rank, self.ranks = compat.attention_tp()
        self.weight = nn.Parameter(torch.ones(self.width // self.ranks))
        self.weight.weight_loader = self._load

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(-2).float()
        squares = flat.square().sum(dim=-1, keepdim=True)
        if self.ranks > 1:
            squares = tensor_model_parallel_all_reduce(squares)
        flat = flat * torch.rsqrt(squares / self.width + self.eps)
        return (flat.to(x.dtype) * self.weight).view(x.shape)

    def _load(self, param: nn.Parameter, loaded: torch.Tensor) -> None:
        size = len(param)
        param.data.copy_(loaded.narrow(0, self.rank * size, size))


def make_head_norm(
    head_dim: int, total_heads: int, all_heads: bool, eps: float
) -> Union[HiLSNorm, AllHeadsNorm]:
    """A norm of ``[T, H, D]``, over each head or over all heads of all ranks."""
    if all_heads and total_heads > 1:
        return AllHeadsNorm(head_dim, total_heads, eps)
    return HiLSNorm(head_dim, eps)


class Rotary(nn.Module):
    """Rotary embedding, halves of a head paired, of positions 0 to ``max_position``.

    Args:
        frequencies: angle per position of each pair ``[D / 2]`` float32, 0 for a pair that is not turned.
        max_position: the last landmark may have it.
        rounds: whether cosines and sines have the dtype of the model, and products, too; float32 otherwise.
    """

    def __init__(self, frequencies: torch.Tensor, max_position: int, rounds: bool):
        super().__init__()
        positions = torch.arange(max_position + 1, dtype=torch.float32)
        angles = positions.unsqueeze(1) * frequencies.to(positions.device)
        dtype = torch.get_default_dtype() if rounds else torch.float32
        for name, table in (("cos", angles.cos()), ("sin", angles.sin())):
            self.register_buffer(name, table.to(dtype), persistent=False)

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x ``[T, H, D]`` at positions ``[T]``, in the dtype of x."""
        return self._turn(positions, x, self.cos.dtype)

    def in_float32(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """As ``forward``, whose products are rounded once."""
        return self._turn(positions, x, torch.float32)

    def _turn(
        self, positions: torch.Tensor, x: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        cos, sin = (
            table[positions].unsqueeze(1).to(dtype) for table in (self.cos, self.sin)
        )
        first, second = x.to(dtype).chunk(2, dim=-1)
        turned = first * cos - second * sin, second * cos + first * sin
        return torch.cat(turned, dim=-1).to(x.dtype)


class HeadRows(NamedTuple):
    """Queries or keys before their norm."""

    x: torch.Tensor  # [T, H, D]
    norm: Union[HiLSNorm, AllHeadsNorm]
    added: Optional[torch.Tensor] = None  # [T, H, D], before the norm

    def normed(self) -> torch.Tensor:
        return self.norm(self.x if self.added is None else self.x + self.added)


def norm_rotary(
    q: HeadRows,
    k: HeadRows,
    select_q: Optional[HeadRows],
    rotary: Optional[Rotary],
    positions: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
    """(q, k, select_q) of rows at ``positions`` ``[T]``, after their norms and rotary embedding, if there is one.

    A norm over the heads of several ranks needs their squares in the middle: then none of the three is on a kernel.
    """
    across_ranks = any(part is not None and part.norm.ranks > 1 for part in (q, k, select_q))  # fmt: skip
    if on_kernels(q.x) and not across_ranks:
        return hils_kernels.norm_rotary(q, k, select_q, rotary, positions)
    select = None if select_q is None else select_q.normed()
    if rotary is None:
        return q.normed(), k.normed(), select
    if select is not None:
        select = rotary.in_float32(positions, select)
    return rotary(positions, q.normed()), rotary(positions, k.normed()), select


def make_rotaries(config: HiLSConfig) -> Dict[bool, Rotary]:
    """Rotary embeddings of layers with HSA (True), if they have one, and of those with a sliding window (False)."""
    rotaries = {}
    if config.apply_hils_rope:
        rotaries[True] = _make_rotary(config, True)
    if config.num_window_layers:
        rotaries[False] = _make_rotary(config, False)
    return rotaries


def _make_rotary(config: HiLSConfig, sparse: bool) -> Rotary:
    if isinstance(config, OlmoHiLSConfig):
        frequencies = _olmo_frequencies(config, sparse)
        rounds = sparse or not config.use_olmo3_rotary_embedding
    else:
        frequencies = _qwen_frequencies(config)
        rounds = config.use_hope
    # --context-length may go beyond the checkpoint's, where SGLang is told to allow it.
    asked = compat.serving_arguments().context_length or 0
    return Rotary(frequencies, max(config.max_position_embeddings, asked), rounds)


def _olmo_frequencies(config: HiLSConfig, sparse: bool) -> torch.Tensor:
    if not sparse or not config.use_hope:
        return plain_frequencies(config)
    if config.enable_inrange_rope:
        return in_range_frequencies(config)
    return hope_frequencies(config)


def _qwen_frequencies(config: HiLSConfig) -> torch.Tensor:
    if config.enable_inrange_rope:
        return in_range_frequencies(config)
    return hope_frequencies(config) if config.use_hope else plain_frequencies(config)


def plain_frequencies(config: HiLSConfig) -> torch.Tensor:
    """``[D / 2]`` float32."""
    pair = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    return config.rotary_theta ** -(pair / config.head_dim)


def in_range_frequencies(config: HiLSConfig) -> torch.Tensor:
    """Of the plain ones those with ``rope_period_multiplier`` periods in ``rope_context_length``, and the first."""
    frequencies = plain_frequencies(config)
    slowest = (
        2
        * math.pi
        * config.rope_period_multiplier
        / (config.rope_context_length or config.max_position_embeddings)
    )
    kept = frequencies >= slowest
    kept[0] = True
    return frequencies * kept


def hope_frequencies(config: HiLSConfig) -> torch.Tensor:
    """A part of the pairs, up to one period in ``hope_context_length``; the others do not turn."""
    pairs = config.head_dim // 2
    turned = max(1, round(config.hope_partial_ratio * pairs))
    theta = config.hope_theta
    if theta is None:
        length = config.hope_context_length or config.max_position_embeddings
        base = length / (2 * math.pi)
        theta = base ** (turned / (turned - 1)) if turned > 1 else base
    pair = torch.arange(turned, dtype=torch.float32)
    return torch.nn.functional.pad(theta ** -(pair / turned), (0, pairs - turned))
