# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share that have nothing to measure without a CUDA device."""

from __future__ import annotations

import argparse
import statistics

import torch
from torch.autograd import DeviceType


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed arguments; ends with one line and status 2 where torch sees no CUDA device."""
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, f"{parser.prog}: error: this needs a CUDA device, and torch sees none here\n")
    return args


def milliseconds(launch, repeats: int, before=lambda: None) -> tuple[float, float]:
    """Median and spread of what ``launch`` puts on the present stream; ``before`` and the first two runs are not counted."""
    times = []
    for _ in range(repeats + 2):
        before()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        launch()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    times = times[2:]
    return statistics.median(times), max(times) - min(times)


def launches(run) -> int:
    """What a call puts on the device, kernels and copies, as the profiler counts it; all of it is compiled before."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profile.events())
