# SPDX-License-Identifier: Apache-2.0
"""What a device reaches at best: the measure that rooflines are drawn with."""

from __future__ import annotations

from typing import Callable, Dict

import torch
from torch.utils.benchmark import Timer


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Dict[str, float]:
    """Bytes/s of a read or a copy, the larger, and flop/s of a matrix product, measured now."""
    cpu = device.type == "cpu"
    data = torch.ones((1 << 27 if cpu else 1 << 30) // 4, device=device)
    target = torch.empty_like(data)
    n = 512 if cpu else 8192
    a = torch.ones(n, n, device=device, dtype=dtype)
    copied = 2 * data.nbytes / best_time(lambda: target.copy_(data))
    read = data.nbytes / best_time(data.sum)
    flops = 2 * n**3 / best_time(lambda: a @ a)
    return {"bytes_per_s": max(read, copied), "flops": flops}


def best_time(call: Callable) -> float:
    """Least seconds of a call, the device's work included."""
    timer = Timer("f()", globals={"f": call}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=0.2).times)
