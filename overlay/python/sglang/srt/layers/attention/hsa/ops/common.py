# SPDX-License-Identifier: Apache-2.0
"""Pieces that several kernels share."""

from __future__ import annotations

import functools
from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.counters import INDEX

# Places of what kernels count in ``HSACounters.values``.
ROWS_DENSE: tl.constexpr = tl.constexpr(INDEX["rows_dense"])
ROWS_SPARSE: tl.constexpr = tl.constexpr(INDEX["rows_sparse"])
PAGES_CANDIDATE: tl.constexpr = tl.constexpr(INDEX["pages_candidate"])
PAGES_SELECTED: tl.constexpr = tl.constexpr(INDEX["pages_selected"])
REPRS_WRITTEN: tl.constexpr = tl.constexpr(INDEX["reprs_written"])
REPRS_HEALED: tl.constexpr = tl.constexpr(INDEX["reprs_healed"])
ROWS_LANDMARK: tl.constexpr = tl.constexpr(INDEX["rows_landmark"])
REPRS_MISSING: tl.constexpr = tl.constexpr(INDEX["reprs_missing"])

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)

HOPPER_SHARED_BYTES = 227 << 10
OTHER_SHARED_BYTES = 32 << 10
INTERPRETED = 4  # lets several programs share a row under the Triton interpreter
# Programs of a row where nothing may depend on the batch. A batch of one row and eight KV heads still fills the device.
INVARIANT_PROGRAMS = 16


def num_processors(device: torch.device | str) -> int:
    """Multiprocessors of a CUDA device; a small constant elsewhere."""
    if torch.device(device).type != "cuda":
        return INTERPRETED
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.lru_cache(maxsize=None)
def shared_bytes(device: torch.device | str) -> int:
    """Shared memory that a program may take; elsewhere than on a CUDA device Hopper's."""
    if torch.device(device).type != "cuda":
        return HOPPER_SHARED_BYTES
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def stages_that_fit(step_bytes: int, most: int, shared: int) -> int:
    """Steps of so many bytes whose loads are in flight at once, at most ``most``; the rest is for what else a program keeps."""
    return max(1, min(most, (shared - OTHER_SHARED_BYTES) // step_bytes))


def padded_width(columns: int) -> int:
    """Columns of a buffer that has room for so many: a multiple of 16, which Triton compiles one variant for."""
    return triton.cdiv(columns, 16) * 16


def programs_per_row(processors: Optional[int], rows: int, limit: int) -> int:
    """Programs per row that fill so many processors, a power of two; for None the same number whatever the rows."""
    if processors is None:
        return min(limit, INVARIANT_PROGRAMS)
    return min(limit, triton.next_power_of_2(triton.cdiv(processors, rows)))


def max_programs(processors: Optional[int], rows: int, limit: int) -> int:
    """Bound of ``rows * programs_per_row(...)`` for any number of rows up to this one."""
    if processors is None:
        return rows * programs_per_row(None, rows, limit)
    return min(limit * rows, max(rows, 4 * processors))


def dot_precision(dtype: torch.dtype) -> str:
    """Input precision of products of queries in ``dtype``: exact for float32."""
    return "ieee" if dtype == torch.float32 else "tf32"


@triton.jit
def add_count(counter, number):
    """Add to one of ``HSACounters.values``, which no kernel reads.

    Relaxed: by default an atomic is also a fence of the device, waits for the old value and empties the L1 cache.
    """
    tl.atomic_add(counter, number, sem="relaxed")


@triton.jit
def window_start(
    position,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
):
    """First page of the window of a query at ``position`` (see ``layout``)."""
    start = tl.maximum(position - WINDOW + 1, 0) // PAGE_SIZE
    if DENSE_BELOW > 0:
        start = tl.where(position < DENSE_BELOW, 0, start)
    return start


@triton.jit
def decode_row(
    seq_lens,
    b,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
):
    """(position of sequence ``b``'s query, first page of its window, number of its candidate pages)."""
    position = tl.load(seq_lens + b).to(tl.int32) - 1
    start = window_start(position, PAGE_SIZE, WINDOW, DENSE_BELOW)
    return position, start, tl.maximum(start - SINKS, 0)


@triton.jit
def rank_unknown_first(score, stamp, version):
    """Scores of pages from their representations; a page that has none must not be lost.

    A page whose stamp is not its version is attended: +inf. One that belongs to a later batch (no version) is not: -inf.
    A pass represents what is missing before it selects, so that the first is left for a page that this pass completes
    for a request which has ended. Its weight is that of its keys; by score it would be that of the bytes it holds.
    """
    unknown = tl.where(version >= 0, float("inf"), float("-inf"))
    return tl.where(stamp == version, score, unknown)


@triton.jit
def soft_cap(logits, logit_cap):
    """``logit_cap * tanh(logits / logit_cap)``, by tanh(x) = 1 - 2 / (exp(2 x) + 1)."""
    return logit_cap * (1 - 2 / (tl.exp(2 * logits / logit_cap) + 1))


@triton.jit
def running_max(top, best):
    """(new maximum, what exponentials are measured against) of an online softmax.

    Before anything is visible that is 0 instead of the maximum, since -inf - -inf is NaN.
    """
    new_top = tl.maximum(top, best)
    return new_top, tl.where(new_top == float("-inf"), 0.0, new_top)
