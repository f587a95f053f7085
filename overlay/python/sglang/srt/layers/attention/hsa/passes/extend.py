# SPDX-License-Identifier: Apache-2.0
"""The extend pass on Triton kernels: one launch per op for the whole batch, whatever its lengths.

Per forward pass: work lists from the host's lengths, page table, scratch. Per layer: representations, selection,
attention. Nothing here reads the device.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, FrozenSet, Optional, Tuple

import torch
import triton

from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.landmark_rows import LandmarkRows
from sglang.srt.layers.attention.hsa.layer_inputs import LayerInputs
from sglang.srt.layers.attention.hsa.layout import num_places
from sglang.srt.layers.attention.hsa.ops.common import padded_width
from sglang.srt.layers.attention.hsa.ops.extend.kernel import extend_hsa
from sglang.srt.layers.attention.hsa.ops.extend.plan import Tiling, plan_extend
from sglang.srt.layers.attention.hsa.ops.page_repr.kernel import write_pages
from sglang.srt.layers.attention.hsa.ops.page_repr.landmark_kernel import (
    write_landmark_pages,
)
from sglang.srt.layers.attention.hsa.ops.page_table.kernel import build_page_table
from sglang.srt.layers.attention.hsa.ops.scratch import Scratch
from sglang.srt.layers.attention.hsa.params import NO_VERSION, layer_params
from sglang.srt.layers.attention.hsa.passes.base import (
    AttentionPass,
    WindowCache,
    prefill_dense_below,
)
from sglang.srt.layers.attention.hsa.passes.tile_attention import TileAttention

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

WARM_UP_ROWS = 16


def prepare_prompts(
    scratch: Scratch,
    pool: PageReprMixin,
    config: HSAConfig,
    tiling: Tiling,
    layer: RadixAttention,
    dtype: torch.dtype,
    context: int,
    chunk: int,
    window_layer: Optional[RadixAttention] = None,
    sinks: Optional[torch.Tensor] = None,
) -> None:
    """Take the scratch and compile the kernels of prompts at start-up, where neither surprises a request.

    The scratch is that of the last chunk of the longest prompt, and of many short ones at once. The kernels run on a few
    queries of zeros, and read the page that pads batches; nothing is written but scratch.

    Args:
        layer: one with HSA; dtype: of its queries.
        context: most tokens of a request; chunk: of a pass that is cut into chunks.
        window_layer: one with a sliding window that HSA attends, if there is one.
        sinks: sink logits of ``layer``, if it has some.
    """
    device, page_size = scratch.device, config.page_size
    context = min(context, pool.size)
    places = num_places(context, page_size) if config.has_landmark_rows else context
    counters = HSACounters(device)  # of nobody
    inputs = LayerInputs(sink_logits=sinks)
    params = layer_params(layer, pool, config, config.dense_below, inputs)
    width = padded_width(triton.cdiv(context, page_size))
    table = torch.zeros((1, width), dtype=torch.int32, device=device)

    def tiles_of(new: int) -> TileAttention:
        plan = plan_extend(
            [places - new],
            [new],
            tiling=tiling,
            config=config,
            device=device,
            dense_below=config.dense_below,
        )
        return TileAttention.of(plan, pool.head_num, config, counters, scratch)

    if config.has_landmark_rows:
        chunk = num_places(chunk, page_size)
    most = tiles_of(min(chunk, places))
    if most.workspace and pool.repr_kind.slow:
        most.workspace.reserve(pool.size // page_size, page_size, pool.head_dim, dtype)
    few = tiles_of(min(WARM_UP_ROWS, places))
    if pool.repr_kind.stored and not config.has_landmark_rows:
        none = torch.full_like(pool.page_version, NO_VERSION)  # so none is written
        cache = pool.layer_cache(layer.layer_id, none)
        write_pages(cache, table, few.plan.pages, counters.values, params)
    if few.lists is None:  # every prompt is dense
        return
    shape = few.plan.rows, layer.tp_q_head_num, layer.qk_head_dim
    query = torch.zeros(shape, dtype=dtype, device=device)
    if config.has_landmark_rows:
        _warm_up_landmarks(query, pool, config, layer, window_layer, table, few)
    few.launch(
        query,
        pool.layer_cache(layer.layer_id, pool.page_version),
        table,
        params,
        query if config.has_landmark_rows else None,
    )


def _warm_up_landmarks(
    query: torch.Tensor,
    pool: PageReprMixin,
    config: HSAConfig,
    layer: RadixAttention,
    window_layer: Optional[RadixAttention],
    table: torch.Tensor,
    few: TileAttention,
) -> None:
    """Run the kernels that only rows of landmarks and exact windows have; of a page without a version nothing is written."""
    nowhere = torch.zeros(1, dtype=torch.int64, device=query.device)
    none = torch.full_like(pool.page_version, NO_VERSION)
    write_landmark_pages(
        query,
        pool.layer_cache(layer.layer_id, none),
        LandmarkRows(nowhere, nowhere, nowhere, nowhere),
        nowhere,
        few.counters.values,
        layer_params(layer, pool, config),
    )
    if window_layer is not None:
        extend_hsa(
            query,
            pool.layer_cache(window_layer.layer_id),
            None,
            table,
            few.plan,
            torch.empty_like(query),
            layer_params(window_layer, pool, config),
        )


class ExtendPass(AttentionPass):
    """New tokens of some sequences, whose lengths the host knows.

    Args:
        forward_batch: the batch; its lengths on the host must be set.
        pool: pool that keeps the representations.
        req_to_token: slot of each position of each request ``[num_requests, context]`` int32.
        config: resolved options.
        tiling: of the kernels.
        counters: counts are added to it on the device.
        scratch: that the passes of a backend take turns with.
        layers: numbers of the layers that it attends.
    """

    def __init__(
        self,
        forward_batch: ForwardBatch,
        pool: PageReprMixin,
        req_to_token: torch.Tensor,
        config: HSAConfig,
        tiling: Tiling,
        counters: HSACounters,
        scratch: Scratch,
        layers: FrozenSet[int],
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.scratch, self.layers = scratch, layers
        self.dense_below = prefill_dense_below(forward_batch, config)
        device = forward_batch.seq_lens.device
        # A draft extend still has the prefix lengths of its requests' prefill; the differences are always right.
        new_lens = torch.as_tensor(forward_batch.extend_seq_lens_cpu)
        self.plan = plan_extend(
            *self._prefix_and_rows(forward_batch.seq_lens_cpu, new_lens),
            tiling=tiling,
            config=config,
            device=device,
            dense_below=self.dense_below,
        )
        self.rows, self.max_candidates = self.plan.rows, self.plan.max_candidates

        # Versions before the table, as in ``build_metadata``.
        self.page_version = pool.versions_at(pool.built_at(forward_batch))
        longest = int(forward_batch.seq_lens_cpu.max())
        width = padded_width(triton.cdiv(longest, config.page_size))
        self.page_table = build_page_table(
            req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            torch.empty(
                (len(forward_batch.seq_lens), width), dtype=torch.int32, device=device
            ),
            config.page_size,
        )
        if layers > pool.hsa_layers:
            slots = forward_batch.out_cache_loc
            self.windows = WindowCache.of(pool, slots, self.page_table)

    def _prefix_and_rows(
        self, seq_lens: torch.Tensor, new_lens: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """What is cached of each sequence and what is new ``[B]``, of their lengths and new tokens."""
        return seq_lens - new_lens, new_lens

    @functools.cached_property
    def tiles(self) -> TileAttention:
        """Lists and scratch of the launches; a pass that goes to the dense backend needs none."""
        return TileAttention.of(
            self.plan, self.pool.head_num, self.config, self.counters, self.scratch
        )

    def write_representations(
        self, layer: RadixAttention, inputs: LayerInputs = LayerInputs()
    ) -> None:
        if self.pool.repr_kind.stored:
            write_pages(
                self.pool.layer_cache(layer.layer_id, self.page_version),
                self.page_table,
                self.plan.pages,
                self.counters.values,
                layer_params(layer, self.pool, self.config),
            )

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        inputs: LayerInputs = LayerInputs(),
    ) -> torch.Tensor:
        cache = self.pool.layer_cache(layer.layer_id, self.page_version)
        params = layer_params(layer, self.pool, self.config, self.dense_below, inputs)
        if self.pool.has_page_repr(layer.layer_id):
            return self.tiles.launch(q, cache, self.page_table, params, inputs.select_q)
        slides = params.exact_window > 0
        table = self.windows.page_table if slides else self.page_table
        return self.tiles.attend_window(q, cache, table, params)
