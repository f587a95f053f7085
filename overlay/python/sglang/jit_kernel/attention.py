# SPDX-License-Identifier: Apache-2.0
"""JIT kernels around attention, by the names callers import."""

from sglang.jit_kernel.fused_metadata_precompute_and_broadcast import (
    can_use_fused_metadata_precompute_and_broadcast,
    fused_metadata_precompute_and_broadcast_cuda,
)

__all__ = [
    "can_use_fused_metadata_precompute_and_broadcast",
    "fused_metadata_precompute_and_broadcast_cuda",
]
