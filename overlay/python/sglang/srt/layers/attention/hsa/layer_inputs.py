# SPDX-License-Identifier: Apache-2.0
"""What a layer of a model passes to its attention beside q, k and v, and what of it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

import torch

from sglang.srt.layers.attention.hsa.config import FIELD_PREFIX, HSAConfig

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention


class LayerInputs(NamedTuple):
    """What a layer passes to its attention beside q, k and v.

    Attributes:
        mask_last_slot: the last slot of a page is no key (see ``layout``).
        select_q: queries that choose pages, rotated ``[T, H_q, D]``; None for those that attend.
        sink_logits: as in ``AttentionParams``.
    """

    mask_last_slot: bool = False
    select_q: Optional[torch.Tensor] = None
    sink_logits: Optional[torch.Tensor] = None


def refuse_inputs(
    layer: RadixAttention,
    config: HSAConfig,
    sparse: bool,
    here: bool,
    inputs: LayerInputs,
    kwargs: dict,
) -> None:
    """Raise NotImplementedError for what a layer passes to its attention that is not computed.

    Args:
        sparse: whether the layer uses HSA; here: whether HSA's pass attends it, sparsely or not.
    """
    passed = [name for name in kwargs if name.startswith(FIELD_PREFIX)]
    own = dict(
        mask_last_slot=inputs.mask_last_slot, select_q=inputs.select_q is not None
    )
    given = [FIELD_PREFIX + name for name, value in own.items() if value]
    if not sparse and (passed or given):
        passed += given
        raise NotImplementedError(
            f"layer {layer.layer_id} passes {', '.join(passed)} to its attention, which is dense and masks nothing; "
            "name the layer in --hsa-layers or leave them out."
        )
    if not config.has_landmark_rows:
        passed += [name for name in given if name != "hsa_mask_last_slot"]
    if passed:
        raise NotImplementedError(
            f"layer {layer.layer_id} passes {', '.join(passed)} to its attention, but of such arguments HSA knows "
            "hsa_mask_last_slot alone, and with rows of landmarks hsa_select_q; leave them out."
        )
    if here and kwargs:
        raise NotImplementedError(
            f"layer {layer.layer_id} passes {', '.join(kwargs)} to its attention, which HSA does not support; "
            "choose another --attention-backend."
        )
