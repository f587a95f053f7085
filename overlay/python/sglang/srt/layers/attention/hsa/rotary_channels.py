# SPDX-License-Identifier: Apache-2.0
"""How fast rotary embedding turns the channels of a head: read from the model, for the representation slow_keys."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence

import torch

from sglang.srt.layers.attention.hsa.page_repr import num_channels, slow_channels

# Buffers of [positions, rotary_dim]: the cosines of all pairs, then the sines.
CACHES = ("cos_sin_cache", "long_cos_sin_cache")
# Buffers of [rotary_dim / 2]; the second is of models that also have layers with sliding windows.
FREQUENCIES = ("inv_freq", "full_attention_inv_freq")


def channel_frequencies(rotary: torch.nn.Module, head_dim: int) -> torch.Tensor:
    """Angle per position by which each channel of a head is turned ``[D]`` float32, 0 where it is not.

    Args:
        rotary: a rotary embedding of SGLang (a table of cosines and sines) or of transformers (``inv_freq``).
        head_dim: D.

    Raises:
        ValueError: for a module that is neither, or turns more channels than a head has.
    """
    pairs = _pair_frequencies(rotary)
    if pairs is None or 2 * len(pairs) > head_dim:
        raise ValueError(
            f"--hsa-chunk-repr slow_keys cannot read the frequencies of {type(rotary).__name__}; "
            "use --hsa-chunk-repr mean_std."
        )
    if getattr(rotary, "is_neox_style", True):  # pair i is channels i and i + R / 2
        turned = torch.cat([pairs, pairs])
    else:  # channels 2 i and 2 i + 1
        turned = pairs.repeat_interleave(2)
    return torch.nn.functional.pad(turned, (0, head_dim - len(turned)))


def _pair_frequencies(rotary: torch.nn.Module) -> Optional[torch.Tensor]:
    table = _table(rotary)
    if table is None:
        return None
    if table.dim() == 1:
        return table.float().cpu().abs()
    cos, sin = table[1].float().cpu().chunk(2)
    return torch.atan2(sin, cos).abs()


def _table(rotary: torch.nn.Module) -> Optional[torch.Tensor]:
    """The tensor of a rotary embedding that frequencies are read from, one of CACHES or FREQUENCIES."""
    for name in CACHES:
        cache = getattr(rotary, name, None)
        if isinstance(cache, torch.Tensor) and cache.dim() == 2 and len(cache) > 1:
            return cache
    for name in FREQUENCIES:
        frequencies = getattr(rotary, name, None)
        if isinstance(frequencies, torch.Tensor) and frequencies.dim() == 1:
            return frequencies
    return None


def find_rotary(model: torch.nn.Module, name: str) -> Optional[torch.nn.Module]:
    """The rotary embedding of the attention called ``name`` in ``model``: the nearest above it, or None.

    A model keeps it beside its attention, or once for all layers. Of several in one place the one called ``rotary_emb``
    is meant: the others are for layers with sliding windows.
    """
    modules: Dict[str, torch.nn.Module] = dict(model.named_modules())
    path = name.split(".")
    for depth in range(len(path) - 1, -1, -1):
        found = {
            child_name: child
            for child_name, child in modules[".".join(path[:depth])].named_children()
            if _table(child) is not None
        }
        if found:
            only = next(iter(found.values())) if len(found) == 1 else None
            return found.get("rotary_emb", only)
    return None


def layer_channels(
    model: torch.nn.Module, names: Sequence[str], head_dim: int
) -> torch.Tensor:
    """Channels that slow_keys keeps of each attention called one of ``names`` ``[L, R]`` int32.

    Raises:
        ValueError: for an attention without a rotary embedding that can be read, or whose heads are too small.
    """
    found = check_rotary(model, names, head_dim)
    rows = [slow_channels(channel_frequencies(rotary, head_dim)) for rotary in found]
    return torch.stack(rows)


def check_rotary(
    model: torch.nn.Module, names: Sequence[str], head_dim: int
) -> List[torch.nn.Module]:
    """The rotary embedding of each attention called one of ``names``; reads no numbers, so weights may be missing.

    Raises:
        ValueError: for an attention without one, or whose heads are too small.
    """
    if head_dim < num_channels(head_dim):
        raise ValueError(
            f"--hsa-chunk-repr slow_keys needs heads of at least {num_channels(head_dim)} channels, not {head_dim}; "
            "use --hsa-chunk-repr mean_std."
        )
    found = []
    for name in names:
        rotary = find_rotary(model, name)
        if rotary is None:
            raise ValueError(
                f"--hsa-chunk-repr slow_keys needs a rotary embedding, and none was found for {name}; "
                "use --hsa-chunk-repr mean_std."
            )
        found.append(rotary)
    return found
