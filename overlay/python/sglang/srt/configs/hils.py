# SPDX-License-Identifier: Apache-2.0
"""Configuration of HiLS checkpoints, which were trained for HSA: ``olmo_hils`` and ``qwen_hils``.

Importing this module registers both with transformers. Source of the fields: HiLS-Attention, arXiv 2607.02980, and its
checkpoints.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from transformers import AutoConfig, PretrainedConfig

CHUNK_SIZES = (16, 32, 64, 128)
# Fields of which one value is served: (the value, what another one asks for).
SERVED: Dict[str, Tuple[object, str]] = {
    "hidden_act": ("silu", "another activation"),
    "insert_landmarks": (True, "pages whose last token serves as their landmark"),
    "enable_prior_query": (True, "landmarks whose own key represents the page"),
    "enable_chunk_pooling": (False, "means of keys as representations"),
    "shared_q_c": (False, "one query for the landmarks of all pages"),
    "use_naive_bsa": (False, "a baseline without representations"),
    "auto_insert_lmk": (False, "landmarks in the prompt"),
}


class HiLSConfig(PretrainedConfig):
    """Fields that change what a HiLS checkpoint computes, under the names and defaults that it gives them.

    A page is ``chunk_size - 1`` tokens and a landmark. Each query attends ``hils_sliding_window`` places, extended down to
    a page, and the ``hils_topk`` pages whose landmarks score best; layers without HSA attend ``sliding_window`` places.
    """

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Optional[dict] = None
    rope_parameters: Optional[dict] = None
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Optional[int] = 4096
    hils_sliding_window: Optional[int] = None
    chunk_size: int = 64
    hils_topk: int = 16
    full_attn_interleave: int = 4
    num_swa_layers: int = 0
    replace_full_attention_with_hils: bool = True
    enable_softmax1: bool = True
    enable_lmk_q_proj: bool = False
    lmk_q_lora_dim: int = -1
    layerwise_lmkq_norm: bool = False
    layerwise_qk_norm: bool = False
    apply_hils_rope: bool = False
    enable_prior_query: bool = True
    enable_chunk_pooling: bool = False
    shared_q_c: bool = False
    mask_lmk_token: bool = False
    insert_landmarks: bool = True
    enable_external_lmk_embed: bool = False
    use_hope: bool = False
    enable_inrange_rope: bool = False
    rope_context_length: Optional[int] = None
    rope_period_multiplier: float = 1.0
    hope_partial_ratio: float = 0.5
    hope_context_length: Optional[int] = None
    hope_theta: Optional[float] = None
    use_olmo3_rotary_embedding: bool = False
    use_naive_bsa: bool = False
    auto_insert_lmk: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @head_dim.setter
    def head_dim(self, value: int) -> None:
        """The reference does not read it."""

    # Rotary embedding has two fields, of which transformers 5 writes the second, too.

    @property
    def rotary_theta(self) -> float:
        return (self.rope_parameters or {}).get("rope_theta", self.rope_theta)

    @property
    def rotary_scaling(self) -> Optional[str]:
        """Kind of scaling; None for none."""
        fields = (self.rope_scaling or {}, self.rope_parameters or {})
        kinds = (field.get("rope_type", field.get("type")) for field in fields)
        return next((kind for kind in kinds if kind not in (None, "default")), None)

    @property
    def tokens_per_page(self) -> int:
        return self.chunk_size - 1

    @property
    def hsa_layer_ids(self) -> Tuple[int, ...]:
        """Layers that use HSA, ascending; the others attend a sliding window."""
        every, first = self.full_attn_interleave, self.num_swa_layers
        return tuple(
            i
            for i in range(first, self.num_hidden_layers)
            if every > 0 and (i - first) % every == every - 1
        )

    @property
    def num_window_layers(self) -> int:
        return self.num_hidden_layers - len(self.hsa_layer_ids)

    @property
    def is_hybrid_swa(self) -> bool:
        """Whether SGLang may give the layers without HSA a pool of their own; it asks by this name since 0.5.16."""
        return bool(self.num_window_layers)

    @property
    def hybrid_layer_pattern(self) -> List[int]:
        """1 for a layer without HSA, 0 for one with it."""
        return [int(i not in self.hsa_layer_ids) for i in range(self.num_hidden_layers)]

    @property
    def window(self) -> Optional[int]:
        """Places that layers without HSA attend; None for all."""
        return self.sliding_window if self.use_sliding_window else None

    @property
    def window_tokens(self) -> int:
        """Tokens among them: so many places in a row, which are whole pages, hold equally many landmarks anywhere."""
        return self.window - self.window // self.chunk_size

    @property
    def hsa_window(self) -> Optional[int]:
        """Places that layers with HSA attend beside the pages that they choose."""
        given = self.hils_sliding_window
        return self.window if given is None else given

    def unsupported(self) -> List[str]:
        """What the checkpoint asks for and no HSA op computes, in words."""
        found = [
            f"{what} ({name} {getattr(self, name)!r})"
            for name, (value, what) in SERVED.items()
            if getattr(self, name) != value
        ]
        if self.rotary_scaling:
            found.append(f"scaled rotary embedding (rope_type {self.rotary_scaling})")
        if self.chunk_size not in CHUNK_SIZES:
            found.append(f"pages of {self.chunk_size} places (chunk_size)")
        if not self.hsa_layer_ids:
            found.append(
                "no layer that uses HSA (full_attn_interleave, num_swa_layers)"
            )
        if not self.hsa_window or self.hsa_window < 0:
            found.append("HSA without a window (hils_sliding_window)")
        if self.num_window_layers:
            found += self._unsupported_of_window_layers()
        return found

    def _unsupported_of_window_layers(self) -> List[str]:
        if not self.window:
            return ["full attention beside HSA (use_sliding_window False)"]
        found = []
        if self.window % self.chunk_size:
            found.append(
                f"a sliding window of no whole pages (sliding_window {self.window})"
            )
        if not self.mask_lmk_token:
            found.append("landmarks that sliding windows attend (mask_lmk_token False)")
        if self.attention_bias:
            found.append("biases beside a sliding window (attention_bias True)")
        return found


class OlmoHiLSConfig(HiLSConfig):
    """HiLS in OLMo 3: norms after attention and MLP, and in attention over all heads."""

    model_type = "olmo_hils"

    def unsupported(self) -> List[str]:
        found = super().unsupported()
        if not self.replace_full_attention_with_hils:
            found.append("full attention (replace_full_attention_with_hils False)")
        return found


class QwenHiLSConfig(HiLSConfig):
    """HiLS in Qwen 3: norms before attention and MLP, and in attention per head."""

    model_type = "qwen_hils"


MODEL_TYPES = (OlmoHiLSConfig.model_type, QwenHiLSConfig.model_type)


def is_hils(hf_config: Optional[PretrainedConfig]) -> bool:
    """Whether a configuration is that of a checkpoint that was trained for HSA."""
    return getattr(hf_config, "model_type", None) in MODEL_TYPES


for _config in (OlmoHiLSConfig, QwenHiLSConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
