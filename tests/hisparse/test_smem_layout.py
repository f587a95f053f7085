# SPDX-License-Identifier: Apache-2.0
"""SmemLayout over all sizes, asked from the C++ struct itself, which a host compiler builds from its text."""

import re
import shutil
import subprocess

import pytest
from cuda_build import KERNEL

PAGE, LARGEST = 64, 32768  # a buffer is whole pages, and int16 numbers its slots
TOP_KS = (512, 1024, 2048)
HOPPER, AMPERE, ADA = 232448, 166912, 101376  # bytes per block on sm_90, sm_80, sm_86 and sm_89 (CUDA programming guide)
FIELDS = ("TOP_K_TOKENS", "CHUNK_OFFSET", "EVICT_CHUNK_OFFSET", "HASH_KEYS", "TOTAL_HITS", "NEWEST_HIT", "LRU_SLOTS_OUT",
          "HASH_VALS", "BYTES", "HASH_SIZE", "NUM_TOKEN_CHUNKS", "NUM_BUFFER_CHUNKS")  # fmt: skip

PROGRAM = """
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <utility>
constexpr int WARP_SIZE = 32;
%s
template <int K, int B>
void print() {
  using L = SmemLayout<K, B>;
  const unsigned long values[] = {%s};
  std::printf("%%d %%d", K, B);
  for (auto value : values) std::printf(" %%lu", value);
  std::puts("");
}
template <int K, int... I>
void print_all(std::integer_sequence<int, I...>) {
  (print<K, K + I * %d>(), ...);
}
int main() {
%s
}
"""


def structure():
    text = KERNEL.read_text()
    assert "constexpr int WARP_SIZE = 32;" in text
    found = re.findall(r"^template <int NUM_TOP_K, int HOT_BUFFER_SIZE>\nstruct SmemLayout \{\n.*?^\};\n", text, re.M | re.S)
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """{(top-k, buffer): {field: value}} of every supported pair."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("layout")
    calls = [
        f"  print_all<{k}>(std::make_integer_sequence<int, {(LARGEST - k) // PAGE + 1}>());" for k in TOP_KS
    ] + ["  print<9728, 32768>(); print<10240, 32768>();"]
    fields = ", ".join(f"L::{name}" for name in FIELDS)
    (folder / "layout.cpp").write_text(PROGRAM % (structure(), fields, PAGE, "\n".join(calls)))
    subprocess.run([compiler, "-std=c++20", "-O0", "-o", folder / "layout", folder / "layout.cpp"], check=True)
    lines = subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [list(map(int, line.split())) for line in lines]
    return {(k, b): dict(zip(FIELDS, values)) for k, b, *values in rows}


def arrays(k, b, at):
    """(offset, elements that the kernel touches, bytes each), by what the kernel does with them."""
    return [
        (at["TOP_K_TOKENS"], k, 4),
        (at["CHUNK_OFFSET"], -(-b // 32) + 1, 4),
        (at["EVICT_CHUNK_OFFSET"], -(-b // 32) + 1, 4),
        (at["HASH_KEYS"], at["HASH_SIZE"], 4),
        (at["TOTAL_HITS"], 1, 4),
        (at["NEWEST_HIT"], 1, 4),
        (at["LRU_SLOTS_OUT"], b, 2),
        (at["HASH_VALS"], at["HASH_SIZE"], 2),
    ]


def test_every_pair_is_there(layouts):
    assert len(layouts) == sum((LARGEST - k) // PAGE + 1 for k in TOP_KS) + 2


def test_arrays_are_aligned_and_do_not_overlap(layouts):
    for (k, b), at in layouts.items():
        end = 0
        for offset, count, size in arrays(k, b, at):
            assert offset % size == 0 and offset >= end, (k, b, offset)
            end = offset + count * size
        assert end == at["BYTES"], (k, b)


def test_the_hash_table_is_at_most_half_full(layouts):
    assert all(at["HASH_SIZE"] == 2 * k for (k, _), at in layouts.items())


def test_the_prefix_array_serves_tokens_too(layouts):
    assert all(at["NUM_TOKEN_CHUNKS"] <= at["NUM_BUFFER_CHUNKS"] for at in layouts.values())


def test_supported_sizes_fit_hopper_and_more_would_not(layouts):
    assert all(at["BYTES"] <= HOPPER for (k, _), at in layouts.items() if k in TOP_KS)
    assert layouts[9728, 32768]["BYTES"] <= HOPPER < layouts[10240, 32768]["BYTES"]


@pytest.mark.parametrize("limit, largest", ((AMPERE, {512: 32768, 1024: 32768, 2048: 32768}),
                                            (ADA, {512: 32768, 1024: 32768, 2048: 30464}),
                                            (48 * 1024, {512: 18176, 1024: 14528, 2048: 7232})))  # fmt: skip
def test_the_largest_buffer_of_smaller_limits(layouts, limit, largest):
    """What docs/hisparse.md tells; 48 KB is what static arrays would allow."""
    for k in TOP_KS:
        assert max(b for (kk, b), at in layouts.items() if kk == k and at["BYTES"] <= limit) == largest[k]
