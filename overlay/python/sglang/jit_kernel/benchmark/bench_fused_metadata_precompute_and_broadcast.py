# SPDX-License-Identifier: Apache-2.0
"""The fused metadata kernel: all draft steps in one launch against one launch per step."""

import itertools
from typing import Tuple

import numpy as np
import triton
import triton.testing

from sglang.jit_kernel.benchmark.utils import (
    DEFAULT_DEVICE,
    get_benchmark_range,
    run_benchmark,
)
from sglang.jit_kernel.fused_metadata_precompute_and_broadcast import (
    fused_metadata_precompute_and_broadcast_cuda,
)
from sglang.test.ci.ci_register import register_cuda_ci
from sglang.test.fused_metadata_cases import FIELDS, Case

register_cuda_ci(est_time=20, suite="stage-b-kernel-benchmark-1-gpu-large")

LENGTH = 4096
BATCHES = get_benchmark_range(full_range=[1, 16, 64, 256, 512], ci_range=[16])
STEPS = get_benchmark_range(full_range=[1, 3, 5, 8, 16], ci_range=[3])


@triton.testing.perf_report(
    triton.testing.Benchmark(
        x_names=["batch_size", "steps"],
        x_vals=list(itertools.product(BATCHES, STEPS)),
        line_arg="provider",
        line_vals=["fused", "per_step"],
        line_names=["One launch", "One launch per step"],
        styles=[("blue", "--"), ("red", ":")],
        ylabel="us",
        plot_name="fused-metadata-precompute-and-broadcast-performance",
        args={},
    )
)
def benchmark(batch_size: int, steps: int, provider: str) -> Tuple[float, float, float]:
    lengths = np.random.default_rng(0).integers(LENGTH // 2, LENGTH + 1, batch_size)
    case = Case(batch_size, steps, lengths)
    arguments = case.arguments(case.buffers(DEFAULT_DEVICE), DEFAULT_DEVICE)
    calls = [arguments]
    if provider == "per_step":
        calls = [
            {**arguments, **{name: arguments[name][i : i + 1] for name in FIELDS}}
            for i in range(steps)
        ]

    def fn():
        for call in calls:
            fused_metadata_precompute_and_broadcast_cuda(**call)

    return run_benchmark(fn)


if __name__ == "__main__":
    benchmark.run(print_data=True)
