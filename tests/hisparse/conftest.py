# SPDX-License-Identifier: Apache-2.0
"""Makes this folder's helpers importable, where the release is one that the [HiSparse] series is for."""

import sys
from pathlib import Path

from elsewhere import skip_modules

import sglang

sys.path.insert(0, str(Path(__file__).parent))
THERE = (Path(sglang.__file__).parent / "jit_kernel" / "csrc" / "hisparse.cuh").exists()  # elsewhere in later releases
if not THERE:
    pytest_pycollect_makemodule = skip_modules("later releases have HiSparse of their own: run it with --release v0.5.10rc0")
