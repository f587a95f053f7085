# SPDX-License-Identifier: Apache-2.0
"""Reference of the page_table op: physical pages of sequences from the token table."""

from __future__ import annotations

import torch


def build_page_table(page_table_1: torch.Tensor, page_size: int) -> torch.Tensor:
    """Physical page of each logical page.

    Args:
        page_table_1: slot of each position ``[B, max_seqlen]`` int32; pages are page-aligned.
        page_size: slots per page.

    Returns:
        ``[B, ceil(max_seqlen / page_size)]`` int32; undefined past a sequence's end.
    """
    return page_table_1[:, ::page_size] // page_size
