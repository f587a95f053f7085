# SPDX-License-Identifier: Apache-2.0
"""Builds fused_metadata_precompute_and_broadcast.cuh with the host compiler, launcher and kernels, to run on CPU tensors."""

import functools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

import sglang

JIT = Path(sglang.__file__).parent / "jit_kernel"
KERNEL = JIT / "csrc" / "elementwise" / "fused_metadata_precompute_and_broadcast.cuh"
SHIM = Path(__file__).parent / "emulation"
NAME = KERNEL.stem


def _export(name, function):
    return f"TVM_FFI_DLL_EXPORT_TYPED_FUNC({name}, ({function}));"


@functools.cache
def emulated_module(kernel: Path = KERNEL):
    """The launcher by its usual name, and ``set_order(seed)`` and ``count_launches()`` of the emulation."""
    cpp = pytest.importorskip("tvm_ffi.cpp", reason="apache-tvm-ffi is not installed")
    if not (shutil.which("ninja") and shutil.which(os.environ.get("CXX", "g++"))):
        pytest.skip("needs ninja and a host C++ compiler")
    return cpp.load_inline(
        f"emulated_{kernel.stem}",
        cpp_sources=[
            f'#include "{kernel}"',
            _export(NAME, "FusedMetadataKernel::run"),
            _export("set_order", "emulation::set_order"),
            _export("count_launches", "emulation::count_launches"),
        ],
        # Without FORTIFY, whose longjmp refuses to change stacks.
        extra_cflags=["-std=c++20", "-O1", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"],
        extra_include_paths=[str(SHIM), str(JIT / "include")],
        build_directory=tempfile.mkdtemp(prefix="emulated-"),
    )
