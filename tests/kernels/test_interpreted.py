# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels' own tests, under the interpreter, on hosts without a GPU."""

import re
from pathlib import Path

import pytest
import torch

import sglang

# Files that a process runs after one another, and how many of their tests pass: those of a GPU skip.
KERNEL_TESTS = {
    "decode": {
        "test_hsa_decode_kernels.py": 48,
        "test_hsa_landmark_decode.py": 16,
        "test_hsa_decode_selection.py": 15,
        "test_hsa_dense_layers.py": 16,
        "test_hsa_draft_rows.py": 12,
        "test_hsa_window_layers.py": 14,
        "test_hils_norm_rotary.py": 34,
    },
    "extend": {
        "test_hsa_batch_invariance.py": 14,
        "test_hsa_dense_prefill.py": 20,
        "test_hsa_extend_kernels.py": 45,
        "test_hsa_extend_ranking.py": 24,
        "test_hsa_extend_selection.py": 7,
    },
}
HERE = Path(__file__).parent
FOLDER = Path(sglang.__file__).parent / "test" / "attention"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels' tests run on the GPU itself")
@pytest.mark.parametrize("group", KERNEL_TESTS)
def test_kernels(child, group, monkeypatch):
    """A child process, because TRITON_INTERPRET has to be set before Triton is imported."""
    monkeypatch.syspath_prepend(HERE)  # of the child's plugin
    files = [FOLDER / name for name in KERNEL_TESTS[group]]
    options = ["-v", "-p", "no:cacheprovider", "-p", "quick_interpreter"]
    output = child(["-m", "pytest", *options, *files], timeout=1800, TRITON_INTERPRET="1")
    for name, count in KERNEL_TESTS[group].items():
        passed = len(re.findall(rf"{name}::.* PASSED", output))
        assert passed >= count, f"{passed} tests of {name} passed: {output[-2000:]}"


def test_no_file_is_forgotten():
    """Every file of tests that asks for the interpreter is run under it."""
    files = [*FOLDER.glob("test_hsa_*.py"), *FOLDER.glob("test_hils_*.py")]
    asks = {path.name for path in files if "TRITON_INTERPRET" in path.read_text()}
    known = {name for group in KERNEL_TESTS.values() for name in group}
    assert asks - {"test_hsa_backend_dense_integration.py"} == known
