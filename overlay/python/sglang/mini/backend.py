# SPDX-License-Identifier: Apache-2.0
"""Attention on the paged cache: which implementation runs, and what it is given."""

from __future__ import annotations

import copy
import importlib
import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

import torch

from sglang.mini.api import MiniError
from sglang.mini.kv_cache import PagedKVCache
from sglang.mini.torch_ops import TorchOps

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "sgl_kernel", "hsa")
DEFAULT_PAGE_SIZE = 512
QKV = Tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class LayerSpec:
    """What attention has to know of a layer; window and softcap are 0 for none."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scaling: float
    window: int = 0
    softcap: float = 0.0


class CacheState:
    """One forward pass over B requests with T new tokens, seen from one layer.

    Args:
        kv: the cache. backend: runs the attention. specs: of all layers.
        rows: row of each request in ``kv.req_to_token``, which has its pages.
        spans: (first new position, end) of each request.

    Attributes:
        spec: of this layer. k_cache, v_cache: its pages, see ``PagedKVCache``.
        decode: every request has exactly one new token, and tokens before it.
        rows: ``[B]`` int64. spans: as given, the same list in all layers.
        positions, slots: of the new tokens ``[T]`` int64.
        page_table: physical page of each logical page ``[B, max_pages]`` int32; undefined past a request's end.
        cache_seqlens: keys of each request, the new ones included ``[B]`` int32.
        cu_seqlens_q: prefix sums of the new tokens ``[B + 1]`` int32.
        completed_pages: physical pages that this pass fills to the end ``[C]`` int64.
    """

    def __init__(
        self,
        kv: PagedKVCache,
        backend: SglKernelAttentionBackend,
        specs: Sequence[LayerSpec],
        rows: List[int],
        spans: List[Tuple[int, int]],
    ):
        self.kv, self.backend, self.specs, self.spans = kv, backend, specs, spans
        self.decode = all(0 < first == end - 1 for first, end in spans)
        device, size = kv.req_to_token.device, kv.page_size
        host_rows = torch.tensor(rows)
        ends = torch.tensor([end for _, end in spans], dtype=torch.int32)
        counts = torch.tensor([0] + [end - first for first, end in spans])
        self.rows, self.cache_seqlens = host_rows.to(device), ends.to(device)
        self.cu_seqlens_q = counts.cumsum(0).int().to(device)
        self.positions = torch.cat([torch.arange(*span) for span in spans]).to(device)
        row = host_rows.repeat_interleave(counts[1:]).to(device)  # [T]
        self.slots = kv.req_to_token[row, self.positions].long()
        self.page_table = kv.page_table(self.rows, int(ends.max()))
        full = [(first // size, end // size) for first, end in spans]
        pages = [self.page_table[b, slice(*pair)] for b, pair in enumerate(full)]
        self.completed_pages = torch.cat(pages).long()

    def at(self, layer: int) -> CacheState:
        """The pass seen from a layer."""
        state = copy.copy(self)
        state.spec = self.specs[layer]
        state.k_cache, state.v_cache = self.kv.k_cache[layer], self.kv.v_cache[layer]
        return state

    def attend(self, layer: int, q, k, v, **_) -> torch.Tensor:
        """Attention of one layer: q ``[T, H_q, D]``, k and v ``[T, H_kv, D]`` -> ``[T, H_q, D]``."""
        if self.decode:
            return self.backend.decode((q, k, v), self.at(layer))
        return self.backend.prefill((q, k, v), self.at(layer), self.positions)


class SglKernelAttentionBackend:
    """Attention of new tokens over the paged cache.

    Args:
        name: ``torch`` (SDPA), ``sgl_kernel`` (FlashAttention of SGLang's kernels) or ``hsa``. None takes
            ATTN_BACKEND, or else ``torch``. If it cannot run here, ``torch`` does, and one log line says why.
        specs: layers of the model.
        device, dtype: of queries, keys and values.
        hsa: options of ``hsa``; its page size is the engine's.

    Attributes:
        requested, name: what was asked for and what runs. reason: why they differ, or None.

    Raises:
        MiniError: for an unknown name.
    """

    def __init__(
        self,
        name: Optional[str] = None,
        *,
        specs: Sequence[LayerSpec],
        device: torch.device,
        dtype: torch.dtype,
        hsa: Optional[HSAConfig] = None,
    ):
        device = torch.device(device)
        self.requested = self.name = resolve_name(name)
        self.reason, self.ops = None, TorchOps()
        if self.name == "sgl_kernel":
            self.reason = flash_obstacle(specs, device, dtype)
            if self.reason is None:
                self.ops = FlashOps(load_flash_attn().flash_attn_with_kvcache)
            else:
                self.name = "torch"
                logger.warning(
                    f"attention backend sgl_kernel is not available: {self.reason}; using torch"
                )
        elif self.name == "hsa":
            from sglang.mini.hsa_ops import HSAOps

            self.ops = HSAOps(specs, hsa, device)

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
        q, *kv = qkv
        cache_state.kv.write(cache_state.spec.layer, cache_state.slots, *kv)
        return self.ops.prefill(q, cache_state, positions)

    def decode(self, last_token: QKV, cache_state: CacheState) -> torch.Tensor:
        """As ``prefill``, with one new token per request: ``[B, H_q, D]``."""
        q, *kv = last_token
        cache_state.kv.write(cache_state.spec.layer, cache_state.slots, *kv)
        return self.ops.decode(q, cache_state)


class FlashOps:
    """SGLang's FlashAttention 3, which reads the pages in place."""

    def __init__(self, flash_attn_with_kvcache):
        self.flash_attn = flash_attn_with_kvcache

    def prefill(self, q, state: CacheState, positions=None) -> torch.Tensor:
        spec = state.spec
        return self.flash_attn(
            q=q.contiguous(),
            k_cache=state.k_cache,
            v_cache=state.v_cache,
            cache_seqlens=state.cache_seqlens,
            page_table=state.page_table,
            cu_seqlens_q=state.cu_seqlens_q,
            max_seqlen_q=max(end - first for first, end in state.spans),
            softmax_scale=spec.scaling,
            causal=True,
            # A window of w tokens is the query's own and w - 1 before it.
            window_size=(spec.window - 1, 0) if spec.window else (-1, -1),
            softcap=spec.softcap,
        )

    decode = prefill


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


def resolve_page_size(
    name: str, page_size: Optional[int], hsa: Optional[HSAConfig]
) -> Tuple[int, Optional[HSAConfig]]:
    """Page size of the engine, and HSA's options with it: HSA selects by page and so has sizes of its own."""
    if name != "hsa":
        if hsa is not None:
            raise MiniError(
                f"HSA options were given for backend {name}: use backend hsa."
            )
        return DEFAULT_PAGE_SIZE if page_size is None else page_size, None
    from sglang.srt.layers.attention.hsa.config import HSAConfig

    hsa = hsa or HSAConfig()
    if page_size is not None:
        try:
            hsa = replace(hsa, page_size=page_size)
        except ValueError as error:
            raise MiniError(str(error)) from None
    return hsa.page_size, hsa
