# SPDX-License-Identifier: Apache-2.0
"""fused_metadata_precompute_and_broadcast.cuh compiles for sm_90 as the JIT builds it: all kernels, no spills."""

import re

from cuda_build import compile_sm90
from emulated import EXPORT, KERNEL, NAME

SOURCE = "#include <tvm/ffi/function.h>\n" + EXPORT % (NAME, "FusedMetadataKernel::run")


def test_the_kernels_compile_without_spilling(tmp_path):
    done = compile_sm90(tmp_path, SOURCE, "-Xptxas=-v", "-Werror=all-warnings", kernel=KERNEL)
    assert done.returncode == 0, done.stderr
    # int32 and int64 slots, aligned rows and others. A stack frame would mean that the parameters are copied.
    assert re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", done.stderr) == [("0", "0")] * 4
    # Five blocks of 256 threads share the 65536 registers of a processor.
    assert all(int(n) <= 48 for n in re.findall(r"Used (\d+) registers", done.stderr))
