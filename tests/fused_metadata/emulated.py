# SPDX-License-Identifier: Apache-2.0
"""Builds fused_metadata_precompute_and_broadcast.cuh with the host compiler, launcher and kernels, to run on CPU tensors."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from cuda_build import HEADERS, PACKAGE

KERNEL = PACKAGE / "jit_kernel" / "csrc" / "elementwise" / "fused_metadata_precompute_and_broadcast.cuh"
SHIM = Path(__file__).parent / "emulation"
NAME = KERNEL.stem
EXPORT = "TVM_FFI_DLL_EXPORT_TYPED_FUNC(%s, (%s));\n"


@functools.cache
def emulated_module(kernel: Path = KERNEL):
    """The launcher by its usual name, and ``set_order(seed)`` and ``count_launches()`` of the emulation."""
    tvm_ffi = pytest.importorskip("tvm_ffi", reason="apache-tvm-ffi is not installed")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if not compiler:
        pytest.skip("no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        source.write_text(
            f'#include "{kernel}"\n#include <tvm/ffi/function.h>\n'
            + EXPORT % (NAME, "FusedMetadataKernel::run")
            + EXPORT % ("set_order", "emulation::set_order")
            + EXPORT % ("count_launches", "emulation::count_launches")
        )
        # The stand-in comes before the header of its name in the tree.
        includes = (SHIM, HEADERS, tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path())
        # FORTIFY's longjmp refuses to change stacks.
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"]
        if "namespace sglang" in (HEADERS / "sgl_kernel" / "utils.h").read_text():
            flags.append("-DHELPERS_IN_SGLANG")
        subprocess.run(
            [compiler, *flags, *(f"-I{path}" for path in includes), source, tvm_ffi.libinfo.find_libtvm_ffi(), "-o", library],
            check=True,
        )
        return tvm_ffi.load_module(str(library))
