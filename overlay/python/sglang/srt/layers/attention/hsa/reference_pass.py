# SPDX-License-Identifier: Apache-2.0
"""The path on the torch reference ops: extend and decode on any device, eagerly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

import torch

from sglang.srt.layers.attention.hsa import strict
from sglang.srt.layers.attention.hsa.layer_buffers import pool_buffers
from sglang.srt.layers.attention.hsa.metadata import HSAMetadata, build_metadata
from sglang.srt.layers.attention.hsa.ops.chunk_repr.reference import chunk_repr_fwd
from sglang.srt.layers.attention.hsa.reference_attention import attend_reference

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.counters import HSACounters
    from sglang.srt.layers.attention.hsa.scales import KVScales
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.chunk_repr_pool import ChunkReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class ReferencePass:
    """What the layers of one forward pass share, and their ops.

    Args:
        forward_batch: a batch in decode, extend or mixed mode.
        pool: pool that keeps the representations.
        config: resolved options.
        counters: counts are added to it.

    Attributes:
        metadata: of the batch.
    """

    def __init__(
        self,
        forward_batch: ForwardBatch,
        pool: ChunkReprMixin,
        config: HSAConfig,
        counters: HSACounters,
    ):
        self.pool, self.config, self.counters = pool, config, counters
        self.decode = forward_batch.forward_mode.is_decode()
        self.out_cache_loc = forward_batch.out_cache_loc
        self.metadata: HSAMetadata = build_metadata(forward_batch, pool, config)

    @property
    def rows(self) -> int:
        """New tokens."""
        return self.metadata.rows

    @property
    def max_candidates(self) -> int:
        """Largest number of candidate pages of any new token."""
        return self.metadata.max_candidates

    def write_representations(self, layer: RadixAttention, scales: KVScales) -> None:
        """Represent the pages that this pass completes, and heal complete pages that have no valid E_i."""
        if self.config.strict:
            strict.check_page_table(self.metadata, self.out_cache_loc, self.pool)
        if not self.pool.chunk_repr_kind.stored:
            return
        self._write_missing(layer, scales)
        if self.config.strict:
            strict.check_representations(
                self.metadata, self.pool, layer.layer_id, scales.k
            )

    def _write_missing(self, layer: RadixAttention, scales: KVScales) -> None:
        md = self.metadata
        valid = self.pool.chunk_repr_valid(
            layer.layer_id, md.real_page_table, md.page_version
        )
        missing = md.page_complete & ~valid & ~md.page_completed_now
        page_ids, healed, versions = _distinct_pages(md, missing)
        if page_ids.numel() == 0:
            return
        reprs = chunk_repr_fwd(
            self.pool.get_key_buffer(layer.layer_id),
            page_ids,
            page_size=md.page_size,
            kind=self.config.chunk_repr,
            k_scale=scales.k,
            channels=self.pool.chunk_repr_channels(layer.layer_id),
        )
        self.pool.save_chunk_repr(layer.layer_id, page_ids, reprs, versions)
        self.counters.add("reprs_written", (~healed).sum())
        self.counters.add("reprs_healed", healed.sum())

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        scales: KVScales,
        mask_last_slot: bool = False,
    ) -> torch.Tensor:
        """One layer: q ``[T, H_q, D]`` -> ``[T, H_q, D_v]`` float32. K, V and representations are written."""
        md = self.metadata
        valid = md.page_complete & self.pool.chunk_repr_valid(
            layer.layer_id, md.real_page_table, md.page_version
        )
        o, selected = attend_reference(
            q,
            pool_buffers(layer, self.pool, scales, None, mask_last_slot),
            valid,
            md.real_page_table,
            md.cache_seqlens_int32,
            md.cu_seqlens_q,
            decode=self.decode,
            config=self.config,
        )
        self.counters.add("rows_dense", md.rows - md.sparse_rows)
        self.counters.add("rows_sparse", md.sparse_rows)
        self.counters.add("pages_candidate", md.pages_candidate * selected.shape[1])
        self.counters.add("pages_selected", (selected >= 0).sum())
        return o


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
    healed[inverse] = missing[
        todo
    ]  # shared pages agree: they were complete for all or for none
    versions = torch.empty_like(page_ids, dtype=torch.int64)
    versions[inverse] = md.page_version[todo]
    return page_ids, healed, versions
