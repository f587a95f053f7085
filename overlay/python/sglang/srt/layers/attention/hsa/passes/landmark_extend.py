# SPDX-License-Identifier: Apache-2.0
"""The extend pass of checkpoints that were trained for HSA on Triton kernels: rows of tokens and landmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

import torch

from sglang.srt.layers.attention.hsa.landmark_rows import plan_landmark_rows
from sglang.srt.layers.attention.hsa.layer_inputs import LayerInputs
from sglang.srt.layers.attention.hsa.layout import num_places
from sglang.srt.layers.attention.hsa.ops.page_repr.landmark_kernel import (
    write_landmark_pages,
)
from sglang.srt.layers.attention.hsa.params import layer_params
from sglang.srt.layers.attention.hsa.passes.extend import ExtendPass

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class LandmarkExtendPass(ExtendPass):
    """New tokens of some sequences and the landmarks of the pages that they complete, in all layers of the model.

    Args:
        forward_batch: the batch; its lengths on the host must be set.
        Others as of ExtendPass.
    """

    def __init__(self, forward_batch: ForwardBatch, *args) -> None:
        super().__init__(forward_batch, *args)
        self.out_slots = forward_batch.out_cache_loc
        self.landmark_rows = plan_landmark_rows(
            forward_batch.seq_lens_cpu.numpy().astype("int64"),
            torch.as_tensor(forward_batch.extend_seq_lens_cpu).numpy().astype("int64"),
            self.config.page_size,
            self.out_slots.device,
        )

    def _prefix_and_rows(
        self, seq_lens: torch.Tensor, new_lens: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        prefix = num_places(seq_lens - new_lens, self.config.page_size)
        return prefix, num_places(seq_lens, self.config.page_size) - prefix

    def write_representations(
        self, layer: RadixAttention, inputs: LayerInputs = LayerInputs()
    ) -> None:
        write_landmark_pages(
            inputs.select_q,
            self.pool.layer_cache(layer.layer_id, self.page_version),
            self.landmark_rows,
            self.out_slots,
            self.counters.values,
            layer_params(layer, self.pool, self.config),
        )
