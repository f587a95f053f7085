# SPDX-License-Identifier: Apache-2.0
"""Attention metadata of all draft steps of speculative decoding, in one kernel launch.

A multi-step draft has one attention backend per step, and before each round every one of them needs the same few tensors:
lengths, prefix sums, slots, pages. ``fused_metadata_precompute_and_broadcast_cuda`` computes them from the batch and
writes them into all backends' buffers at once: with one kernel on a CUDA device, with torch on a CPU. The torch code is
``fused_metadata_precompute_and_broadcast_reference``, which runs on any device and defines what the kernel does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Sequence

import torch

from sglang.jit_kernel.fused_metadata_checks import (
    DECODE,
    DRAFT_EXTEND,
    NAME,
    TARGET_VERIFY,
    Destinations,
    check,
    destinations_of,
    error,
)
from sglang.jit_kernel.fused_metadata_reference import (
    fused_metadata_precompute_and_broadcast_reference,
    run_reference,
)
from sglang.srt.layers.attention.hsa.compat import jit_tools

if TYPE_CHECKING:
    from tvm_ffi.module import Module

__all__ = [
    "DECODE",
    "TARGET_VERIFY",
    "DRAFT_EXTEND",
    "can_use_fused_metadata_precompute_and_broadcast",
    "fused_metadata_precompute_and_broadcast_cuda",
    "fused_metadata_precompute_and_broadcast_reference",
]

logger = logging.getLogger(__name__)

cache_once, load_jit = jit_tools()
_SOURCE = Path(__file__).with_name("csrc") / "elementwise" / f"{NAME}.cuh"

Tensors = Optional[Sequence[torch.Tensor]]


@cache_once
def _jit_fused_metadata_module() -> Module:
    return load_jit(
        NAME,
        cuda_files=[str(_SOURCE)],
        cuda_wrappers=[(NAME, "FusedMetadataKernel::run")],
    )


@cache_once
def can_use_fused_metadata_precompute_and_broadcast() -> bool:
    """Whether the kernel can be compiled and loaded here; if it cannot, the reason is logged, once."""
    try:
        _jit_fused_metadata_module()
        return True
    except Exception as e:
        logger.warning(f"Failed to load the JIT kernel {NAME}: {e}")
        return False


def launch(
    destinations: Destinations,
    seq_lens: torch.Tensor,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    extend_seq_lens: Optional[torch.Tensor],
    max_len: int,
    nsa_index_topk: Optional[int],
    real_page_size: int,
    num_draft_tokens: int,
    ragged: bool,
) -> None:
    """Launch the kernel on checked arguments, on the current stream."""
    _jit_fused_metadata_module().fused_metadata_precompute_and_broadcast(
        seq_lens,
        req_pool_indices,
        req_to_token,
        extend_seq_lens,
        destinations.packed,
        max_len,
        nsa_index_topk or 0,
        real_page_size,
        num_draft_tokens,
        ragged,
    )


def fused_metadata_precompute_and_broadcast_cuda(
    seq_lens: torch.Tensor,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    cache_seqlens_list: Tensors,
    cu_seqlens_k_list: Tensors,
    page_indices_list: Tensors,
    nsa_cache_seqlens_list: Tensors,
    nsa_cu_seqlens_k_list: Tensors,
    real_page_table_list: Tensors,
    max_len: int,
    nsa_index_topk: Optional[int],
    real_page_size: int,
    *,
    forward_mode: int = DECODE,
    num_draft_tokens: int = 1,
    extend_seq_lens: Optional[torch.Tensor] = None,
    seqlens_expanded_list: Tensors = None,
    seq_len_offsets: Optional[Sequence[int]] = None,
    ragged: bool = False,
) -> None:
    """Write the metadata of all draft steps. On CUDA this is one launch per 32 steps and nothing else.

    Each of the B requests has ``D = num_draft_tokens`` rows, in DRAFT_EXTEND ``extend_seq_lens[b] <= D`` of them; row j
    of a request with n rows has the length ``cache_seqlens[b] - n + 1 + j``. A list that is None is not written; the
    others have one tensor per step. Nothing waits for the device, so a CUDA graph can hold the call; ``max_len`` is then
    a bound for every replay, and ``ragged`` keeps it cheap.

    Args:
        seq_lens: tokens per sequence ``[B]``, int32 or int64.
        req_pool_indices: row of each request in ``req_to_token``, ``[B]`` int32 or int64.
        req_to_token: slot of each position ``[num_requests, context]``, int32 or int64.
        cache_seqlens_list: ``[B]`` int32 each; ``seq_lens``, in TARGET_VERIFY plus D.
        cu_seqlens_k_list: ``[B + 1]`` int32 each; 0, then the running sums of the cache lengths.
        page_indices_list: ``[rows, >= max_len]`` int32 each; slots of the row's request, in columns below ``max_len``.
        nsa_cache_seqlens_list: ``[rows]`` int32 each; the row's length, at most ``nsa_index_topk``.
        nsa_cu_seqlens_k_list: ``[rows + 1]`` int32 each; 0, then the running sums of those.
        real_page_table_list: ``[rows, >= ceil(max_len / real_page_size)]`` int32 each; pages of the row's request.
        max_len: columns of ``page_indices`` to write; at least the longest cache length.
        nsa_index_topk: tokens that NSA selects; None will do without NSA lists.
        real_page_size: slots per page.
        forward_mode: DECODE (0), TARGET_VERIFY (1) or DRAFT_EXTEND (2).
        num_draft_tokens: D; 1 in DECODE.
        extend_seq_lens: rows of each request, ``[B]`` int32 or int64, in DRAFT_EXTEND. Destinations per row then hold
            ``B * D`` rows or more, and those beyond the sum are left alone.
        seqlens_expanded_list: ``[rows]`` int32 each; the row's length.
        seq_len_offsets: one int per step, added to all lengths of that step.
        ragged: write a row's columns below its request's cache length, not all below ``max_len``.

    Raises:
        ValueError: an argument of the wrong dtype, device, shape, stride, alignment, batch or number of steps. Nothing
            was written. Values that only the device knows and that lead out of a tensor (a request index, an
            ``extend_seq_lens``) stop the kernel as they stop torch's own indexing.
    """
    destinations = check(
        destinations_of(locals()),
        seq_lens,
        req_pool_indices,
        req_to_token,
        max_len,
        nsa_index_topk,
        real_page_size,
        forward_mode,
        num_draft_tokens,
        extend_seq_lens,
        seq_len_offsets,
    )
    device = seq_lens.device.type
    if device not in ("cuda", "cpu"):
        raise error(f"no implementation for {device} tensors; use CUDA or CPU tensors")
    run = launch if device == "cuda" else run_reference
    run(
        destinations,
        seq_lens,
        req_pool_indices,
        req_to_token,
        extend_seq_lens,
        max_len,
        nsa_index_topk,
        real_page_size,
        num_draft_tokens,
        ragged,
    )
