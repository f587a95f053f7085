# SPDX-License-Identifier: Apache-2.0
"""How many programs a device runs at once: what the launches of HSA are sized by."""

from __future__ import annotations

import torch

INTERPRETED = (
    4  # enough for several programs to share a row under the Triton interpreter
)


def num_processors(device: torch.device | str) -> int:
    """Multiprocessors of a CUDA device; a small constant elsewhere."""
    if torch.device(device).type != "cuda":
        return INTERPRETED
    return torch.cuda.get_device_properties(device).multi_processor_count
