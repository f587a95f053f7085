# SPDX-License-Identifier: Apache-2.0
"""Compiles hisparse.cuh the way ``sglang.jit_kernel`` does, for a device that need not be there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hisparse_release import KERNELS, OLDEST, PACKAGE, RELEASE

KERNEL = PACKAGE / KERNELS[RELEASE] if RELEASE else None
HEADERS = PACKAGE / "kernels" / "jit" / "include"  # since 0.5.17
if not HEADERS.exists():
    HEADERS = PACKAGE / "jit_kernel" / "include"


def nvcc() -> str:
    toolkit = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=toolkit)
    if not found:
        pytest.skip("nvcc is not installed")
    return found


def compile_sm90(folder: Path, source: str, *more: str, kernel: Path = KERNEL) -> subprocess.CompletedProcess:
    """Compiles a file that includes ``kernel`` and then has ``source``; does not run it."""
    tvm_ffi = pytest.importorskip("tvm_ffi", reason="the headers of tvm_ffi are not installed")
    file = folder / "test.cu"
    file.write_text(f'#include "{kernel}"\n{source}\n')
    includes = {HEADERS, tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()}
    return subprocess.run(
        [
            nvcc(), "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-DSGL_CUDA_ARCH=900",
            "-gencode=arch=compute_90,code=sm_90", "-Xcompiler=-fPIC", *(f"-I{path}" for path in sorted(map(str, includes))),
            *more, "-c", str(file), "-o", str(folder / "test.o"),
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip


def launcher(top_k: int, buffer: int, threads: int = 1024, mla: bool = True) -> str:
    """C++ that instantiates the launcher, hence its kernels: ``KERNELS_PER_LAUNCHER``."""
    arguments = f"{threads}, {top_k}, {buffer}, {str(mla).lower()}"
    namespace = ""
    if not OLDEST:  # no page layout of DeepSeek V4, tokens instead of blocks, no plan of misses, copies
        namespace, arguments = "sglang::", f"{arguments}, false, 1, false, false, false"
    return f"void* use_{top_k}_{buffer}_{threads}_{mla} = (void*)&{namespace}load_cache_to_device_buffer<{arguments}>;"


# For int32 and int64 lengths; in v0.5.23 for int32 and int64 rows, too.
KERNELS_PER_LAUNCHER = 2 if OLDEST else 4
