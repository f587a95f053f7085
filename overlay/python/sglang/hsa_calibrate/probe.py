# SPDX-License-Identifier: Apache-2.0
"""What the attention layers of a model are, seen by calling it once on a few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch

from sglang.hsa_calibrate import CalibrateError
from sglang.hsa_calibrate.simulation import attention_function, called_layer
from sglang.hsa_calibrate.sparse import dense_block
from sglang.srt.layers.attention.hsa.rotary_channels import find_rotary, layer_channels

PROBE_TOKENS = 24


@dataclass(frozen=True)
class ModelLayers:
    """The attention layers of a model.

    Attributes:
        count: layers of the model.
        full: layers with causal full attention, which can use HSA, ascending.
        names: module names of those.
        num_heads: query heads.
        num_kv_heads: KV heads.
        head_dim: dimension of a head.
    """

    count: int
    full: Tuple[int, ...]
    names: Tuple[str, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int


class _Probe:
    """Dense attention that notes what it was called with."""

    def __init__(self):
        self.calls: Dict[int, tuple] = {}
        self.keys: Optional[torch.Tensor] = None
        self.refused = ""

    def __call__(self, module, query, key, value, mask=None, **options):
        layer = called_layer(module, options, {})
        if not getattr(module, "is_causal", True):
            self.refused = "its attention is not causal"
        elif options.get("s_aux") is not None:
            self.refused = "its attention has learned sinks"
        elif query.shape[-1] != value.shape[-1]:
            self.refused = "keys and values of its heads differ in size, as in MLA"
        self.calls[layer.index] = (
            module,
            layer.sliding_window,
            (query.shape[1], key.shape[1], key.shape[3]),
        )
        if self.keys is None:
            self.keys = key[0].float()
        q = query[0].transpose(0, 1).unflatten(1, (key.shape[1], -1))
        out = dense_block(q, key[0].float(), value[0].float(), 0, layer)
        return out.flatten(1, 2).unsqueeze(0).to(query.dtype), None


@torch.inference_mode()
def probe(model: torch.nn.Module) -> ModelLayers:
    """The attention layers of a transformers model.

    The model gets one token several times: its first layer then has the same key at every position but for rotary
    embedding, which shows how it pairs channels. Where it turns neighbours, this is noted on the rotary module.

    Raises:
        CalibrateError: for a model whose attention cannot be replaced or is not plain causal attention.
    """
    name = type(model).__name__
    seen = _Probe()
    try:
        with attention_function(model, seen):
            tokens = torch.full((1, PROBE_TOKENS), 5, device=model.device)
            model(tokens, use_cache=False)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise CalibrateError(
            f"{name} does not run on another attention function: {_first_line(error)}"
        ) from None
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if "chunked_attention" in kinds:
        seen.refused = "its attention is cut into chunks"
    if not seen.calls:
        seen.refused = "it does not call transformers' attention functions"
    if seen.refused:
        raise CalibrateError(f"{name} is not supported: {seen.refused}.")
    full = sorted(layer for layer, call in seen.calls.items() if call[1] is None)
    shapes = {seen.calls[layer][2] for layer in full}
    if not full:
        raise CalibrateError(
            f"{name} has sliding-window layers only, which HSA leaves dense."
        )
    if len(shapes) > 1:
        raise CalibrateError(
            f"{name} is not supported: its layers differ in heads or head size."
        )
    paths = {id(module): path for path, module in model.named_modules()}
    names = tuple(paths[id(seen.calls[layer][0])] for layer in full)
    _note_pairing(model, names[0], seen.keys)
    config = model.config.get_text_config()
    count = max(getattr(config, "num_hidden_layers", 0), max(seen.calls) + 1)
    return ModelLayers(count, tuple(full), names, *shapes.pop())


def kept_channels(
    model: torch.nn.Module, layers: ModelLayers
) -> Dict[int, torch.Tensor]:
    """Channels that slow_keys keeps, by layer ``[R]`` int32 on the model's device.

    Raises:
        CalibrateError: for a model without a rotary embedding that can be read.
    """
    try:
        rows = layer_channels(model, layers.names, layers.head_dim)
    except ValueError as error:
        text = str(error).replace("--hsa-chunk-repr", "--kinds")
        raise CalibrateError(text) from None
    return dict(zip(layers.full, rows.to(model.device)))


def _note_pairing(model: torch.nn.Module, name: str, keys: torch.Tensor) -> None:
    """Set ``is_neox_style`` of the rotary embedding from keys ``[H_kv, N, D]`` of one token at N positions.

    A rotation leaves the length of a pair as it is, so the right pairing is the one whose lengths stay.
    """
    rotary = find_rotary(model, name)
    if rotary is None or hasattr(rotary, "is_neox_style"):
        return
    frequencies = getattr(rotary, "inv_freq", None)
    if frequencies is None:
        return
    turned = keys[..., : 2 * len(frequencies)].square()
    first, second = turned.chunk(2, dim=-1)
    halves = (first + second).var(dim=1).mean()
    neighbours = turned.unflatten(-1, (-1, 2)).sum(dim=-1).var(dim=1).mean()
    rotary.is_neox_style = not bool(neighbours < halves / 2)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
