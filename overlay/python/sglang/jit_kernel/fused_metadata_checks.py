# SPDX-License-Identifier: Apache-2.0
"""What fused_metadata_precompute_and_broadcast refuses, and how it packs its destinations for the kernel.

Everything is decided from dtypes, devices, shapes, strides and addresses: no value is read from a device. The checks run
before every launch, so the good case builds no strings.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Dict, NamedTuple, Optional, Sequence

import torch

NAME = "fused_metadata_precompute_and_broadcast"
# Forward modes, numbered as in fused_metadata_copy
DECODE, TARGET_VERIFY, DRAFT_EXTEND = 0, 1, 2


class PerField(NamedTuple):
    """One value per destination, None if it is not written. The order is that of the kernel's struct Destination."""

    cache_seqlens: Any
    cu_seqlens_k: Any
    page_indices: Any
    nsa_cache_seqlens: Any
    nsa_cu_seqlens_k: Any
    seqlens_expanded: Any
    real_page_table: Any


# The op's arguments for them, each a list with one tensor per step.
FIELDS = tuple(f"{field}_list" for field in PerField._fields)
_values_of = itemgetter(*FIELDS)
_PAGE_INDICES = PerField._fields.index("page_indices")
_REAL_PAGE_TABLE = PerField._fields.index("real_page_table")
WORDS = 10  # of 8 bytes: the fields' addresses, the row strides of the two tables, the offset

INT32_MAX = 2**31 - 1


@dataclass
class Destinations:
    """Destinations that passed every check."""

    steps: Sequence[PerField]  # of Optional[torch.Tensor], per step
    offsets: Sequence[int]  # per step, added to seq_lens
    packed: bytes  # struct Destination of the kernel, per step


def destinations_of(arguments: Dict[str, Any]) -> PerField:
    """The lists among the op's arguments by name, as ``locals()`` gives them."""
    return PerField._make(_values_of(arguments))


def error(message: str) -> ValueError:
    return ValueError(f"{NAME}: {message}")


def _describe(value) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype} {list(value.shape)} with strides {list(value.stride())} on {value.device}"


def _check_integer(name: str, value, low: int, high: int = INT32_MAX) -> None:
    if type(value) is not int or not low <= value <= high:
        raise error(f"{name} must be an int from {low} to {high}, got {value!r}")


def _check_input(name: str, value, dims: int, device, batch: Optional[int]) -> None:
    if (
        not isinstance(value, torch.Tensor)
        or value.dtype not in (torch.int32, torch.int64)
        or value.device != device
        or value.dim() != dims
        or (value.shape[-1] > 1 and value.stride(-1) != 1)
        or value.data_ptr() % value.element_size() != 0
    ):
        raise error(
            f"{name} must be an aligned int32 or int64 tensor with {dims} dimension(s), the last one contiguous, "
            f"on {device or 'a device'}; got {_describe(value)}"
        )
    if batch is not None and value.shape[0] != batch:
        raise error(f"{name} has a batch of {value.shape[0]}, seq_lens one of {batch}")


def _check_inputs(
    seq_lens,
    req_pool_indices,
    req_to_token,
    max_len,
    real_page_size,
    forward_mode,
    num_draft_tokens,
    extend_seq_lens,
) -> None:
    device = getattr(seq_lens, "device", None)
    _check_input("seq_lens", seq_lens, 1, device, None)
    batch = seq_lens.shape[0]
    _check_input("req_pool_indices", req_pool_indices, 1, device, batch)
    _check_input("req_to_token", req_to_token, 2, device, None)
    _check_integer("max_len", max_len, 0, min(req_to_token.shape[1], INT32_MAX))
    _check_integer("real_page_size", real_page_size, 1)

    # Not an enum: ForwardMode numbers the modes in another way.
    if type(forward_mode) is not int or not DECODE <= forward_mode <= DRAFT_EXTEND:
        raise error(
            f"forward_mode must be {DECODE} (decode), {TARGET_VERIFY} (target_verify) or {DRAFT_EXTEND} (draft_extend), "
            f"got {forward_mode!r}"
        )
    _check_integer("num_draft_tokens", num_draft_tokens, 1)
    if forward_mode == DECODE and num_draft_tokens != 1:
        raise error(f"num_draft_tokens must be 1 in decode, got {num_draft_tokens}")
    if batch * num_draft_tokens >= INT32_MAX:
        raise error(f"{batch} requests times {num_draft_tokens} rows are too many")
    if forward_mode == DRAFT_EXTEND:
        _check_input("extend_seq_lens", extend_seq_lens, 1, device, batch)
    elif extend_seq_lens is not None:
        raise error("extend_seq_lens is for draft_extend; leave it None otherwise")


