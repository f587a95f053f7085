# SPDX-License-Identifier: Apache-2.0
"""Which kernels select pages by which kind of representation."""

from __future__ import annotations

from typing import Callable, NamedTuple, Union

from sglang.srt.layers.attention.hsa.chunk_repr import KINDS
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.ops.select_pages.decode_kernel import (
    select_pages_decode,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.extend_kernel import (
    select_pages_extend,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.page_lists import (
    ExtendSelectWorkspace,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.slow_decode import (
    select_slow_pages_decode,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.slow_extend import (
    SlowSelectWorkspace,
    select_slow_pages_extend,
)

ExtendWorkspace = Union[ExtendSelectWorkspace, SlowSelectWorkspace]


class Selection(NamedTuple):
    """Ops of one family of kinds; both families take the same arguments.

    Attributes:
        decode: ``select_pages_decode``, or an op like it. extend: ``select_pages_extend``, or an op like it.
        extend_workspace: makes the scratch of ``extend``.
    """

    decode: Callable
    extend: Callable
    extend_workspace: Callable[..., ExtendWorkspace]


LINEAR = Selection(select_pages_decode, select_pages_extend, ExtendSelectWorkspace)
SLOW = Selection(
    select_slow_pages_decode, select_slow_pages_extend, SlowSelectWorkspace
)


def selection_of(config: HSAConfig) -> Selection:
    """The ops for the kind of representation that the options name."""
    return SLOW if KINDS[config.chunk_repr].slow else LINEAR
