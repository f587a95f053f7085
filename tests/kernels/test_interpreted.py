# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels' own tests, under the interpreter, on hosts without a GPU."""

import re
from pathlib import Path

import pytest
import torch

import sglang

KERNEL_TESTS = {
    "test_hsa_decode_kernels.py": 43,
    "test_hsa_decode_selection.py": 15,
    "test_hsa_draft_rows.py": 10,
    "test_hsa_extend_kernels.py": 55,
    "test_hsa_extend_ranking.py": 24,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels' tests run on the GPU itself")
@pytest.mark.parametrize("name,count", KERNEL_TESTS.items())
def test_kernels(child, name, count):
    """A child process, because TRITON_INTERPRET has to be set before Triton is imported."""
    path = Path(sglang.__file__).parent / "test" / "attention" / name
    output = child(["-m", "pytest", "-q", "-p", "no:cacheprovider", path], timeout=1800, TRITON_INTERPRET="1")
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) >= count, output[-2000:]