def _check_steps(lists: PerField, seq_len_offsets) -> int:
    """Number of steps, the same in every list."""
    first = next((i for i, steps in enumerate(lists) if steps is not None), None)
    count = 0 if first is None else len(lists[first])
    if count == 0:
        raise error("no destination: every list is None, or the first one is empty")
    for field, steps in enumerate(lists):
        if steps is not None and len(steps) != count:
            raise error(
                f"{FIELDS[field]} has {len(steps)} tensors and {FIELDS[first]} has {count}; each needs one per step"
            )
    if seq_len_offsets is not None:
        if len(seq_len_offsets) != count:
            raise error(
                f"seq_len_offsets has {len(seq_len_offsets)} values for {count} steps"
            )
        for offset in seq_len_offsets:
            _check_integer("seq_len_offsets", offset, -INT32_MAX)
    return count


def _destination_error(field, step, value, device, size, columns, more) -> ValueError:
    shape = (
        f"[{'>= ' if more else ''}{size}{'' if columns is None else f', >= {columns}'}]"
    )
    return error(
        f"{FIELDS[field]}[{step}] must be an aligned int32 {shape} on {device}, contiguous in the last dimension and "
        f"without overlap; got {_describe(value)}"
    )


def check(
    lists: PerField,
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
) -> Destinations:
    """Check all arguments of the op, and pack the addresses of its destinations.

    Args:
        lists: of the destinations; the rest as in the op.

    Raises:
        ValueError: one line that names the first argument that does not fit.
    """
    _check_inputs(
        seq_lens,
        req_pool_indices,
        req_to_token,
        max_len,
        real_page_size,
        forward_mode,
        num_draft_tokens,
        extend_seq_lens,
    )
    if lists.nsa_cache_seqlens is not None or lists.nsa_cu_seqlens_k is not None:
        _check_integer("nsa_index_topk", nsa_index_topk, 1)
    count = _check_steps(lists, seq_len_offsets)
    extra = num_draft_tokens if forward_mode == TARGET_VERIFY else 0
    offsets = [extra + offset for offset in seq_len_offsets or [0] * count]

    device, batch = seq_lens.device, seq_lens.shape[0]
    rows, more = batch * num_draft_tokens, forward_mode == DRAFT_EXTEND
    # First dimension, least second one, whether the first may be larger
    shapes = PerField(
        cache_seqlens=(batch, None, False),
        cu_seqlens_k=(batch + 1, None, False),
        page_indices=(rows, max_len, more),
        nsa_cache_seqlens=(rows, None, more),
        nsa_cu_seqlens_k=(rows + 1, None, more),
        seqlens_expanded=(rows, None, more),
        real_page_table=(rows, -(-max_len // real_page_size), more),
    )
    words = [0] * (WORDS * count)
    for field, steps in enumerate(lists):
        size, columns, more = shapes[field]
        for step, value in enumerate(steps or ()):
            fits = (
                isinstance(value, torch.Tensor)
                and value.dtype is torch.int32
                and value.device == device
            )
            if fits:
                shape, strides, address = value.shape, value.stride(), value.data_ptr()
                fits = (
                    address % 4 == 0
                    and len(shape) == (1 if columns is None else 2)
                    and (shape[0] == size or (more and shape[0] > size))
                    and (strides[-1] == 1 or shape[-1] <= 1)
                )
            if fits and columns is not None:
                fits = shape[1] >= columns
                fits = fits and (shape[0] <= 1 or strides[0] >= shape[1])
            if not fits:
                raise _destination_error(
                    field, step, value, device, size, columns, more
                )
            words[WORDS * step + field] = address
            if field == _PAGE_INDICES:
                words[WORDS * step + 7] = strides[0]
            elif field == _REAL_PAGE_TABLE:
                words[WORDS * step + 8] = strides[0]
    words[WORDS - 1 :: WORDS] = offsets
    none = [None] * count
    return Destinations(
        steps=list(
            map(PerField, *(none if steps is None else steps for steps in lists))
        ),
        offsets=offsets,
        packed=struct.pack(f"={len(words)}q", *words),
    )
