# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the CPU-host tests."""

from pathlib import Path

import pytest
from cpu_children import run_child

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def triton_interpreter(tmp_path_factory):
    """``triton_interpreter(cases)`` -> what SGLang's Triton kernels return for each ``(op, arguments)``.

    A child process, because TRITON_INTERPRET has to be set before Triton is imported.
    """
    import torch

    def run(cases):
        folder = tmp_path_factory.mktemp("triton")
        source, target = folder / "cases.pt", folder / "results.pt"
        torch.save(cases, source)
        run_child([HERE / "interpreted_kernels.py", source, target], TRITON_INTERPRET="1")
        return torch.load(target)

    return run


@pytest.fixture
def cpu_host(monkeypatch):
    """Make is_cpu() true in this process, as it is in a scheduler that serves on a CPU."""
    from sglang.srt.utils.common import is_cpu

    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    is_cpu.cache_clear()
    yield
    is_cpu.cache_clear()
