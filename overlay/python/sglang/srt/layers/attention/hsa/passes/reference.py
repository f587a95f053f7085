# SPDX-License-Identifier: Apache-2.0
"""The path on the torch reference ops: extend and decode on any device, eagerly."""

from __future__ import annotations

from typing import TYPE_CHECKING, FrozenSet, Tuple

import torch

from sglang.srt.layers.attention.hsa.layer_inputs import LayerInputs
from sglang.srt.layers.attention.hsa.ops.extend.reference import extend_local_fwd
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd
from sglang.srt.layers.attention.hsa.params import (
    NO_VERSION,
    AttentionParams,
    layer_params,
)
from sglang.srt.layers.attention.hsa.passes import strict
from sglang.srt.layers.attention.hsa.passes.base import (
    AttentionPass,
    WindowCache,
    prefill_dense_below,
)
from sglang.srt.layers.attention.hsa.passes.metadata import HSAMetadata, build_metadata
from sglang.srt.layers.attention.hsa.passes.reference_attention import (
    attend_reference,
    share_with_sinks,
)

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class ReferencePass(AttentionPass):
    """A pass in decode or extend mode on the torch references.

    Args:
        forward_batch: a batch in decode, extend or mixed mode.
        pool: pool that keeps the representations.
        req_to_token: slot of each position of each request ``[num_requests, context]`` int32.
        config: resolved options.
        counters: counts are added to it.
        layers: numbers of the layers that it attends.

    Attributes:
        metadata: of the batch.
        decode: whether each sequence has one row.
        own: pages of the batch, the only ones to select ``[B, max_pages]`` bool.
    """

    def __init__(
        self,
        forward_batch: ForwardBatch,
        pool: PageReprMixin,
        req_to_token: torch.Tensor,
        config: HSAConfig,
        counters: HSACounters,
        layers: FrozenSet[int],
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.layers = layers
        self.out_cache_loc = forward_batch.out_cache_loc
        self.dense_below = prefill_dense_below(forward_batch, config)
        self.metadata: HSAMetadata = build_metadata(
            forward_batch, pool, req_to_token, config, self.dense_below
        )
        if layers > pool.hsa_layers:
            table = self.metadata.real_page_table
            self.windows = WindowCache.of(pool, self.out_cache_loc, table)

        self.decode = forward_batch.forward_mode.is_decode()
        self.own = self.metadata.page_version != NO_VERSION
        self.rows = self.metadata.rows
        self.max_candidates = self.metadata.max_candidates

    def write_representations(
        self, layer: RadixAttention, inputs: LayerInputs = LayerInputs()
    ) -> None:
        if self.config.strict:
            slots = self.out_cache_loc[: self.metadata.new_tokens.sum()]
            strict.check_page_table(self.metadata, slots, self.pool)
        if not self.pool.repr_kind.stored:
            return
        self._write_missing(layer)
        if self.config.strict:
            strict.check_representations(
                self.metadata,
                self.pool,
                layer.layer_id,
                layer_params(layer, self.pool, self.config),
            )

    def _write_missing(self, layer: RadixAttention) -> None:
        md = self.metadata
        valid = self.pool.repr_valid(
            layer.layer_id, md.real_page_table, md.page_version
        )
        missing = md.page_complete & ~valid & ~md.page_completed_now
        page_ids, healed, versions = _distinct_pages(md, missing)
        if page_ids.numel() == 0:
            return
        reprs = page_repr_fwd(
            self.pool.get_key_buffer(layer.layer_id),
            page_ids,
            layer_params(layer, self.pool, self.config),
            self.pool.repr_channels_of(layer.layer_id),
        )
        self.pool.save_chunk_repr(layer.layer_id, page_ids, reprs, versions)
        self.counters.add("reprs_written", (~healed).sum())
        self.counters.add("reprs_healed", healed.sum())

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        inputs: LayerInputs = LayerInputs(),
    ) -> torch.Tensor:
        o = self._attend_real(q[: self.rows], layer, inputs)
        if len(o) < len(q):
            o = torch.nn.functional.pad(o, (0, 0, 0, 0, 0, len(q) - len(o)))
        return o

    def _attend_real(
        self, q: torch.Tensor, layer: RadixAttention, inputs: LayerInputs
    ) -> torch.Tensor:
        """`attend` without the rows that fill the batch up to the sizes of other ranks."""
        params = layer_params(layer, self.pool, self.config, self.dense_below, inputs)
        if not self.pool.has_page_repr(layer.layer_id):
            return self._attend_local(q, layer, params)
        md = self.metadata
        valid = md.page_complete & self.pool.repr_valid(
            layer.layer_id, md.real_page_table, md.page_version
        )
        o, selected = attend_reference(
            q,
            self.pool.layer_cache(layer.layer_id),
            valid,
            md.real_page_table,
            md.places,
            md.cu_seqlens_q,
            params,
            decode=self.decode,
            own=self.own,
            select_q=inputs.select_q,
        )
        self.count_rows(selected, valid)
        return o.to(q.dtype)

    def _attend_local(
        self, q: torch.Tensor, layer: RadixAttention, params: AttentionParams
    ) -> torch.Tensor:
        """A layer without HSA, whose window may be its whole past."""
        md = self.metadata
        slides = params.exact_window > 0
        keys, values = self.pool.get_kv_buffer(layer.layer_id)
        table = self.windows.page_table if slides else md.real_page_table
        parts = extend_local_fwd(
            q, keys, values, table, md.cu_seqlens_q, md.places, params
        )
        return share_with_sinks(*parts, params).to(q.dtype)

    def count_rows(self, selected: torch.Tensor, valid: torch.Tensor) -> None:
        """Count the rows of a layer and the pages that they selected.

        Args:
            selected: ``[T, H_kv, K]``, -1 for none.
            valid: pages that have a valid representation ``[B, max_pages]`` bool.
        """
        md = self.metadata
        self.counters.add("rows_dense", md.rows - md.sparse_rows)
        self.counters.add("rows_sparse", md.sparse_rows)
        self.counters.add("pages_candidate", md.pages_candidate * selected.shape[1])
        self.counters.add("pages_selected", (selected >= 0).sum())


def _distinct_pages(
    md: HSAMetadata, missing: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Physical pages to represent, each once: those completed now and those ``missing`` ``[B, max_pages]``.

    Returns:
        (page_ids ``[N]``, whether the page is healed ``[N]`` bool, its version ``[N]`` int64).
    """
    todo = md.page_completed_now | missing
    page_ids, inverse = torch.unique(md.real_page_table[todo], return_inverse=True)
    healed = torch.zeros_like(page_ids, dtype=torch.bool)
    # Shared pages agree: they were complete for all or for none.
    healed[inverse] = missing[todo]
    versions = torch.empty_like(page_ids, dtype=torch.int64)
    versions[inverse] = md.page_version[todo]
    return page_ids, healed, versions
