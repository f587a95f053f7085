# SPDX-License-Identifier: Apache-2.0
"""A forward pass of transformers in which every query row of the chosen layers attends as HSA does.

Text goes through the model in chunks on a growing KV cache, so memory is bounded by the cache and one block of logits.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Callable, Dict, FrozenSet, Iterator, Optional, Sequence, Tuple

import torch

from sglang.hsa_calibrate.sparse import BlockResult, Layer, dense_block, sparse_block
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.page_repr import KINDS

NAME = "hsa_calibrate"
CHUNK = 512  # tokens per forward pass
BLOCK_ELEMENTS = 1 << 23  # logits held at once
FEWEST_ROWS = 16
ALL_PAGES = 1 << 30  # a budget that leaves nothing out

Observer = Callable[[int, BlockResult], None]


class Simulation:
    """HSA as an attention function of transformers, for one sequence at a time.

    Args:
        config: HSA's options; its ``layers`` is not read.
        layers: layers that use HSA; all others are dense.
        channels: channels that slow_keys keeps, by layer ``[R]`` int32; needed by a kind that is slow.
        observe: called with (layer, result) for every block of rows of a layer that uses HSA.
        observe_dense: also for the other layers without a sliding window, which then select all pages.
        exact: select by exact attention mass.
    """

    def __init__(
        self,
        config: HSAConfig,
        layers: FrozenSet[int],
        channels: Optional[Dict[int, torch.Tensor]] = None,
        observe: Observer = lambda layer, result: None,
        observe_dense: bool = False,
        exact: bool = False,
    ):
        self.config, self.exact = config, exact
        self.all_pages = dataclasses.replace(config, topk=ALL_PAGES)
        self.layers = layers
        self.observe_dense = observe_dense
        self.channels = channels or {}
        self.observe = observe
        self._reprs: Dict[int, torch.Tensor] = {}

    def __call__(
        self, module, query, key, value, mask=None, **options
    ) -> Tuple[torch.Tensor, None]:
        """The signature of transformers: ``[1, H, T, D]`` queries at the end of ``[1, H_kv, N, D]`` keys."""
        layer = called_layer(module, options, self.channels)
        num_rows, num_keys = query.shape[2], key.shape[2]
        first = num_keys - num_rows
        q = query[0].transpose(0, 1).unflatten(1, (key.shape[1], -1))
        chosen = layer.index in self.layers
        config = self.config if chosen else self.all_pages
        sparse = layer.sliding_window is None and (chosen or self.observe_dense)
        # Whole pages; what is added is not attended.
        extra = -num_keys % self.config.page_size if sparse else 0
        keys, values = (
            torch.nn.functional.pad(x[0].float(), (0, 0, 0, extra))
            for x in (key, value)
        )
        if sparse:
            reprs = self._represent(layer, key[0])
        outputs = []
        step = max(FEWEST_ROWS, BLOCK_ELEMENTS // (query.shape[1] * num_keys))
        for lo in range(0, num_rows, step):
            rows, at = q[lo : lo + step], first + lo
            if sparse:
                result = sparse_block(
                    rows, keys, values, reprs, at, layer, config, self.exact
                )
                self.observe(layer.index, result)
                outputs.append(result.output)
            else:
                outputs.append(dense_block(rows, keys, values, at, layer))
        output = torch.cat(outputs).flatten(1, 2)  # [T, H, D_v]
        return output.unsqueeze(0).to(query.dtype), None

    def _represent(self, layer: Layer, key: torch.Tensor) -> torch.Tensor:
        """Representations of all complete pages of keys ``[H_kv, N, D]``; those of earlier chunks are kept."""
        size = self.config.page_size
        known = self._reprs.get(layer.index)
        done = 0 if known is None else len(known)
        pages = key[:, done * size : key.shape[1] // size * size]
        pages = pages.transpose(0, 1).unflatten(0, (-1, size)).float()
        if len(pages):
            kind = KINDS[self.config.chunk_repr]
            new = kind.represent(pages, layer.channels)
            known = new if known is None else torch.cat([known, new])
            self._reprs[layer.index] = known
        return known if known is not None else pages

    @contextlib.contextmanager
    def installed(self, model: torch.nn.Module) -> Iterator[None]:
        """Within it ``model`` attends as HSA does, from the start of a sequence on."""
        self._reprs.clear()
        with attention_function(model, self):
            yield
        self._reprs.clear()


def called_layer(module, options: dict, channels: Dict[int, torch.Tensor]) -> Layer:
    """The layer that transformers calls an attention function for; a scale that is not given is the usual one."""
    index = module.layer_idx
    scale = options.get("scaling")
    return Layer(
        index=index,
        scale=module.head_dim**-0.5 if scale is None else scale,
        softcap=options.get("softcap"),
        sliding_window=options.get("sliding_window"),
        channels=channels.get(index),
    )


@contextlib.contextmanager
def attention_function(model: torch.nn.Module, function: Callable) -> Iterator[None]:
    """Within it ``model`` calls ``function`` for attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(NAME, function)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def chunked_logits(
    model: torch.nn.Module, ids: Sequence[int]
) -> Iterator[Tuple[int, torch.Tensor]]:
    """Logits of a sequence, chunk by chunk: (position of the first row, ``[rows, vocabulary]`` float32)."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([list(ids)], device=model.device)
    for lo in range(0, len(ids), CHUNK):
        out = model(tokens[:, lo : lo + CHUNK], past_key_values=cache, use_cache=True)
        yield lo, out.logits[0].float()
