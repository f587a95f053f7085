# SPDX-License-Identifier: Apache-2.0
"""Indexing of caches of every dtype."""

from __future__ import annotations

import torch


def take(buffer: torch.Tensor, *index: torch.Tensor) -> torch.Tensor:
    """``buffer[index]``, also for 8-bit floats, which torch does not index on a CPU."""
    if buffer.dtype.itemsize == 1:
        return buffer.view(torch.uint8)[index].view(buffer.dtype)
    return buffer[index]
