# SPDX-License-Identifier: Apache-2.0
"""HiLS in plain torch, for training: a Qwen3 whose layers choose pages by trained landmarks (docs/hils.md).

Its parameters have the names and shapes of a ``qwen_hils`` checkpoint. It starts as a dense checkpoint: q, k, v and o are
copied, the landmark's projection adds nothing at first, so that the selection query is the query, and the landmark's
embedding is the mean of the others.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from model import Attention, Layer, Qwen3, RMSNorm, Shape, rotate
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclasses.dataclass(frozen=True)
class HiLSShape(Shape):
    """``Shape`` with the fields of HiLS: a page is ``chunk_size - 1`` tokens and a landmark; windows count both."""

    chunk_size: int = 64
    hils_sliding_window: int = 128
    hils_topk: int = 16
    lmk_q_lora_dim: int = 64
    rope_context_length: int = 8192
    rope_period_multiplier: float = 2.0


class HiLSAttention(Attention):
    """Attention of rows of tokens and landmarks to window and chosen pages, with a logit of 0 beside (softmax1)."""

    QUERIES = 1024  # rows whose logits are held at once; a multiple of a page

    def __init__(self, shape: HiLSShape):
        super().__init__(shape)
        self.shape, self.topk, self.bias = shape, shape.hils_topk, True
        width = self.heads * shape.head_dim
        self.lmk_q_proj = nn.ModuleList(
            [
                nn.Linear(shape.hidden_size, shape.lmk_q_lora_dim, bias=False),
                nn.Linear(shape.lmk_q_lora_dim, width, bias=False),
            ]
        )
        self.lmk_q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Places ``[B, L, hidden]``, whole pages."""
        batch, length, _ = x.shape

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(batch, length, -1, self.shape.head_dim)

        raw = heads(self.q_proj(x))
        chooser = heads(self.lmk_q_proj[1](self.lmk_q_proj[0](x))) + raw
        q, l = self.q_norm(raw).transpose(1, 2), self.lmk_q_norm(chooser).transpose(1, 2)
        k, v = self.k_norm(heads(self.k_proj(x))).transpose(1, 2), heads(self.v_proj(x)).transpose(1, 2)
        q, k, l = (rotate(y, cos, sin) for y in (q, k, l))
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        # Scores and log-sum-exps are compared with one another: in float32. The softmax within a page may be coarser.
        coarse = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            q, k, l, v = (y.float() for y in (q, k, l, v))
            reprs = self.represent(k, l)
            parts = []
            for begin in range(0, length, self.QUERIES):
                end = min(begin + self.QUERIES, length)
                block = q[:, :, begin:end], l[:, :, begin:end], k[:, :, :end], v[:, :, :end]
                parts.append(checkpoint(self.attend, *block, *reprs, begin, coarse, use_reentrant=False))
        return self.o_proj(torch.cat(parts, dim=2).transpose(1, 2).reshape(batch, length, -1))

    def represent(self, k: torch.Tensor, l: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """k' ``[B, H, N, D]`` and b' ``[B, H, N]`` float32 of N pages from rows ``[B, H, L, D]``."""
        page = self.shape.chunk_size
        keys = k.unflatten(2, (-1, page))[..., :-1, :]
        landmarks = l.unflatten(2, (-1, page))[..., -1, :]
        logits = torch.einsum("bhnd,bhnjd->bhnj", landmarks, keys) * self.shape.head_dim**-0.5
        share = logits.log_softmax(-1)
        entropies = -(share.exp() * share).sum(-1)
        return torch.einsum("bhnj,bhnjd->bhnd", share.exp(), keys), entropies if self.bias else torch.zeros_like(entropies)

    def attend(self, q, l, k, v, means, entropies, begin: int, coarse: torch.dtype) -> torch.Tensor:
        """Rows ``begin ...`` ``[B, H, Q, D]`` of q and l over all places up to their end."""
        page, scale, end = self.shape.chunk_size, self.shape.head_dim**-0.5, k.shape[2]
        before = self.shape.hils_sliding_window - 1
        row = torch.arange(begin, end, device=q.device)[:, None]
        first = (row - before).div(page, rounding_mode="floor").clamp(min=0)  # page of the window's begin, [Q, 1]
        near = max(0, (begin - before) // page)  # the first page that a window of these rows has
        far = max(0, (end - 1 - before) // page)  # pages that some of these rows may choose

        place = torch.arange(near * page, end, device=q.device)
        inside = (place % page < page - 1) & (place <= row) & (place >= first * page)
        logits = (q @ k[:, :, near * page :].transpose(-1, -2) * scale).masked_fill(~inside, -math.inf)
        local = logits.logsumexp(-1, keepdim=True)
        score = (l @ means[:, :, :far].transpose(-1, -2)) * scale + entropies[:, :, None, :far]
        score = score.masked_fill(torch.arange(far, device=q.device) >= first, -math.inf)
        with torch.no_grad():
            chosen = self.choose(score, local[..., 0])
        score = score.masked_fill(~chosen, -math.inf)
        # One softmax of nothing, the window and the chosen pages; keys share the weight by a softmax of their own.
        nothing = torch.zeros_like(local)
        weight = torch.cat([nothing, local, score], dim=-1).softmax(-1)
        out = weight[..., 1:2] * (logits.softmax(-1) @ v[:, :, near * page :])
        if far == 0:
            return out
        keys, values = (y[:, :, : far * page].unflatten(2, (far, page))[..., :-1, :].flatten(2, 3) for y in (k, v))
        share = (q * scale).to(coarse) @ keys.to(coarse).transpose(-1, -2)
        share = share.unflatten(-1, (far, page - 1)).softmax(-1) * weight[..., 2:, None].to(coarse)
        return out + (share.flatten(-2) @ values.to(coarse)).float()

    def choose(self, score: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
        """Pages that each row attends, one set for the heads of a KV head ``[B, H, Q, N]`` bool."""
        candidate = score > -math.inf
        if score.shape[-1] <= self.topk:
            return candidate
        norm = torch.logaddexp(local, score.logsumexp(-1))
        group = self.heads // self.kv_heads
        best = (score - norm[..., None]).unflatten(1, (-1, group)).amax(2)  # [B, H_kv, Q, N]
        least = best.topk(self.topk, dim=-1).values[..., -1:]
        return candidate & (best >= least).repeat_interleave(group, dim=1)


class HiLSLayer(Layer):
    def __init__(self, shape: HiLSShape):
        super().__init__(shape)
        self.self_attn = HiLSAttention(shape)


class HiLS(Qwen3):
    """As ``Qwen3``: token ids to hidden states of tokens; landmarks are in it alone."""

    SHAPE = HiLSShape

    def __init__(self, shape: HiLSShape, seed: int = 0):
        super().__init__(shape, seed)
        self.model["layers"] = nn.ModuleList(HiLSLayer(shape) for _ in range(shape.num_hidden_layers))
        self.model.register_parameter("lmk_embed", nn.Parameter(torch.zeros(shape.hidden_size)))
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if "layers" in name and weight.dim() == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)

    @torch.no_grad()
    def start_from(self, folder: Path) -> bool:
        """Take the weights of a checkpoint; of a dense one with landmarks that choose as its queries do.

        Returns whether it has landmarks.
        """
        from safetensors.torch import load_file

        dense = load_file(folder / "model.safetensors")
        missing, surplus = self.load_state_dict(dense, strict=False)
        if surplus or set(missing) not in (set(), {name for name in self.state_dict() if "lmk_" in name}):
            raise SystemExit(f"train: {folder} is no checkpoint of this shape: {[*surplus, *missing]}")
        if not missing:
            return True
        self.model.lmk_embed.copy_(self.model["embed_tokens"].weight.mean(dim=0))
        for layer in self.model["layers"]:
            layer.self_attn.lmk_q_proj[1].weight.zero_()
            layer.self_attn.lmk_q_norm.weight.copy_(layer.self_attn.q_norm.weight)
        return False

    def set_selection(self, pages: int, bias: bool = True) -> None:
        """Pages that a row attends from now on, and whether their scores and weights have the entropy b'."""
        for layer in self.model["layers"]:
            layer.self_attn.topk, layer.self_attn.bias = pages, bias

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids ``[B, T]`` to final hidden states ``[B, T, hidden]``."""
        page, (batch, tokens) = self.shape.chunk_size, ids.shape
        token = torch.arange(tokens, device=ids.device)
        at = token + token // (page - 1)  # places of the tokens
        length = -(-int(tokens + tokens // (page - 1)) // page) * page
        landmark = torch.arange(page - 1, length, page, device=ids.device)
        embedded = self.model["embed_tokens"](ids)
        x = embedded.new_zeros(batch, length, embedded.shape[-1]).index_copy(1, at, embedded)
        marks = self.model.lmk_embed.to(x.dtype).expand(batch, len(landmark), -1)
        x = x.index_copy(1, landmark, marks)
        cos, sin = self.rotary(length, x.device)
        for layer in self.model["layers"]:
            x = layer(x, cos, sin)
        return self.model["norm"](x[:, at])

    def rotary(self, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine ``[L, D]`` of places: pairs that turn too slowly for the context stand still."""
        shape = self.shape
        half = torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float32) / shape.head_dim
        speed = shape.rope_theta**-half
        slowest = 2 * math.pi * shape.rope_period_multiplier / shape.rope_context_length
        kept = speed >= slowest
        kept[0] = True
        place = torch.arange(length, device=device)
        position = (place - place // shape.chunk_size).float()
        angle = position[:, None] * (speed * kept)
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos(), angle.sin()

    def config(self, end_token: int, pad_token: int) -> dict:
        """config.json of a ``qwen_hils`` checkpoint."""
        shape = dataclasses.asdict(self.shape)
        shape.pop("head_dim")  # always hidden_size / num_attention_heads
        return dict(
            **shape,
            architectures=["HiLSForCausalLM"],
            model_type="qwen_hils",
            hidden_act="silu",
            full_attn_interleave=1,
            enable_lmk_q_proj=True,
            enable_prior_query=True,
            enable_softmax1=True,
            enable_external_lmk_embed=True,
            apply_hils_rope=True,
            enable_inrange_rope=True,
            use_sliding_window=False,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end_token,
            pad_token_id=pad_token,
            dtype="bfloat16",
        )
