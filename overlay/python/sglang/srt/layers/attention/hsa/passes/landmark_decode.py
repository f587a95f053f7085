# SPDX-License-Identifier: Apache-2.0
"""The decode pass of checkpoints that were trained for HSA on Triton kernels, for CUDA graphs to hold.

Each sequence has two rows in every step, its token and the landmark of the page that the token may complete. A landmark's
row without a page to complete attends nothing and writes nothing, so that steps are alike, whatever their lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

import torch

from sglang.srt.layers.attention.hsa.landmark_rows import (
    LandmarkRows,
    decode_landmark_rows,
)
from sglang.srt.layers.attention.hsa.layer_inputs import LayerInputs
from sglang.srt.layers.attention.hsa.ops.common import padded_width
from sglang.srt.layers.attention.hsa.ops.page_repr.landmark_kernel import (
    write_landmark_pages,
)
from sglang.srt.layers.attention.hsa.ops.page_table.landmark_lengths import (
    landmark_lengths,
)
from sglang.srt.layers.attention.hsa.ops.select.prior_decode import ROWS_PER_SEQUENCE
from sglang.srt.layers.attention.hsa.params import layer_params
from sglang.srt.layers.attention.hsa.passes.base import AttentionPass, WindowCache
from sglang.srt.layers.attention.hsa.passes.decode_buffers import StaticPasses
from sglang.srt.layers.attention.hsa.passes.split_decode import SplitDecode

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class LandmarkBuffers(NamedTuple):
    """What steps of up to so many sequences write.

    Attributes:
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        window: as of ``write_tables``.
        lengths: places that each row sees, first all tokens, then all landmarks ``[2 * B]`` int32.
        attention: scratch and launches of a step.
    """

    page_table: torch.Tensor
    window: WindowCache
    lengths: torch.Tensor
    attention: SplitDecode

    @property
    def rows(self) -> int:
        return len(self.page_table)


class LandmarkDecodeState(StaticPasses):
    """What the decode passes of one model share; they attend all layers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = [LandmarkDecodePass(self)]

    def _make_buffers(self, rows: int) -> LandmarkBuffers:
        device = self.req_to_token.device
        width = padded_width(self.size.max_pages)
        table = torch.zeros((rows, width), dtype=torch.int32, device=device)
        # A landmark has a row in every step, and seldom something to do.
        size = self.size._replace(
            rows=ROWS_PER_SEQUENCE * rows, rows_per_busy_row=ROWS_PER_SEQUENCE
        )
        return LandmarkBuffers(
            table,
            self.make_window(rows),
            torch.zeros(size.rows, dtype=torch.int32, device=device),
            SplitDecode(self.config, self.counters, size, device),
        )

    def begin(self, forward_batch: ForwardBatch) -> None:
        self.steps[0].begin(forward_batch)


class LandmarkDecodePass(AttentionPass):
    """A step with one new token of each sequence, whose lengths the host does not read."""

    def __init__(self, state: LandmarkDecodeState):
        self.state, self.layers = state, state.layers
        self.rows, self.max_candidates = 0, state.size.max_pages

    def begin(self, forward_batch: ForwardBatch) -> None:
        """Write page versions, page table and lengths."""
        state = self.state
        # Versions before the table, as in ``build_metadata``.
        state.pool.versions_at(state.built_at, out=state.page_version)
        seq_lens = forward_batch.seq_lens
        requests = len(seq_lens)
        buffers = state.buffers_for(requests)
        self.attention = buffers.attention
        self.attention.begin()
        self.page_table, self.windows = state.write_tables(
            forward_batch, buffers.page_table, buffers.window
        )
        lengths = buffers.lengths[: ROWS_PER_SEQUENCE * requests]
        self.lengths = landmark_lengths(seq_lens, lengths, state.config.page_size)

    def rows_of(self, forward_batch: ForwardBatch) -> Optional[LandmarkRows]:
        if not self.state.begins_early:
            self.begin(forward_batch)
        self.out_slots = forward_batch.out_cache_loc
        self.landmark_rows = decode_landmark_rows(forward_batch.seq_lens)
        return self.landmark_rows

    def write_representations(
        self, layer: RadixAttention, inputs: LayerInputs = LayerInputs()
    ) -> None:
        state = self.state
        write_landmark_pages(
            inputs.select_q,
            state.pool.layer_cache(layer.layer_id, state.page_version),
            self.landmark_rows,
            self.out_slots,
            state.counters.values,
            layer_params(layer, state.pool, state.config),
            self.lengths,
        )

    def attend(
        self,
        q: torch.Tensor,
        layer: RadixAttention,
        inputs: LayerInputs = LayerInputs(),
    ) -> torch.Tensor:
        state = self.state
        cache = state.pool.layer_cache(layer.layer_id, state.page_version)
        params = layer_params(layer, state.pool, state.config, inputs=inputs)
        if params.exact_window:
            return self.attention.attention.launch(
                q, cache, self.windows.page_table, self.lengths, params
            )
        return self.attention.launch(
            q, cache, self.page_table, self.lengths, params, select_q=inputs.select_q
        )
