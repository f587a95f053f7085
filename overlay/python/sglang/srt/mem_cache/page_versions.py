# SPDX-License-Identifier: Apache-2.0
"""Serial numbers of the hand-outs of pages, by which a representation is believed or not (see ``page_repr_pool``)."""

from __future__ import annotations

from typing import Optional

import torch


class PageVersions:
    """Which hand-out each page belongs to. Pools that share an allocator share this too.

    Attributes:
        version: ``[num_pages]`` int64, the number of the page's hand-out.
        handouts: hand-outs so far, counted on the host.
    """

    def __init__(self, num_pages: int, device: str):
        self.version = torch.ones(num_pages, dtype=torch.int64, device=device)
        self.handouts = 1

    def open(self, slots: torch.Tensor, page_size: int) -> None:
        """Number the pages whose first slot is among ``slots`` ``[N]``; no host sync."""
        self.handouts += 1
        opened = slots % page_size == 0
        self.version.scatter_reduce_(
            0, slots // page_size, opened * self.handouts, "amax"
        )

    def renew(self, pages: Optional[torch.Tensor] = None) -> None:
        """Number ``pages`` ``[N]`` int64, or all of them."""
        self.handouts += 1
        if pages is None:
            self.version.fill_(self.handouts)
        else:
            self.version.index_fill_(0, pages, self.handouts)
