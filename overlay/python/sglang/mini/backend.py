# SPDX-License-Identifier: Apache-2.0
"""Attention on the paged cache: which implementation runs, and what it is given."""

from __future__ import annotations

import importlib
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F

from sglang.mini.api import MiniError
from sglang.mini.kv_cache import CacheState, LayerSpec

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "sgl_kernel", "hsa")
QKV = Tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class SglKernelAttentionBackend:
    """Attention of new tokens over the paged cache.

    Args:
        name: ``torch`` (SDPA), ``sgl_kernel`` (FlashAttention of SGLang's kernels) or ``hsa``. None takes
            ATTN_BACKEND, or else ``torch``. If it cannot run here, ``torch`` does, and one log line says why.
        specs: layers of the model.
        device, dtype: of queries, keys and values.
        page_size: tokens per page; None is 512, and that of HSA's options with ``hsa``.
        hsa: options of ``hsa``; their page size gives way to ``page_size``.

    Attributes:
        requested, name: what was asked for and what runs. reason: why they differ, or None.
        ops: (queries, cache state, positions) -> output, all as in ``prefill``; keys and values are stored.

    Raises:
        MiniError: for an unknown name, or options that the implementation does not have.
    """

    def __init__(
        self,
        name: Optional[str] = None,
        *,
        specs: Sequence[LayerSpec],
        device: torch.device,
        dtype: torch.dtype,
        page_size: Optional[int] = None,
        hsa: Optional[HSAConfig] = None,
    ):
        self.requested = self.name = name = resolve_name(name)
        self.reason, self.ops = None, torch_attention
        self.page_size = 512 if page_size is None else page_size
        device = torch.device(device)
        if name == "hsa":
            from sglang.mini.hsa_ops import HSAOps

            self.ops = HSAOps(specs, hsa, page_size, device)
            self.page_size = self.ops.config.page_size
        elif hsa is not None:
            raise MiniError(
                f"HSA options were given for backend {name}: use backend hsa."
            )
        elif name == "sgl_kernel":
            self.reason = flash_obstacle(specs, device, dtype)
            if self.reason is None:
                kernel = load_flash_attn().flash_attn_with_kvcache
                self.ops = partial(flash_attention, kernel)
            else:
                self.name = "torch"
                logger.warning(
                    f"attention backend sgl_kernel is not available: {self.reason}; using torch"
                )

    def available(self) -> bool:
        """Whether the requested implementation runs on this device, dtype and model."""
        return self.reason is None

    def prefill(
        self, qkv: QKV, cache_state: CacheState, positions: torch.Tensor
    ) -> torch.Tensor:
        """Store keys and values, then attend causally over the cache.

        Args:
            qkv: rotated queries ``[T, H_q, D]``, keys and values ``[T, H_kv, D]``, request after request.
            cache_state: of this layer.
            positions: of the new tokens ``[T]`` int64.

        Returns:
            ``[T, H_q, D]`` in the dtype of the queries.
        """
        q, k, v = qkv
        cache_state.kv.write(cache_state.spec.layer, cache_state.slots, k, v)
        return self.ops(q, cache_state, positions)

    def decode(self, last_token: QKV, cache_state: CacheState) -> torch.Tensor:
        """As ``prefill``, with one new token per request: ``[B, H_q, D]``."""
        return self.prefill(last_token, cache_state, cache_state.positions)


def torch_attention(
    q: torch.Tensor, state: CacheState, positions: torch.Tensor
) -> torch.Tensor:
    """SDPA, on any device: queries ``[T, H_q, D]`` at ``positions`` ``[T]`` int64 -> ``[T, H_q, D]``."""
    ends = [end for _, end in state.spans]
    if state.decode:
        # The query heads of a KV head as so many queries: its keys need not be repeated.
        q = q.unflatten(1, (state.spec.num_kv_heads, -1)).transpose(1, 2)
        out = _attend(q, positions[:, None], state.rows, max(ends), state)
        return out.transpose(1, 2).flatten(1, 2)
    each = zip(q.split(state.counts), positions.split(state.counts), state.rows, ends)
    out = [_attend(q[None], p[None], row[None], end, state) for q, p, row, end in each]
    return torch.cat(out, dim=1)[0]


def _attend(q, positions, rows, longest: int, state: CacheState) -> torch.Tensor:
    """A batch: queries ``[B, Tq, H, D]`` at ``positions`` ``[B, Tq or 1]`` of ``rows`` ``[B]`` -> ``[B, Tq, H, D]``.

    H is H_q, or H_kv with the query heads of a KV head along Tq. No request has more than ``longest`` keys.
    """
    spec = state.spec
    count = longest
    if spec.window:
        count = min(longest, spec.window + positions.shape[1] - 1)
    # The last keys of every request. What is masked reads position 0, which is written.
    keys = positions[:, -1:] + torch.arange(1 - count, 1, device=q.device)  # [B, J]
    distance = positions[:, :, None] - keys[:, None]
    mask = (distance >= 0) & (keys >= 0)[:, None]  # [B, Tq or 1, J]
    if spec.window:
        mask &= distance < spec.window
    slots = state.kv.req_to_token[rows[:, None], keys.clamp(min=0)]
    k, v = (
        cache.flatten(0, 1)[slots].transpose(1, 2)  # [B, H_kv, J, D]
        for cache in (state.k_cache, state.v_cache)
    )
    if (group := q.shape[2] // spec.num_kv_heads) > 1:
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    q, mask = q.transpose(1, 2), mask[:, None]
    if spec.softcap:  # which SDPA lacks; in float32
        logits = q.float() @ k.float().transpose(-1, -2) * spec.scaling
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
        weights = logits.masked_fill(~mask, float("-inf")).softmax(-1)
        out = (weights @ v.float()).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=spec.scaling)
    return out.transpose(1, 2)


def flash_attention(kernel, q, state: CacheState, positions) -> torch.Tensor:
    """SGLang's FlashAttention 3, which reads the pages in place and takes the last keys for the queries' own."""
    window = state.spec.window
    return kernel(
        q=q.contiguous(),
        k_cache=state.k_cache,
        v_cache=state.v_cache,
        cache_seqlens=state.cache_seqlens,
        page_table=state.page_table,
        cu_seqlens_q=state.cu_seqlens_q,
        max_seqlen_q=max(state.counts),
        softmax_scale=state.spec.scaling,
        causal=True,
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


def resolve_name(name: Optional[str]) -> str:
    """The backend that was asked for: the argument, else ATTN_BACKEND, else torch."""
    source = "backend" if name else "ATTN_BACKEND"
    name = name or os.environ.get("ATTN_BACKEND") or "torch"
    if name not in BACKENDS:
        raise MiniError(f"{source} {name!r} is not known: use {', '.join(BACKENDS)}.")
    return name
