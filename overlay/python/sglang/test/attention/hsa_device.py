# SPDX-License-Identifier: Apache-2.0
"""Where tests of Triton kernels run: natively on a CUDA device, or interpreted on a CPU under TRITON_INTERPRET=1."""

import os

import pytest
import torch

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
ATOL = 1e-4 if ON_GPU else 3e-5  # of float32 outputs against the oracle
needs_kernels = pytest.mark.skipif(
    not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a CUDA device or TRITON_INTERPRET=1",
)
