# SPDX-License-Identifier: Apache-2.0
"""Weights of HiLS checkpoints: each tensor has its place and each place its tensor, or loading ends with its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterable, Iterator, Set, Tuple, Union

import torch

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.model_loader.weight_utils import default_weight_loader

if TYPE_CHECKING:
    from sglang.srt.configs.hils import HiLSConfig

# (name of a part in the checkpoint, name of the parameter, place in it)
PARTS: Tuple[Tuple[str, str, Union[str, int]], ...] = (
    (".q_proj.", ".qkv_proj.", "q"),
    (".k_proj.", ".qkv_proj.", "k"),
    (".v_proj.", ".qkv_proj.", "v"),
    (".gate_proj.", ".gate_up_proj.", 0),
    (".up_proj.", ".gate_up_proj.", 1),
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LANDMARK = "model.lmk_embed"


def load_hils_weights(
    model: torch.nn.Module,
    config: HiLSConfig,
    weights: Iterable[Tuple[str, torch.Tensor]],
) -> None:
    """Load the tensors of a checkpoint.

    The first load of a server brings all of them, unless it began with dummy weights; an update may bring some.

    Raises:
        ValueError: for tensors without a place, for those that are missing, and for an embedding with too few rows.
    """
    params = dict(model.named_parameters())
    expected, found, surplus = _expected(params), set(), []
    for name, tensor in _split_vocabulary(weights, config):
        if name not in expected:
            surplus.append(name)
            continue
        found.add(name)
        owner, *part = _place(name)
        param = params[owner]
        loader = getattr(param, "weight_loader", default_weight_loader)
        loader(param, tensor, *part)
    dummy = compat.serving_arguments().load_format == "dummy"
    partial = dummy or getattr(model, "has_all_weights", False)
    problems = {"surplus": surplus, "missing": sorted(expected - found) * (not partial)}
    lines = [
        f"the checkpoint has {what} tensors: {', '.join(names)}; its config.json and its weights do not go together."
        for what, names in problems.items()
        if names
    ]
    if lines:
        raise ValueError("\n".join(lines))
    model.has_all_weights = True


def _expected(params: Dict[str, torch.nn.Parameter]) -> Set[str]:
    """Names that the checkpoint has for the parameters."""
    names = set()
    for name in params:
        parts = [name.replace(whole, part) for part, whole, _ in PARTS if whole in name]
        names.update(parts or [name])
    return names


def _place(name: str) -> tuple:
    """(name of the parameter, place in it if it has parts) of a tensor."""
    for part, whole, place in PARTS:
        if part in name:
            return name.replace(part, whole), place
    return (name,)


def _split_vocabulary(
    weights: Iterable[Tuple[str, torch.Tensor]], config: HiLSConfig
) -> Iterator[Tuple[str, torch.Tensor]]:
    """The tensors, of embedding and head the rows of real ids; the embedding's next row is the landmark's, if it is there."""
    rows = config.vocab_size
    within = not config.enable_external_lmk_embed
    for name, tensor in weights:
        if name == HEAD and config.tie_word_embeddings:
            continue  # the embedding once more
        if name not in (EMBEDDING, HEAD):
            yield name, tensor
            continue
        needed = rows + (within and name == EMBEDDING)
        if len(tensor) < needed:
            raise ValueError(
                f"the checkpoint's {name} has {len(tensor)} rows and needs {needed}: vocab_size, and one of the landmark "
                "unless enable_external_lmk_embed says that it is apart."
            )
        yield name, tensor[:rows]
        if within and name == EMBEDDING:
            yield LANDMARK, tensor[rows]
