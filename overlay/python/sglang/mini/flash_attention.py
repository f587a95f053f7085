# SPDX-License-Identifier: Apache-2.0
"""Attention with the FlashAttention of SGLang's kernels, which reads the pages in place."""

from __future__ import annotations

import importlib
import logging
from typing import Optional, Sequence

import torch

from sglang.mini.attention import AttentionBackend
from sglang.mini.kv_cache import CacheState, LayerSpec
from sglang.mini.torch_attention import torch_attention

logger = logging.getLogger(__name__)


class SglKernelAttentionBackend(AttentionBackend):
    """``flash_attn_with_kvcache`` of sgl_kernel. Where it cannot run, one log line says why, and torch's SDPA does.

    Args:
        specs: layers of the model.
        device, dtype: of queries, keys and values.
        page_size: tokens per page; None is 512.
    """

    requested = "sgl_kernel"

    def __init__(
        self,
        *,
        specs: Sequence[LayerSpec],
        device: torch.device,
        dtype: torch.dtype,
        page_size: Optional[int] = None,
    ):
        super().__init__(page_size)
        self.reason = flash_obstacle(specs, torch.device(device), dtype)
        if self.available():
            self.kernel = load_flash_attn().flash_attn_with_kvcache
        else:
            logger.warning(
                f"attention backend sgl_kernel is not available: {self.reason}; using torch"
            )

    def attend(
        self, q: torch.Tensor, state: CacheState, positions: torch.Tensor
    ) -> torch.Tensor:
        if not self.available():
            return torch_attention(q, state, positions)
        window = state.spec.window
        return self.kernel(
            q=q.contiguous(),
            k_cache=state.k_cache,
            v_cache=state.v_cache,
            cache_seqlens=state.cache_seqlens,
            page_table=state.page_table,
            cu_seqlens_q=state.cu_seqlens_q,
            max_seqlen_q=max(state.counts),
            softmax_scale=state.spec.scaling,
            causal=True,  # a request's last keys are its queries' own
            # A window of w tokens is the query's own and w - 1 before it.
            window_size=(window - 1, 0) if window else (-1, -1),
            softcap=state.spec.softcap,
        )


def load_flash_attn():
    return importlib.import_module("sgl_kernel.flash_attn")


def flash_obstacle(
    specs: Sequence[LayerSpec], device: torch.device, dtype: torch.dtype
) -> Optional[str]:
    """Why ``sgl_kernel`` cannot run; None if it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device and this engine runs on {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 or bfloat16 and the model is {dtype}"
    widest = max(spec.head_dim for spec in specs)
    if widest > 256 or any(spec.head_dim % 8 for spec in specs):
        return f"head_dim must be a multiple of 8 up to 256, the model has {widest}"
    try:
        module = load_flash_attn()
    except Exception as error:  # a missing wheel, library or symbol
        text = str(error).strip().splitlines() or [type(error).__name__]
        return f"sgl_kernel.flash_attn cannot be imported ({text[0]})"
    if not module.is_fa3_supported(device):
        major, minor = torch.cuda.get_device_capability(device)
        return f"its kernels have no code for compute capability {major}.{minor}"
    return None
