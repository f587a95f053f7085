# SPDX-License-Identifier: Apache-2.0
"""Norms and rotary embeddings of HiLS checkpoints, with the rounding that they were trained with."""

from __future__ import annotations

import inspect
import math
from typing import Dict

import torch
from torch import nn

from sglang.srt.configs.hils import HiLSConfig, OlmoHiLSConfig
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.layernorm import RMSNorm

# Of the norms in layers with HSA, whatever rms_norm_eps is.
LANDMARK_EPS = 1e-6


def make_norm(
    head_dim: int, total_heads: int, all_heads: bool, eps: float
) -> nn.Module:
    """A norm of ``[..., H, D]``, over each head or over all heads of all ranks; rounded before its weight multiplies."""
    if all_heads and total_heads > 1:
        return AllHeadsNorm(head_dim, total_heads, eps)
    norm = RMSNorm(head_dim, eps=eps, cast_x_before_out_mul=True)
    if "cast_x_before_out_mul" not in inspect.getsource(RMSNorm.forward_cuda):
        norm._forward_method = (
            norm.forward_native
        )  # until 0.5.12 its kernel multiplies first
    return norm


class AllHeadsNorm(nn.Module):
    """RMS norm over the heads of all ranks ``[T, H, D]``; a rank has its heads' part of the weight."""

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
