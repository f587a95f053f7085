# SPDX-License-Identifier: Apache-2.0
"""Qwen3 in plain torch, small enough to read: its parameters have the names and shapes of Qwen3ForCausalLM."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class Shape:
    """Fields of Qwen3Config that the shape of a checkpoint follows from."""

    vocab_size: int = 3200
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 32768
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads, self.kv_heads, dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, self.heads * dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, self.kv_heads * dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, self.kv_heads * dim, bias=False)
        self.o_proj = nn.Linear(self.heads * dim, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(dim, shape.rms_norm_eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, length, self.heads, -1)).transpose(1, 2)  # [B, H, T, D]
        k = self.k_norm(self.k_proj(x).view(batch, length, self.kv_heads, -1)).transpose(1, 2)  # [B, H_kv, T, D]
        v = self.v_proj(x).view(batch, length, self.kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """Embedding and output weights are tied. ``forward`` returns hidden states, ``logits`` takes any rows of them."""

    SHAPE = Shape

    def __init__(self, shape: Shape, seed: int = 0):
        super().__init__()
        self.shape = shape
        self.model = nn.ModuleDict(
            dict(
                embed_tokens=nn.Embedding(shape.vocab_size, shape.hidden_size),
                layers=nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers)),
                norm=RMSNorm(shape.hidden_size, shape.rms_norm_eps),
            )
        )
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # What adds to the residual stream starts smaller the more layers add to it.
                gain = 0.8 if "embed_tokens" in name else 1.0
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    # A layer adds less than a token's embedding. Added at full scale it drowns the token, and
                    # matching one token to another is then not found at all, or much later.
                    gain = 0.1 * (2 * shape.num_hidden_layers) ** -0.5
                spread = gain * weight.shape[1] ** -0.5
                nn.init.normal_(weight, std=spread, generator=generator)

        self._look_back(generator)

    @torch.no_grad()
    def _look_back(self, generator: torch.Generator) -> None:
        """Start the heads of the first layer as heads that look at the tokens 1, 2, ... before.

        Matching a word to what followed it needs such heads, and finding them takes longer than all that comes after.
        A head can look at a place only by what all tokens have in common. So every embedding gets the same vector
        (which adds the same to all logits), keys are made to hold a fixed pattern of it in the fast rotary pairs, and
        queries the pattern turned back by as many positions as they look.
        """
        shape, first = self.shape, self.model["layers"][0].self_attn
        embedding = self.model["embed_tokens"].weight
        common = torch.randint(0, 2, (shape.hidden_size,), generator=generator).float() * 2 - 1
        embedding += 0.8 * shape.hidden_size**-0.5 * common
        half = shape.head_dim // 2
        speed = shape.rope_theta ** -(torch.arange(half) / half)  # radians per position
        loud = (speed > 0.15).float()
        # Three times as loud as what the random part of the projection makes of a normalised embedding.
        gain = 3.0 * 2**0.5 / shape.hidden_size
        first.q_norm.weight.fill_(2.0)
        first.k_norm.weight.fill_(2.0)
        for head in range(shape.num_key_value_heads):
            rows = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
            first.k_proj.weight[rows] += gain * torch.cat([loud, 0 * loud])[:, None] * common
        for head in range(shape.num_attention_heads):
            rows = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
            turn = -(head + 1) * speed
            first.q_proj.weight[rows] += gain * torch.cat([loud * turn.cos(), loud * turn.sin()])[:, None] * common

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids ``[B, T]`` to final hidden states ``[B, T, hidden]``."""
        x = self.model["embed_tokens"](ids)
        cos, sin = rotary(self.shape, ids.shape[1], x.device)
        for layer in self.model["layers"]:
            x = layer(x, cos, sin)
        return self.model["norm"](x)

    def config(self, end_token: int, pad_token: int) -> dict:
        """config.json of a Qwen3ForCausalLM."""
        from transformers import Qwen3Config

        shape = dataclasses.asdict(self.shape)
        theta = shape.pop("rope_theta")
        config = Qwen3Config(
            **shape,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end_token,
            pad_token_id=pad_token,
        )
        return {**config.to_dict(), "architectures": ["Qwen3ForCausalLM"], "dtype": "bfloat16"}

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[..., hidden]`` to logits ``[..., vocab]``."""
        return F.linear(hidden, self.model["embed_tokens"].weight)


def rotary(shape: Shape, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine ``[T, D]`` float32 of positions 0 to T-1, the two halves of a head rotating together."""
    half = torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float32) / shape.head_dim
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * shape.rope_theta**-half
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


def export(model: Qwen3, folder: Path, end_token: int, pad_token: int) -> None:
    """Write config.json, generation_config.json and model.safetensors (bfloat16) of a checkpoint."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    fields = model.config(end_token, pad_token)
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    ends = {"eos_token_id": end_token, "pad_token_id": pad_token, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2, sort_keys=True) + "\n")
    tensors = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, families: dict[str, type[Qwen3]]) -> Qwen3:
    """The model of a checkpoint that ``export`` wrote; ``families`` are the classes per ``model_type``."""
    from safetensors.torch import load_file

    fields = json.loads((folder / "config.json").read_text())
    if fields["model_type"] not in families:
        raise SystemExit(f"{folder} is a {fields['model_type']} checkpoint; known are {', '.join(families)}")
    family = families[fields["model_type"]]
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    fields.setdefault("rope_theta", fields.get("rope_parameters", {}).get("rope_theta"))
    shape = family.SHAPE(**{field.name: fields[field.name] for field in dataclasses.fields(family.SHAPE)})
    model = family(shape)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model
