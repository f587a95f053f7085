# SPDX-License-Identifier: Apache-2.0
"""Paged allocation in torch: ``alloc_extend_kernel`` and ``alloc_decode_kernel`` for hosts without Triton.

Each function takes the arguments of the Triton kernel of the same name in ``allocator.py`` and writes the
same slots. The caller removes the used pages from ``free_pages``, as it does after the kernel.

One difference: the functions count pages before they read ``free_pages``, where the kernels read past its
end. On a shortage every output is a distinct negative number, so that the allocator's debug check for
duplicates stays quiet until the allocator returns None.
"""

from __future__ import annotations

import torch


def alloc_extend_torch(
    prefix_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    last_loc: torch.Tensor,
    free_pages: torch.Tensor,
    out_indices: torch.Tensor,
    bs_upper: int,
    page_size: int,
) -> None:
    """Slots for tokens ``prefix_lens[i] .. seq_lens[i] - 1`` of each request, request after request.

    A request first fills the page that holds its last token, then takes whole pages in the order of
    ``free_pages``; requests take their pages in batch order.

    Args:
        prefix_lens: tokens that already have a slot, page aligned or not.  # [B] int64
        seq_lens: tokens after the extension, at least ``prefix_lens``.  # [B] int64
        last_loc: slot of token ``prefix_lens - 1``; -1 for an empty prefix.  # [B] int64 or int32
        free_pages: page numbers, used from the front.  # [F] int64
        out_indices: receives the slots; N = sum(seq_lens - prefix_lens).  # [N] int64
        bs_upper: unused; the kernel's block size.
        page_size: slots in a page.
    """
    extend_lens = seq_lens - prefix_lens  # [B] int64
    pages_before = (prefix_lens + page_size - 1) // page_size  # [B] int64
    new_pages = (seq_lens + page_size - 1) // page_size - pages_before  # [B] int64
    num_tokens = out_indices.numel()
    if new_pages.sum() > free_pages.numel():
        _fill_shortage(out_indices)
        return

    # Per token: its request, and its position in that request.
    request = torch.repeat_interleave(extend_lens, output_size=num_tokens)  # [N] int64
    start = extend_lens.cumsum(0) - extend_lens  # [B] int64
    position = (
        torch.arange(num_tokens, device=out_indices.device)
        + (prefix_lens - start)[request]
    )  # [N] int64

    # Tokens in the old page follow the last slot; this also fills the rest, which is overwritten below.
    out_indices.copy_((last_loc + 1 - prefix_lens)[request] + position)

    page_of_request = (
        position // page_size - pages_before[request]
    )  # [N] int64, negative: the old page
    in_new_page = page_of_request >= 0  # [N] bool
    first_page = new_pages.cumsum(0) - new_pages  # [B] int64
    page = free_pages[(first_page[request] + page_of_request)[in_new_page]]  # [M] int64
    out_indices[in_new_page] = page * page_size + position[in_new_page] % page_size


def alloc_decode_torch(
    seq_lens: torch.Tensor,
    last_loc: torch.Tensor,
    free_pages: torch.Tensor,
    out_indices: torch.Tensor,
    bs_upper: int,
    page_size: int,
) -> None:
    """The slot of token ``seq_lens[i] - 1`` of each request.

    Args:
        seq_lens: tokens including the new one, at least 1.  # [B] int64
        last_loc: slot of token ``seq_lens - 2``; -1 if the new token is the first.  # [B] int64 or int32
        free_pages: page numbers, used from the front.  # [F] int64
        out_indices: receives the slots.  # [B] int64
        bs_upper: unused; the kernel's block size.
        page_size: slots in a page.
    """
    opens_page = (seq_lens - 1) % page_size == 0  # [B] bool
    num_new_pages = opens_page.sum()
    if num_new_pages > free_pages.numel():
        _fill_shortage(out_indices)
        return

    out_indices.copy_(last_loc + 1)
    out_indices[opens_page] = free_pages[:num_new_pages] * page_size


def _fill_shortage(out_indices: torch.Tensor) -> None:
    torch.arange(-1, -1 - out_indices.numel(), -1, out=out_indices)
