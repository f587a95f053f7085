# SPDX-License-Identifier: Apache-2.0
"""Which attention backend runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Optional, Sequence

import torch

from sglang.mini.api import MiniError
from sglang.mini.attention import AttentionBackend
from sglang.mini.flash_attention import SglKernelAttentionBackend
from sglang.mini.kv_cache import LayerSpec
from sglang.mini.torch_attention import TorchAttentionBackend

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig

BACKENDS = ("torch", "sgl_kernel", "hsa")


def make_backend(
    name: Optional[str] = None,
    *,
    specs: Sequence[LayerSpec],
    device: torch.device,
    dtype: torch.dtype,
    page_size: Optional[int] = None,
    hsa: Optional[HSAConfig] = None,
) -> AttentionBackend:
    """The attention backend of a model.

    Args:
        name: ``torch``, ``sgl_kernel`` or ``hsa``. None takes ATTN_BACKEND, or else ``torch``.
        specs: layers of the model.
        device, dtype: of queries, keys and values.
        page_size: tokens per page; None is 512, and that of HSA's options with ``hsa``.
        hsa: options of ``hsa``; their page size gives way to ``page_size``.

    Raises:
        MiniError: for an unknown name, or options that the backend does not have.
    """
    name = resolve_name(name)
    if name == "hsa":
        from sglang.mini.hsa_attention import HSAAttentionBackend

        return HSAAttentionBackend(specs, hsa, page_size, torch.device(device))
    if hsa is not None:
        raise MiniError(f"HSA options were given for backend {name}: use backend hsa.")
    if name == "sgl_kernel":
        return SglKernelAttentionBackend(
            specs=specs, device=device, dtype=dtype, page_size=page_size
        )
    return TorchAttentionBackend(page_size)


def resolve_name(name: Optional[str]) -> str:
    """The backend that was asked for: the argument, else ATTN_BACKEND, else torch."""
    source = "backend" if name else "ATTN_BACKEND"
    name = name or os.environ.get("ATTN_BACKEND") or "torch"
    if name not in BACKENDS:
        raise MiniError(f"{source} {name!r} is not known: use {', '.join(BACKENDS)}.")
    return name
