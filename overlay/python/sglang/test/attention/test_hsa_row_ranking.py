# SPDX-License-Identifier: Apache-2.0
"""The k-th largest score of many rows at once, in a Triton program: on a CUDA device, or under TRITON_INTERPRET=1."""

import os

import pytest
import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.select_pages import row_ranking

ON_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(
    not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a CUDA device or TRITON_INTERPRET=1",
)
DEVICE = "cuda" if ON_GPU else "cpu"


@triton.jit
def _threshold_kernel(
    keys, maxima, kept, lengths, out, reached, most, stride, TOPK: tl.constexpr, TOPK_BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    m = tl.arange(0, ROWS)
    threshold, count = row_ranking.row_thresholds(
        keys + m * stride, maxima + m * WIDE, kept + m * WIDE, tl.load(lengths + m), most, TOPK, TOPK_BLOCK, ROWS, WIDE
    )  # fmt: skip
    tl.store(out + m, threshold)
    tl.store(reached + m, count)


@pytest.mark.parametrize("width", [40, 700, 1500, 3000])
@pytest.mark.parametrize("topk,values", [(5, 10**6), (5, 3), (32, 10**6), (100, 10**6)])
def test_thresholds_are_exact(width, topk, values):
    """In registers, after dropping what the maxima exclude, and streaming: where keys repeat or k is large.

    The threshold parts the k largest keys from the rest; where equal keys forbid that, it is the k-th largest.
    """
    rows, wide = 16, row_ranking.wide(16)
    generator = torch.Generator().manual_seed(width + topk)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[0] = width
    padded = triton.cdiv(width, 256) * 256
    keys = torch.zeros(rows, padded, dtype=torch.int64)
    maxima = torch.zeros(rows, wide, dtype=torch.int64)
    for row, n in enumerate(lengths.tolist()):
        keys[row, :n] = torch.randint(0, values, (n,), generator=generator)
        maxima[row, : padded // 16] = keys[row].view(-1, 16).amax(1)
    out, reached = torch.full((2, rows), -1, dtype=torch.int32, device=DEVICE)
    _threshold_kernel[(1,)](
        *(x.int().to(DEVICE).view(torch.uint32) for x in (keys, maxima)),
        torch.empty(rows, wide, dtype=torch.uint32, device=DEVICE),
        lengths.int().to(DEVICE),
        out.view(torch.uint32),
        reached,
        width,
        padded,
        TOPK=topk,
        TOPK_BLOCK=triton.next_power_of_2(topk),
        ROWS=rows,
        WIDE=wide,
    )
    if width <= topk:  # all are selected
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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
