# SPDX-License-Identifier: Apache-2.0
"""hisparse.cuh compiles for sm_90, and refuses at compile time what cannot work."""

import re

import pytest
from cuda_build import KERNELS_PER_LAUNCHER, compile_sm90, launcher
from hisparse_release import KERNEL, OLDEST, oldest
from pin import pin_file

SIZES = ((512, 512), (2048, 4096), (2048, 32768), (512, 1024, 256), (1024, 2048, 1024, False))
if not OLDEST:
    SIZES += ((2048, 4096, 960),)  # the coordinator's default there


def test_the_kernels_compile_without_spilling(tmp_path):
    """Smallest and largest sizes, both layouts of KV, both dtypes of lengths, small and large blocks."""
    source = "\n".join(launcher(*sizes) for sizes in SIZES)
    done = compile_sm90(tmp_path, source, "-Xptxas=-v", "-Werror=all-warnings")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\d+) bytes spill stores", done.stderr) == ["0"] * (KERNELS_PER_LAUNCHER * len(SIZES))
    # Dynamic memory alone: the compiler sees none, so nothing of it counts against 48 KB.
    assert not re.search(r"\d+ bytes smem", done.stderr)
    # 1024 threads share 65536 registers.
    assert all(int(n) <= 64 for n in re.findall(r"Used (\d+) registers", done.stderr))


@oldest
@pytest.mark.parametrize("sizes, why", (
    ((512, 448), "a device buffer of at least top-k slots"),
    ((512, 32832), "int16"),
    ((0, 64), "at least one token"),
))  # fmt: skip
def test_sizes_that_cannot_work_do_not_compile(tmp_path, sizes, why):
    done = compile_sm90(tmp_path, f"static_assert(SmemLayout<{sizes[0]}, {sizes[1]}>::BYTES > 0);")
    assert done.returncode != 0 and why in done.stderr


@oldest
@pytest.mark.parametrize("buffer, fits", ((7232, True), (7296, False)))
def test_the_pinned_kernel_ends_at_48_kb(tmp_path, buffer, fits):
    """Why dynamic memory: with top-k 2048 one page more is too much for static arrays."""
    done = compile_sm90(tmp_path, launcher(2048, buffer), kernel=pin_file(KERNEL))
    assert (done.returncode == 0) == fits, done.stderr
    assert fits or "too much shared data" in done.stderr
