# SPDX-License-Identifier: Apache-2.0
"""HiLS: models that were trained for HSA, in OLMo 3 and in Qwen 3, from the checkpoints as published.

Their landmarks are rows that the model inserts before its first layer and drops after its last one (see
``hsa/landmark_rows.py``); outside of it there are tokens alone. Source: HiLS-Attention, arXiv 2607.02980.
"""

from __future__ import annotations

from typing import Dict, Iterable, Optional, Tuple

import torch
from torch import nn

from sglang.srt.configs.hils import HiLSConfig, OlmoHiLSConfig
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.attention.hsa import compat, landmark_rows
from sglang.srt.layers.hils_ops import (
    LANDMARK_EPS,
    HeadRows,
    HiddenNorm,
    Rotary,
    make_head_norm,
    make_rotaries,
    norm_rotary,
)
from sglang.srt.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_loader.hils_weights import load_hils_weights
from sglang.srt.utils import add_prefix, make_layers


class HiLSMLP(nn.Module):
    def __init__(
        self,
        config: HiLSConfig,
        quant_config: Optional[QuantizationConfig],
        prefix: str,
    ):
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [config.intermediate_size] * 2,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("gate_up_proj", prefix),
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("down_proj", prefix),
        )
        self.act_fn = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up, _ = self.gate_up_proj(x)
        return self.down_proj(self.act_fn(gate_up))[0]


