# SPDX-License-Identifier: Apache-2.0
"""The k-th largest score of many rows at once, in a Triton program: on a CUDA device, or under TRITON_INTERPRET=1."""

import pytest
import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.select import extend_ranking
from sglang.test.attention.hsa_device import DEVICE, needs_kernels

pytestmark = needs_kernels


ROWS = 8
WIDTHS = (128, 256, 1024)
SETS = 128  # of a row's keys, each with a peak


@triton.jit
def _rank_kernel(
    keys, peaks, kept, lengths, thresholds, reached, rows, most, stride,
    TOPK: tl.constexpr, TOPK_BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTHS: tl.constexpr, RANKED: tl.constexpr, PEAKS: tl.constexpr,
):  # fmt: skip
    extend_ranking.rank_rows(
        keys, peaks, kept, lengths, thresholds, reached, rows, most, stride, TOPK, TOPK_BLOCK, ROWS, WIDTHS, RANKED, PEAKS
    )  # fmt: skip


def check(keys, lengths, topk):
    """The threshold parts the k largest keys from the rest; where equal keys forbid that, it is the k-th largest.

    ``keys`` ``[ROWS, N]`` int64 are 0 past the lengths.
    """
    width = keys.shape[1]
    peaks = torch.zeros(
        ROWS, min(extend_ranking.num_peaks(topk), 1024), dtype=torch.int64
    )
    part = triton.cdiv(width // SETS, peaks.shape[1] // SETS) * SETS
    for at, chunk in enumerate(keys.split(part, dim=1)):
        peaks[:, at * SETS : (at + 1) * SETS] = chunk.view(ROWS, -1, SETS).amax(1)
    out, reached = torch.full((2, ROWS), -1, dtype=torch.int32, device=DEVICE)
    _rank_kernel[(1,)](
        *(x.int().to(DEVICE).view(torch.uint32) for x in (keys, peaks)),
        torch.empty(ROWS, WIDTHS[-1], dtype=torch.uint32, device=DEVICE),
        lengths.int().to(DEVICE),
        out,
        reached,
        ROWS,
        int(lengths.max()),
        width,
        TOPK=topk,
        TOPK_BLOCK=triton.next_power_of_2(topk),
        ROWS=ROWS,
        WIDTHS=WIDTHS,
        RANKED=(ROWS,) * len(WIDTHS),
        PEAKS=peaks.shape[1],
    )
    if lengths.max() <= topk:  # all are selected
        assert not out.any() and not reached.any()
        return
    for row, n in enumerate(lengths.tolist()):
        live = keys[row, :n][keys[row, :n] > 0].sort(descending=True).values
        threshold, count = int(out[row]), int(reached[row])
        assert count == int((live >= threshold).sum())
        if len(live) <= topk:
            assert count == len(live)
        elif count > topk:
            assert threshold == live[topk - 1] == live[topk]
        else:
            assert count == topk


@pytest.mark.parametrize("width", [40, 700, 1500, 3000])
@pytest.mark.parametrize(
    "topk,values", [(5, 10**6), (5, 3), (32, 10**6), (100, 10**6), (2000, 10**6)]
)
def test_thresholds_are_exact(width, topk, values):
    """In registers, after dropping what the peaks exclude, and streaming: where keys repeat or k is large."""
    generator = torch.Generator().manual_seed(width + topk)
    lengths = torch.randint(1, width + 1, (ROWS,), generator=generator)
    lengths[0] = width
    keys = torch.zeros(ROWS, triton.cdiv(width, SETS) * SETS, dtype=torch.int64)
    for row, n in enumerate(lengths.tolist()):
        keys[row, :n] = torch.randint(0, values, (n,), generator=generator)
    check(keys, lengths, topk)


@pytest.mark.parametrize("sets", [4, 31])
@pytest.mark.parametrize("steps", [24, 60])
def test_best_keys_in_few_sets(sets, steps):
    """Fewer sets than k hold all keys that are large: the peaks exclude too little, in some rows alone."""
    generator = torch.Generator().manual_seed(sets)
    width = steps * SETS
    keys = torch.randint(1, 10**6, (ROWS, width), generator=generator)
    for row in range(0, ROWS, 5):
        keys[row].view(-1, SETS)[:, 3 : 3 + sets] += 10**6
    check(keys, torch.full((ROWS,), width), 32)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
