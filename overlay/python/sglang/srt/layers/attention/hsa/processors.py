# SPDX-License-Identifier: Apache-2.0
"""What a device can do at once: the launches of HSA are sized by it."""

from __future__ import annotations

import functools

import torch

INTERPRETED = (
    4  # enough for several programs to share a row under the Triton interpreter
)


def num_processors(device: torch.device | str) -> int:
    """Multiprocessors of a CUDA device; a small constant elsewhere."""
    if torch.device(device).type != "cuda":
        return INTERPRETED
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.lru_cache
def starts_early(device: torch.device) -> bool:
    """Whether a kernel may be launched on the device before the one that it waits for has ended (from Hopper on)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
