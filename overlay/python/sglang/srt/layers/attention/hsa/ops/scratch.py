# SPDX-License-Identifier: Apache-2.0
"""Scratch memory of extend passes, which take turns with it."""

from __future__ import annotations

import math
from typing import Dict, Tuple

import torch


class Scratch:
    """Buffers by name for one user at a time, such as the passes of one stream.

    A buffer grows when a larger one is taken, by half at least, and is never given back. So a long prompt, whose chunks
    need more and more, allocates a few times, and a pass like an earlier one does not.
    """

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self.buffers: Dict[str, torch.Tensor] = {}

    def take(
        self, name: str, shape: Tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """An undefined tensor, valid until the next one of this name is taken."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self.buffers.get(name)
        if buffer is None or len(buffer) < size:
            grown = size if buffer is None else max(size, 3 * len(buffer) // 2)
            del buffer
            self.buffers.pop(
                name, None
            )  # before the larger one, which may be its memory
            buffer = torch.empty(grown, dtype=torch.uint8, device=self.device)
            self.buffers[name] = buffer
        return buffer[:size].view(dtype).view(shape)

    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(map(len, self.buffers.values()))
