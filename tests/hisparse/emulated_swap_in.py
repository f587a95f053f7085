# SPDX-License-Identifier: Apache-2.0
"""The swap-in kernel's own source on a CPU: threads are fibers, see warps.h."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hisparse_release import OLDEST

HERE = Path(__file__).parent

LAUNCHER = """
extern "C" int run(int blocks, int backwards, %(pointers)s, %(numbers)s) {
  using namespace emulated;
  gridDim.x = blocks;
  blockDim.x = %(threads)d;
  for (int i = 0; i < blocks; ++i) {
    blockIdx.x = backwards ? blocks - 1 - i : i;
    const bool well = emulation::run_block(%(threads)d, SmemLayout<%(top_k)d, %(buffer)d>::BYTES, backwards, [&] {
      load_cache_to_device_buffer_kernel<%(kernel)s>(%(arguments)s);
    });
    if (!well) return 1;
  }
  return 0;
}
"""
# (type, argument), in the kernel's order.
POINTERS = [
    ("const int32_t", "top_k"), ("int32_t", "tokens"), ("const int64_t", "host_locs"), ("const int32_t", "locs"),
    ("const void", "host_k"), ("const void", "host_v"), ("void", "device_k"), ("void", "device_v"), ("int32_t", "out"),
    ("const int64_t", "rows"), ("const int64_t", "lengths"), ("int16_t", "lru"), ("const int32_t", "real"),
]  # fmt: skip
NUMBERS = ["buffer_stride", "host_stride", "lru_stride", "top_k_stride", "out_stride", "page_size", "item_bytes"]
# The PTX of the copies: loads and stores of one and of two words.
PTX = (
    (r'"ld\.[^"]*" : "=l"\((.*?)\), "=l"\((.*?)\) : "l"\((.*?)\) : "memory"', r"\1 = (\3)[0], \2 = (\3)[1]"),
    (r'"ld\.[^"]*" : "=l"\((.*?)\) : "l"\((.*?)\) : "memory"', r"\1 = *(\2)"),
    (r'"st\.[^"]*" ::"l"\((.*?)\), "l"\((.*?)\), "l"\((.*?)\) : "memory"', r"(\1)[0] = \2, (\1)[1] = \3"),
    (r'"st\.[^"]*" ::"l"\((.*?)\), "l"\((.*?)\) : "memory"', r"*(\1) = \2"),
)


def kernel_text(source: Path) -> str:
    """The swap-in kernel and what it calls, in C++ for a host."""
    text = source.read_text()
    begin = text.index("\nnamespace ") + 1
    begin = text.index("\n", begin)
    kernel = text.index("__global__ void load_cache_to_device_buffer_kernel(")
    text = text[begin : text.index("\n}\n", kernel) + 3]
    # Between them, a kernel that copies DeepSeek V4's pages.
    pages = r"template <int BLOCK_SIZE>\n__global__ .*?\n}\n\ntemplate <int BLOCK_SIZE>\nvoid .*?\n}\n"
    text = re.sub(pages, "", text, flags=re.S)
    text, found = re.subn(r"extern __shared__ .*char smem_raw\[\];", "char* smem_raw = emulation::shared();", text)
    assert found == 1, "the kernel has its shared memory elsewhere"
    for statement, meaning in PTX:
        text = re.sub(rf"asm volatile\({statement}\)", meaning, text)
    assert "asm" not in text and "tvm::" not in text
    return text


def compile_emulated(folder: Path, source: Path, top_k: int, buffer: int, threads: int):
    """What ``compile_kernel`` gives, for tensors on the CPU and int64 lengths; ``source`` is a hisparse.cuh."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler")
    kernel, arguments = f"{threads}, {top_k}, {buffer}, true, int64_t", [name for _, name in POINTERS] + NUMBERS
    if not OLDEST:
        kernel = f"{threads}, {top_k}, {buffer}, true, false, 1, false, false, false, int64_t, int64_t"
        arguments += ["nullptr", "nullptr", "nullptr", "0"]
    launcher = LAUNCHER % dict(
        pointers=", ".join(f"{kind}* {name}" for kind, name in POINTERS), numbers=", ".join(f"int64_t {n}" for n in NUMBERS),
        threads=threads, top_k=top_k, buffer=buffer, kernel=kernel, arguments=", ".join(arguments),
    )  # fmt: skip
    file = folder / "emulated.cpp"
    file.write_text(f'#include "warps.h"\nnamespace emulated {{\n{kernel_text(source)}\n}}\n{launcher}')
    library = folder / "emulated.so"
    command = [compiler, "-std=c++20", "-O1", "-w", "-shared", "-fPIC", f"-I{HERE}", "-o", library, file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Emulated(ctypes.CDLL(str(library)))


class Emulated:
    """Takes the place of the module that ``load_jit`` makes."""

    def __init__(self, library):
        self.library, self.backwards = library, 0

    def load_cache_to_device_buffer(
        self, top_k, tokens, host_locs, locs, host_k, host_v, device_k, device_v, out, rows, lengths, lru, real, page_size,
        item_bytes, *plan,
    ):  # fmt: skip
        tensors = (top_k, tokens, host_locs, locs, host_k, host_v, device_k, device_v, out, rows, lengths, lru, real)
        numbers = (tokens.stride(0), host_locs.size(1), lru.stride(0), top_k.stride(0), out.stride(0), page_size, item_bytes)
        bad = self.library.run(
            len(top_k), self.backwards, *(ctypes.c_void_p(x.data_ptr()) for x in tensors), *map(ctypes.c_int64, numbers)
        )
        assert not bad, "shared memory is written out of bounds, or threads wait for each other"
