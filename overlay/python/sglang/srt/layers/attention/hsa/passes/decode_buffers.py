# SPDX-License-Identifier: Apache-2.0
"""What the passes in CUDA graphs share: buffers that stay where they are, and page versions."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import torch
import triton

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.ops.common import padded_width
from sglang.srt.layers.attention.hsa.ops.page_table.kernel import build_page_table
from sglang.srt.layers.attention.hsa.passes.base import AttentionPass, WindowCache
from sglang.srt.layers.attention.hsa.passes.decode_attention import DecodeSize

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class StaticPasses(abc.ABC):
    """The decode passes of one model: what they write lies where a CUDA graph can hold it.

    Args:
        pool: pool that keeps the representations.
        req_to_token_pool: slots of the requests' tokens; its width bounds the number of pages.
        config: resolved options.
        layers: the attention layers of the model, by number.
        counters: counts are added to it on the device.
        rows_per_request: rows of a request in a pass.
        batch_invariant: as of Tiling.

    Attributes:
        layers: numbers of the layers that the passes attend.
        steps: one pass for each step of a multi-step draft, else the only one.
        begins_early: whether what all layers share is launched before the layers, since a CUDA graph holds that too; else
            the first layer does it.
        begins_before_graphs: whether that must run outside of the graph.
    """

    steps: List[AttentionPass]

    def __init__(
        self,
        pool: PageReprMixin,
        req_to_token_pool: ReqToTokenPool,
        config: HSAConfig,
        layers: Dict[int, RadixAttention],
        counters: HSACounters,
        rows_per_request: int = 1,
        batch_invariant: bool = False,
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.layers = frozenset(layers)
        self.rows_per_request = rows_per_request
        self.begins_early = compat.graphs_hold_metadata()
        # The scheduler clears the map of windows once what comes before a graph has run.
        self.begins_before_graphs = pool.windows_apart
        self.req_to_token = req_to_token_pool.req_to_token
        first = layers[pool.hsa_layer_ids[0]]
        self.size = DecodeSize(
            0,
            triton.cdiv(self.req_to_token.shape[1], config.page_size),
            first.tp_q_head_num,
            pool.head_num,
            first.v_head_dim,
            batch_invariant=batch_invariant,
        )
        self.reserved: Optional[Any] = None
        self.grown: Optional[Any] = None
        self.page_version = torch.empty_like(pool.page_version)
        self.built_at = torch.zeros(
            1, dtype=torch.int64, device=self.req_to_token.device
        )

    @abc.abstractmethod
    def begin(self, forward_batch: ForwardBatch) -> None:
        """Launch what all layers of all steps share."""

    @abc.abstractmethod
    def _make_buffers(self, rows: int) -> Any:
        """What passes with up to so many rows write; has ``rows``."""

    def reserve(self, requests: int) -> None:
        """Make the buffers that CUDA graphs of so many requests hold, before the first of them is captured."""
        self.reserved = self._make_buffers(requests * self.rows_per_request)

    def prepare(self, page_handouts: int) -> None:
        """Tell the next pass when its batch was built, outside any graph: one launch, no sync.

        Args:
            page_handouts: hand-outs of the pool at that time (see docs/storage.md).
        """
        self.built_at.fill_(page_handouts)

    def write_tables(
        self,
        forward_batch: ForwardBatch,
        page_table: torch.Tensor,
        window: WindowCache,
    ) -> Tuple[torch.Tensor, WindowCache]:
        """Page tables of one row per request, and where layers with a sliding window write.

        Args:
            page_table: ``[>= B, max_pages]`` int32, written.
            window: buffers of so many rows, written if these layers have a pool of their own.

        Returns:
            The parts that are written ``[B, max_pages]``, of layers with a sliding window what they have.
        """
        requests, slots = len(forward_batch.seq_lens), forward_batch.out_cache_loc
        table, apart = page_table[:requests], self.pool.windows_apart
        window_table = window.page_table[:requests] if apart else None
        build_page_table(
            self.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            table,
            self.config.page_size,
            self.pool.window_map,
            window_table,
        )
        if not apart:
            return table, WindowCache(slots, table)
        # A batch whose graph has more rows gives slots for its own; the others take padding.
        window_slots = window.slots[:requests].zero_()
        window_slots[: len(slots)] = self.pool.window_slots(slots)
        return table, WindowCache(window_slots, window_table)

    def make_window(self, rows: int) -> WindowCache:
        """Buffers for ``write_tables``; empty if windows have no pool of their own."""
        rows *= self.pool.windows_apart
        shape, device = (rows, padded_width(self.size.max_pages)), self.built_at.device
        return WindowCache(
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.int32, device=device),
        )

    def buffers_for(self, requests: int) -> Any:
        """Those of the graphs if the requests fit, else others that grow with the largest batch."""
        rows = requests * self.rows_per_request
        for buffers in (self.reserved, self.grown):
            if buffers is not None and rows <= buffers.rows:
                return buffers
        self.grown = self._make_buffers(triton.next_power_of_2(rows))
        return self.grown
