# SPDX-License-Identifier: Apache-2.0
"""``engine_client.py`` that reads images on a CPU without sgl_kernel's CPU kernels.

``python vision_child.py JOB.json RESULT.json``

SGLang's processor of Qwen's images imports the classes of Qwen 3.5, which look for these kernels at import. Here they have a
name and nothing behind it: a call fails.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

KERNELS = (
    "fused_sigmoid_mul_cpu",
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
)
NAMES = torch.library.Library("sgl_kernel", "FRAGMENT")
for kernel in KERNELS:
    NAMES.define(f"{kernel}() -> ()")

from engine_client import main  # noqa: E402, imports nothing of SGLang before it runs

if __name__ == "__main__":
    main(*sys.argv[1:])
