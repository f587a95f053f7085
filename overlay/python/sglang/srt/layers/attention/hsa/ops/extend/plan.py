# SPDX-License-Identifier: Apache-2.0
"""ExtendPlan: how the work of one extend pass is cut into pieces that the kernels can launch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Sequence, Tuple

import numpy as np
import torch

from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.layout import num_candidate_pages
from sglang.srt.layers.attention.hsa.page_repr import kind_named

# Rows of a matrix product, by head dimension: what registers and shared memory hold.
ROWS = {128: 64, 256: 32}
MAX_LIST_ROWS = 32  # one bit of an int32 each
LONE_ROWS = 16  # of a list where a page is weighed by score and a KV head has one query head: the least of a product
SELECT_ROWS = 32  # of selection for group, with a second program beside it; at least MAX_LIST_ROWS
SLOW_ROWS = 128  # of selection by slow_keys


class Tiling(NamedTuple):
    """How many new tokens share a program.

    Attributes:
        tile_rows: of the selection kernel, a multiple of list_rows.
        list_rows: of a page list and so of the attention kernel. Both are powers of two.
        batch_invariant: no bit of a row's result depends on the rest of its batch, or on how its prompt is cut.
    """

    tile_rows: int
    list_rows: int
    batch_invariant: bool = False


def check_head_dim(head_dim: int) -> None:
    """Raise ValueError for a head dimension that no kernel takes."""
    if head_dim > max(ROWS):
        raise ValueError(
            f"the HSA kernels take head dimensions up to 256, not {head_dim}; "
            "choose another --attention-backend"
        )


def rows_that_fit(heads: int, head_dim: int) -> int:
    """New tokens in one matrix product, with so many rows each."""
    rows = next(rows for dim, rows in ROWS.items() if head_dim <= dim)
    return min(MAX_LIST_ROWS, max(1, rows // heads))


def choose_tiling(group: int, head_dim: int, config: HSAConfig) -> Tiling:
    """Tiling for ``group`` query heads per KV head and these options.

    Raises:
        ValueError: for a head dimension above 256.
    """
    check_head_dim(head_dim)
    heads = 1 << (group - 1).bit_length()
    list_rows = rows_that_fit(heads, head_dim)
    if kind_named(config.chunk_repr).slow:
        # A row of the selection's product is a query head.
        return Tiling(max(list_rows, SLOW_ROWS // heads), list_rows)
    if config.has_landmark_rows:  # a product for each of the heads
        if group == 1:
            list_rows = LONE_ROWS
        return Tiling(max(list_rows, SELECT_ROWS), list_rows)
    # The strategy group adds up the heads first: a row of the selection's product is a token.
    by_token = config.selection_strategy == "group"
    return Tiling(SELECT_ROWS if by_token else list_rows, list_rows)


@dataclass
class ExtendPlan:
    """Work lists of one extend pass over B sequences with T new tokens in all.

    Attributes:
        tiles: runs of at most ``tiling.tile_rows`` new tokens of one sequence ``[N, 4]`` int32: sequence, first packed row,
            rows, position of the first row.
        pages: complete pages of the batch ``[C, 3]`` int32: sequence, logical page, 1 if this pass completes it.
        tiling: of the kernels.
        max_candidates: largest number of candidate pages of any row (host int).
        max_rows: largest number of rows of a tile (host int).
        rows: T.
        sequences: candidate pages and tiles of each sequence (host ints).
    """

    tiles: torch.Tensor
    pages: torch.Tensor
    tiling: Tiling
    max_candidates: int
    max_rows: int
    rows: int
    sequences: Tuple[Tuple[int, int], ...] = ()


def plan_extend(
    prefix_lens: Sequence[int],
    new_lens: Sequence[int],
    *,
    tiling: Tiling,
    config: HSAConfig,
    device: torch.device | str,
    dense_below: int = 0,
) -> ExtendPlan:
    """Plan a pass from lengths that the host knows; the copy to the device does not wait for it.

    In numpy: torch takes several times as long for a few hundred numbers.

    Args:
        prefix_lens: cached tokens of each sequence ``[B]``; places, if it has rows of landmarks.
        new_lens: new tokens of each sequence ``[B]``, or rows.
        tiling: see ``choose_tiling``.
        dense_below: as in ``AttentionParams``.
    """
    page_size, tile_rows = config.places_per_page, tiling.tile_rows
    prefix = np.asarray(prefix_lens, dtype=np.int64)
    new = np.asarray(new_lens, dtype=np.int64)
    total = prefix + new

    tiles_of = (new + tile_rows - 1) // tile_rows
    sequence, index = _enumerate(tiles_of)
    offset = index * tile_rows  # first row of the tile in its sequence
    first_row = np.cumsum(new) - new
    tiles = np.empty((len(sequence), 4), dtype=np.int32)
    tiles[:, 0] = sequence
    tiles[:, 1] = first_row[sequence] + offset
    tiles[:, 2] = np.minimum(new[sequence] - offset, tile_rows)
    tiles[:, 3] = prefix[sequence] + offset

    owner, page = _enumerate(total // page_size)
    pages = np.empty((len(owner), 3), dtype=np.int32)
    pages[:, 0] = owner
    pages[:, 1] = page
    pages[:, 2] = page >= (prefix // page_size)[owner]

    candidates = num_candidate_pages(
        total - 1,
        config.effective_window,
        page_size,
        config.sink_pages,
        dense_below,
    )
    candidates = np.where(new > 0, candidates, 0)
    return ExtendPlan(
        tiles=to_device(tiles, device),
        pages=to_device(pages, device),
        tiling=tiling,
        max_candidates=int(candidates.max()),
        max_rows=min(tile_rows, int(new.max())),
        rows=int(new.sum()),
        sequences=tuple(zip(candidates.tolist(), tiles_of.tolist())),
    )


def _enumerate(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(owner, index within the owner) of ``counts[i]`` things of each owner i."""
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - first[owner]


def to_device(x: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """As int32, by a copy that the host does not wait for."""
    tensor = torch.from_numpy(np.asarray(x, dtype=np.int32))
    if torch.device(device).type == "cuda":
        # A copy from pageable memory would wait for the device.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
