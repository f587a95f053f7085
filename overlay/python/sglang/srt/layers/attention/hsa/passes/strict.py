# SPDX-License-Identifier: Apache-2.0
"""The checks of ``--hsa-strict``: what the versions cannot heal stops the server instead of giving wrong answers.

Versions already protect against pages that were recycled, restored or half written. These checks find damage: a
page table, a version or a representation that something overwrote. Each costs host syncs and recomputation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hsa.params import AttentionParams
    from sglang.srt.layers.attention.hsa.passes.metadata import HSAMetadata
    from sglang.srt.mem_cache.page_repr_pool import PageReprMixin


def check_page_table(
    md: HSAMetadata, out_cache_loc: torch.Tensor, pool: PageReprMixin
) -> None:
    """Raise RuntimeError unless every live position has the slot that its page and the batch say.

    Args:
        md: metadata of the forward pass.
        out_cache_loc: slots of the batch's new tokens ``[T]``.
        pool: pool whose versions the metadata took.
    """
    device = md.page_table_1.device
    position = torch.arange(md.page_table_1.shape[1], device=device)
    live = position < md.cache_seqlens_int32.unsqueeze(1)  # [B, max_seqlen_k]

    pages = md.real_page_table.repeat_interleave(md.page_size, dim=1)
    slots = (pages * md.page_size)[:, : len(position)] + position % md.page_size
    _require(
        not (live & (md.page_table_1 != slots)).any(),
        "the slots of a page are not consecutive in the page table",
    )
    _require(
        not (live & (pages[:, : len(position)] == 0)).any(),
        "the page table names the padding page",
    )

    new = live & (position >= (md.cache_seqlens_int32 - md.new_tokens).unsqueeze(1))
    _require(
        torch.equal(md.page_table_1[new].long(), out_cache_loc.long()),
        "the page table and the batch disagree on where the new tokens go",
    )

    from_future = pool.get_page_version(md.real_page_table) > pool.page_handouts
    _require(
        not (live[:, :: md.page_size] & from_future).any(),
        "a page has a version that was never given out",
    )


def check_representations(
    md: HSAMetadata,
    pool: PageReprMixin,
    layer_id: int,
    params: AttentionParams,
) -> None:
    """Raise RuntimeError unless every complete page has the representation that its keys give.

    Args:
        md: metadata of the forward pass, after the layer wrote its representations.
        pool: pool that keeps them.
        layer_id: a layer that uses HSA.
        params: of the layer.
    """
    pages = check_all_represented(md, pool, layer_id)
    expected = page_repr_fwd(
        pool.get_key_buffer(layer_id),
        pages,
        params,
        pool.repr_channels_of(layer_id),
    )
    stored = pool.repr_pages(layer_id)[pages.long()]
    same_bits = torch.equal(
        stored.contiguous().view(torch.uint8),
        expected.to(stored.dtype).view(torch.uint8),
    )
    _require(
        same_bits,
        f"layer {layer_id} has a representation that differs from its page's keys",
    )


def check_all_represented(
    md: HSAMetadata, pool: PageReprMixin, layer_id: int
) -> torch.Tensor:
    """Complete pages ``[N]`` int32. Raise RuntimeError unless each has a valid representation; arguments as above."""
    pages = md.real_page_table[md.page_complete]
    valid = pool.repr_valid(layer_id, pages, md.page_version[md.page_complete])
    _require(
        valid.all(),
        f"layer {layer_id} has complete pages without a valid representation",
    )
    return pages


def _require(ok: bool | torch.Tensor, what: str) -> None:
    if not ok:
        raise RuntimeError(
            f"HSA: {what}; this is a bug, please report it with the server's arguments."
        )
