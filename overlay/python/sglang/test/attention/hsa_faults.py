# SPDX-License-Identifier: Apache-2.0
"""Fault injection for the HSA tests: each function damages one thing that a forward pass relies on.

Every fault takes a harness, a sequence and a numpy generator, and damages a random place among those that the
sequence's next pass uses.
"""

from __future__ import annotations

import numpy as np
import torch

from sglang.test.attention.hsa_harness import Harness, Sequence_


def _random_complete_page(h: Harness, s: Sequence_, rng: np.random.Generator) -> int:
    pages = h.pages_of(s)[: s.length // h.config.page_size]
    return int(pages[rng.integers(len(pages))])


def flip_bit(tensor: torch.Tensor, rng: np.random.Generator) -> None:
    """Flip one random bit of a contiguous tensor."""
    data = tensor.view(-1).view(torch.uint8)
    data[rng.integers(data.numel())] ^= 1 << int(rng.integers(8))


def flip_stamp(h: Harness, s: Sequence_, rng: np.random.Generator) -> None:
    """The version that a representation is stamped with."""
    flip_bit(h.pool.repr_stamps[0][_random_complete_page(h, s, rng)].view(1), rng)


def lower_page_version(h: Harness, s: Sequence_, rng: np.random.Generator) -> None:
    """The version of a page, to an earlier one."""
    page = _random_complete_page(h, s, rng)
    h.pool.page_version[page] -= int(
        rng.integers(1, int(h.pool.page_version[page]) + 1)
    )


def raise_page_version(h: Harness, s: Sequence_, rng: np.random.Generator) -> None:
    """The version of a page, to one that no hand-out had yet."""
    h.pool.page_version[_random_complete_page(h, s, rng)] = h.pool.page_handouts + int(
        rng.integers(1, 1 << 40)
    )


def flip_representation(h: Harness, s: Sequence_, rng: np.random.Generator) -> None:
    """One bit of a representation that is stamped as valid."""
    flip_bit(h.pool.repr_buffers[0][_random_complete_page(h, s, rng)], rng)


def flip_page_table_entry(h: Harness, s: Sequence_, rng: np.random.Generator) -> None:
    """One entry of the request's page table, to another slot of the pool."""
    table = h.req_to_token_pool.req_to_token
    position = rng.integers(s.length)
    slots = h.pool.size + h.pool.page_size
    table[s.row, position] = (
        int(table[s.row, position]) + int(rng.integers(1, slots))
    ) % slots


def leave_arrivals(h: Harness, rng: np.random.Generator) -> None:
    """The counts of programs that a launch leaves behind which is cut off, in the scratch of the last decode pass."""
    buffers = h.backend.decode.buffers
    split, dense = buffers.attention, buffers.dense
    for scratch in (split.select_workspace, split.attention.workspace, dense.workspace):
        arrivals = scratch.arrivals
        count = rng.integers(1, 16, size=arrivals.shape)
        arrivals.copy_(torch.as_tensor(count, dtype=arrivals.dtype))


def scribble_free_pages(h: Harness, rng: np.random.Generator) -> None:
    """All bytes of every free page: keys, values, representations and stamps."""
    for page in h.allocator.free_pages.tolist():
        slots = slice(page * h.pool.page_size, (page + 1) * h.pool.page_size)
        value = float(rng.choice([float("nan"), float("inf"), -1e30, 0.0]))
        for k, v in zip(h.pool.k_buffer, h.pool.v_buffer):
            k[slots], v[slots] = value, value
        for buffer, stamp in zip(h.pool.repr_buffers, h.pool.repr_stamps):
            buffer[page] = value if buffer.is_floating_point() else rng.integers(256)
            stamp[page] = int(rng.integers(0, h.pool.page_handouts + 1))
