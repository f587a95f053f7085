# SPDX-License-Identifier: Apache-2.0
"""Which kernels select pages by which kind of representation."""

from __future__ import annotations

from typing import Callable, Type, Union

import triton

from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.ops.extend.plan import Tiling
from sglang.srt.layers.attention.hsa.ops.select.decode_kernel import (
    MAX_PROGRAMS_PER_ROW,
    select_pages_decode,
)
from sglang.srt.layers.attention.hsa.ops.select.extend_kernel import (
    feature_rows,
    pages_per_step,
    select_pages_extend,
)
from sglang.srt.layers.attention.hsa.ops.select.page_lists import ExtendSelectWorkspace
from sglang.srt.layers.attention.hsa.ops.select.prior_decode import (
    PAGE_PROGRAMS,
    programs_bound,
    select_prior_pages_decode,
)
from sglang.srt.layers.attention.hsa.ops.select.prior_extend import (
    select_prior_pages_extend,
)
from sglang.srt.layers.attention.hsa.ops.select.slow_decode import (
    select_slow_pages_decode,
)
from sglang.srt.layers.attention.hsa.ops.select.slow_extend import (
    SlowSelectWorkspace,
    select_slow_pages_extend,
)
from sglang.srt.layers.attention.hsa.page_repr import kind_named

ExtendWorkspace = Union[ExtendSelectWorkspace, SlowSelectWorkspace]


def decode_op(config: HSAConfig) -> Callable:
    """``select_pages_decode`` for the kind of representation that the options name, or the op like it."""
    if kind_named(config.chunk_repr).slow:
        return select_slow_pages_decode
    if config.has_landmark_rows:
        return select_prior_pages_decode
    return select_pages_decode


def decode_programs(config: HSAConfig, bound: Callable[[int], int]) -> int:
    """Bound of the programs of a launch of ``decode_op``; ``bound`` gives it for so many per row and KV head at most."""
    if config.has_landmark_rows:
        return programs_bound(bound(PAGE_PROGRAMS))
    return bound(MAX_PROGRAMS_PER_ROW)


def extend_op(config: HSAConfig) -> Callable:
    """``select_pages_extend`` for the kind of representation that the options name, or the op like it."""
    if kind_named(config.chunk_repr).slow:
        return select_slow_pages_extend
    if config.has_landmark_rows:
        return select_prior_pages_extend
    return select_pages_extend


def check_device(
    config: HSAConfig, tiling: Tiling, group: int, head_dim: int, shared: int
) -> None:
    """Raise ValueError if ``extend_op`` needs more than the ``shared`` bytes of shared memory that a program may take."""
    if not (kind_named(config.chunk_repr).slow or config.has_landmark_rows):
        rows = tiling.tile_rows * feature_rows(group, config.selection_strategy)
        pages_per_step(rows, triton.next_power_of_2(head_dim), shared)


def extend_workspace(config: HSAConfig) -> Type[ExtendWorkspace]:
    """The scratch of ``extend_op``."""
    if kind_named(config.chunk_repr).slow:
        return SlowSelectWorkspace
    return ExtendSelectWorkspace
