# SPDX-License-Identifier: Apache-2.0
"""The path of checkpoints that were trained for HSA on the torch reference ops: rows of landmarks, on any device, eagerly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sglang.srt.layers.attention.hsa.layer_inputs import LayerInputs
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import landmark_repr_fwd
from sglang.srt.layers.attention.hsa.params import layer_params
from sglang.srt.layers.attention.hsa.passes import strict
from sglang.srt.layers.attention.hsa.passes.reference import ReferencePass

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class LandmarkReferencePass(ReferencePass):
    """A pass in decode or extend mode whose rows are tokens and landmarks, of all layers of the model.

    Every layer gives q, k and v of all rows, layers with HSA ``select_q``, too. Those with a sliding window attend it
    exactly. In decode a sequence has one row or, if its token is the last of a page, two, so that it is an extend pass.

    Args: as of ReferencePass.
    """

    def __init__(
        self,
        forward_batch: ForwardBatch,
        pool: PageReprMixin,
        req_to_token: torch.Tensor,
        config: HSAConfig,
        *args,
    ):
        super().__init__(forward_batch, pool, req_to_token, config, *args)
        self.landmark_rows = self.metadata.landmark_rows
        self.decode = False  # one row of a sequence, or two
        # Nothing but its landmark can represent a page, and no page weighs anything without.
        self.own = torch.zeros_like(self.metadata.page_complete)
        slots = self.out_cache_loc[self.landmark_rows.last_tokens]
        self.completed_pages = slots // config.page_size  # [M]
        versions = pool.versions_at(pool.built_at(forward_batch))
        self.completed_versions = versions[self.completed_pages]

    def write_representations(
        self, layer: RadixAttention, inputs: LayerInputs = LayerInputs()
    ) -> None:
        if self.config.strict:
            strict.check_page_table(self.metadata, self.out_cache_loc, self.pool)
        layer_id = layer.layer_id
        pages = self.completed_pages
        if len(pages):
            reprs, bias = landmark_repr_fwd(
                self.pool.get_key_buffer(layer_id),
                pages,
                inputs.select_q[self.landmark_rows.landmarks],
                layer_params(layer, self.pool, self.config),
            )
            self.pool.save_chunk_repr(
                layer_id, pages, reprs, self.completed_versions, bias
            )
            self.counters.add("reprs_written", len(pages))
        if self.config.strict:
            strict.check_all_represented(self.metadata, self.pool, layer_id)

    def count_rows(self, selected: torch.Tensor, valid: torch.Tensor) -> None:
        super().count_rows(selected, valid)
        missing = self.metadata.page_complete & ~valid
        self.counters.add("reprs_missing", missing.sum())
        self.counters.add("rows_landmark", len(self.landmark_rows.landmarks))
