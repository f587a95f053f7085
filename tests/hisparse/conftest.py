# SPDX-License-Identifier: Apache-2.0
"""Makes this folder's helpers importable, where the release is one that the [HiSparse] series is for."""

import sys
from pathlib import Path

import pytest

import sglang

sys.path.insert(0, str(Path(__file__).parent))
THERE = (Path(sglang.__file__).parent / "jit_kernel" / "csrc" / "hisparse.cuh").exists()  # elsewhere in later releases


class Elsewhere(pytest.Module):
    def collect(self):
        pytest.skip("later releases have HiSparse of their own: run it with --release v0.5.10rc0", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return None if THERE else Elsewhere.from_parent(parent, path=module_path)