class HiLSAttention(nn.Module):
    """Self-attention of one layer, with HSA or over a sliding window.

    With HSA a second query chooses the pages: ``L1(L0(x)) + q`` of the raw q, ``L(x)``, or q itself, as the checkpoint has
    it; that of a landmark makes its page's representation.

    Args:
        config: of the checkpoint.
        layer_id: number of the layer.
        rotaries: of layers with HSA (True) and without, which share one each.
    """

    def __init__(
        self,
        config: HiLSConfig,
        layer_id: int,
        rotaries: Dict[bool, Rotary],
        quant_config: Optional[QuantizationConfig],
        prefix: str,
    ):
        super().__init__()
        _, ranks = compat.attention_tp()
        total_heads, total_kv_heads = (
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        hidden, self.head_dim = config.hidden_size, config.head_dim
        self.num_heads = total_heads // ranks
        self.num_kv_heads = total_kv_heads // ranks
        self.sparse = layer_id in config.hsa_layer_ids
        olmo = isinstance(config, OlmoHiLSConfig)

        self.qkv_proj = QKVParallelLinear(
            hidden,
            self.head_dim,
            total_heads,
            total_kv_heads,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("qkv_proj", prefix),
        )
        self.o_proj = RowParallelLinear(
            total_heads * self.head_dim,
            hidden,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("o_proj", prefix),
        )
        eps = LANDMARK_EPS if self.sparse else config.rms_norm_eps
        all_heads = config.layerwise_qk_norm if self.sparse else olmo
        self.q_norm = make_head_norm(self.head_dim, total_heads, all_heads, eps)
        self.k_norm = make_head_norm(self.head_dim, total_kv_heads, all_heads, eps)
        self.rotary = rotaries.get(self.sparse)
        self.lmk_q_proj = None
        if self.sparse and config.enable_lmk_q_proj:
            self.lmk_q_proj = _landmark_query(config, quant_config, prefix)
            self.adds_q = config.lmk_q_lora_dim > 0
            self.lmk_q_norm = make_head_norm(
                self.head_dim, total_heads, config.layerwise_lmkq_norm, LANDMARK_EPS
            )
        self.attn = RadixAttention(
            self.num_heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=self.num_kv_heads,
            layer_id=layer_id,
            # SGLang counts the tokens before the query.
            sliding_window_size=-1 if self.sparse else config.window_tokens - 1,
            prefix=add_prefix("attn", prefix),
        )
        if self.sparse and config.enable_softmax1:
            # One logit of 0 more, which no value belongs to.
            self.register_buffer("sinks", torch.zeros(self.num_heads), persistent=False)
        else:
            self.sinks = None

    def forward(
        self,
        positions: torch.Tensor,
        x: torch.Tensor,
        forward_batch: ForwardBatch,
    ) -> torch.Tensor:
        """Rows ``[T, hidden_size]``, landmarks among them, at ``positions`` ``[T]``."""
        qkv, _ = self.qkv_proj(x)
        heads = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        raw_q, k, v = (
            part.unflatten(-1, (-1, self.head_dim))
            for part in qkv.split([n * self.head_dim for n in heads], dim=-1)
        )
        q, k, select_q = norm_rotary(
            HeadRows(raw_q, self.q_norm),
            HeadRows(k, self.k_norm),
            self._select_query(x, raw_q),
            self.rotary,
            positions,
        )
        inputs = {}
        if self.sparse:
            inputs["hsa_select_q"] = q if select_q is None else select_q
        # The batch counts tokens, and RadixAttention cuts what has more rows since 0.5.23.
        o = compat.backend_of(forward_batch).forward(
            q.flatten(1), k, v, self.attn, forward_batch, sinks=self.sinks, **inputs
        )
        return self.o_proj(o)[0]

    def _select_query(self, x: torch.Tensor, raw_q: torch.Tensor) -> Optional[HeadRows]:
        """What chooses pages ``[T, H_q, D]``; None for q."""
        if self.lmk_q_proj is None:
            return None
        for proj in self.lmk_q_proj if self.adds_q else [self.lmk_q_proj]:
            x, _ = proj(x)
        query = x.unflatten(-1, (-1, self.head_dim))
        return HeadRows(query, self.lmk_q_norm, raw_q if self.adds_q else None)


def _landmark_query(
    config: HiLSConfig, quant_config: Optional[QuantizationConfig], prefix: str
) -> nn.Module:
    """The projection of landmark queries: of low rank, two linear layers in a row, or one."""
    hidden, rank = config.hidden_size, config.lmk_q_lora_dim
    prefix = add_prefix("lmk_q_proj", prefix)
    common = dict(bias=False, quant_config=quant_config)
    if rank <= 0:
        return ColumnParallelLinear(hidden, hidden, prefix=prefix, **common)
    return nn.ModuleList(
        [
            ReplicatedLinear(hidden, rank, prefix=add_prefix("0", prefix), **common),
            ColumnParallelLinear(
                rank, hidden, prefix=add_prefix("1", prefix), **common
            ),
        ]
    )


class HiLSLayer(nn.Module):
    """Attention and MLP; the families differ in where their norms are, of which both have one after attention."""

    def __init__(
        self,
        config: HiLSConfig,
        layer_id: int,
        rotaries: Dict[bool, Rotary],
        quant_config: Optional[QuantizationConfig],
        prefix: str,
    ):
        super().__init__()
        self.self_attn = HiLSAttention(
            config, layer_id, rotaries, quant_config, add_prefix("self_attn", prefix)
        )
        self.mlp = HiLSMLP(config, quant_config, add_prefix("mlp", prefix))
        for name in ("post_attention_layernorm", self.other_norm):
            norm = HiddenNorm(config.hidden_size, config.rms_norm_eps)
            self.add_module(name, norm)


class OlmoHiLSLayer(HiLSLayer):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    other_norm = "post_feedforward_layernorm"

    def forward(
        self,
        positions: torch.Tensor,
        x: torch.Tensor,
        forward_batch: ForwardBatch,
        residual: None,
    ) -> Tuple[torch.Tensor, None]:
        """(x, None): nothing is left to be added."""
        attended = self.self_attn(positions, x, forward_batch)
        x = self.post_attention_layernorm.add_to(x, attended)
        return self.post_feedforward_layernorm.add_to(x, self.mlp(x)), None


class QwenHiLSLayer(HiLSLayer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    other_norm = "input_layernorm"

    def forward(
        self,
        positions: torch.Tensor,
        x: torch.Tensor,
        forward_batch: ForwardBatch,
        residual: Optional[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """(x, residual), of which the next norm makes the sum."""
        x, residual = self.input_layernorm(x, residual)
        x = self.self_attn(positions, x, forward_batch)
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual


class HiLSModel(nn.Module):
    """Embedding, layers and last norm."""

    def __init__(
        self,
        config: HiLSConfig,
        quant_config: Optional[QuantizationConfig],
        prefix: str,
    ):
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            prefix=add_prefix("embed_tokens", prefix),
        )
        rotaries = make_rotaries(config)
        self.lmk_embed = nn.Parameter(torch.empty(config.hidden_size))
        layer_class = (
            OlmoHiLSLayer if isinstance(config, OlmoHiLSConfig) else QwenHiLSLayer
        )
        self.layers = make_layers(
            config.num_hidden_layers,
            lambda idx, prefix: layer_class(
                config, idx, rotaries, quant_config, prefix
            ),
            prefix=add_prefix("layers", prefix),
        )
        self.norm = HiddenNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Hidden states of the tokens ``[T, hidden_size]``."""
        x = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
        rows = landmark_rows.of_batch(forward_batch)
        if rows is not None:
            x = rows.insert(x, self.lmk_embed)
            positions = rows.insert(positions, rows.positions)
        residual = None
        for layer in self.layers:
            x, residual = layer(positions, x, forward_batch, residual)
        x, _ = self.norm(x, residual)
        return x if rows is None else rows.drop(x)


class HiLSForCausalLM(nn.Module):
    """A HiLS checkpoint of either family.

    Raises:
        ValueError: for a checkpoint that asks for what no HSA op computes, and without ``--attention-backend hsa``.
    """

    def __init__(
        self,
        config: HiLSConfig,
        quant_config: Optional[QuantizationConfig] = None,
        prefix: str = "",
    ):
        super().__init__()
        self.config = config
        self.model = HiLSModel(config, quant_config, add_prefix("model", prefix))
        if config.tie_word_embeddings:
            self.lm_head = self.model.embed_tokens
        else:
            self.lm_head = ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=quant_config,
                prefix=add_prefix("lm_head", prefix),
            )
        self.logits_processor = LogitsProcessor(config)

    def get_attention_sliding_window_size(self) -> Optional[int]:
        config = self.config
        return config.window_tokens - 1 if config.num_window_layers else None

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: Optional[torch.Tensor] = None,
    ) -> LogitsProcessorOutput:
        hidden_states = self.model(input_ids, positions, forward_batch, input_embeds)
        return self.logits_processor(
            input_ids, hidden_states, self.lm_head, forward_batch
        )

    def load_weights(self, weights: Iterable[Tuple[str, torch.Tensor]]) -> None:
        load_hils_weights(self, self.config, weights)


EntryClass = HiLSForCausalLM
