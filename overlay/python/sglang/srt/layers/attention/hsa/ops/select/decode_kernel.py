# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the select op for decode and linear kinds: scores, top-k and logical-to-physical in one launch.

Several programs split the candidate pages of one sequence and KV head. Each writes the scores of its pages; the
one that finishes last ranks them all. Work follows the sequence's length: lengths are run-time values, and the
grid depends on neither length nor context limit, so a captured CUDA graph serves every batch of its size.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    decode_row,
    padded_width,
    programs_per_row,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_ranking import (
    ranking_warps,
    ranking_widths,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_scores import (
    add_local_logits,
    rank_last,
    store_linear_scores,
    store_norms,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

PAGES_PER_STEP = 8  # and warp
MAX_PAGES_PER_STEP = 128
MAX_PROGRAMS_PER_ROW = 32
LOCAL_KEYS: tl.constexpr = tl.constexpr(32)  # of sinks and window, per step


@triton.jit
def _select_pages_kernel(
    q,
    repr_buffer,
    repr_version,
    page_version,
    page_table,
    seq_lens,
    out,
    scores,
    norms,
    arrivals,
    counters,
    k_buffer,
    sm_scale,
    key_scale,
    logit_cap,
    table_width,
    stride_q_row,
    stride_q_head,
    stride_k_slot,
    stride_k_head,
    stride_repr_page,
    stride_repr_head,
    stride_table,
    stride_out_row,
    stride_out_head,
    stride_scores,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    STRATEGY: tl.constexpr,
    CAP: tl.constexpr,
    MASK_LAST: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    PAGES: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    WIDTHS: tl.constexpr,
):
    row = tl.program_id(0)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    b = row // KV_HEADS
    g = row % KV_HEADS
    position, start, count = decode_row(
        seq_lens, b, PAGE_SIZE, WINDOW, SINKS, DENSE_BELOW
    )
    table_row = page_table + b.to(tl.int64) * stride_table + SINKS
    out_row = out + b.to(tl.int64) * stride_out_row + g * stride_out_head
    PLANES: tl.constexpr = GROUP if STRATEGY == "softmax_head" else 1
    scores_row = scores + row.to(tl.int64) * PLANES * stride_scores
    norms_row = norms + row.to(tl.int64) * num_splits * GROUP
    q_row = q + b.to(tl.int64) * stride_q_row + (g * GROUP).to(tl.int64) * stride_q_head
    top, total = store_linear_scores(
        split, num_splits, count, table_width - SINKS, scores_row, repr_buffer, repr_version, page_version, table_row,
        q_row, sm_scale, stride_q_head, stride_repr_page, stride_repr_head, stride_scores, g,
        GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, KIND, WIDTH, STRATEGY, HAS_VERSIONS, PAGES,
    )  # fmt: skip
    if STRATEGY == "softmax_head":
        # Sinks and window count in the normaliser as their keys do.
        table = page_table + b.to(tl.int64) * stride_table
        top, total = add_local_logits(
            top, total, split, num_splits, position, start, count, q_row, k_buffer, table, key_scale, logit_cap,
            stride_q_head, stride_k_slot, stride_k_head, g, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, PAGE_SIZE, PAGE_SIZE,
            SINKS, CAP, MASK_LAST, LOCAL_KEYS,
        )  # fmt: skip
        store_norms(norms_row, split, top, total, GROUP, BLOCK_G)

    rank_last(
        arrivals + row, scores_row, norms_row, table_row, out_row, counters, count, position, g, stride_scores,
        STRATEGY == "softmax_head", GROUP, BLOCK_G, MOST_SPLITS, TOPK, TOPK_BLOCK, WIDTHS,
    )  # fmt: skip


class SelectPagesWorkspace:
    """Scratch of ``select_pages_decode``, allocated once and reused by every layer.

    Args:
        max_rows: largest batch size.
        num_kv_heads: KV heads on this rank.
        max_pages: pages of the longest sequence.
        device: CUDA device, or ``cpu`` under the Triton interpreter.
        group: query heads per KV head with the strategy ``softmax_head``, which keeps the scores of each; else 1.
        max_programs: bound of the programs of a launch.
    """

    def __init__(
        self,
        max_rows: int,
        num_kv_heads: int,
        max_pages: int,
        device,
        group: int = 1,
        max_programs: int = 0,
    ):
        self.max_pages = max_pages
        rows = max_rows * num_kv_heads
        self.scores = torch.empty(
            (rows * group, padded_width(max_pages)), dtype=torch.float32, device=device
        )
        self.norms = torch.empty(
            max_programs * group, dtype=torch.float32, device=device
        )
        self.arrivals = torch.zeros(rows, dtype=torch.int32, device=device)

    def reset(self) -> None:
        """Forget the programs of a launch that was cut off: the next one would count them as its own."""
        self.arrivals.zero_()


def select_pages_decode(
    q: torch.Tensor,
    cache: LayerCache,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: SelectPagesWorkspace,
    counters: torch.Tensor,
    params: AttentionParams,
    processors: Optional[int],
) -> torch.Tensor:
    """Select pages for one new token per sequence by a linear kind.

    Args:
        q: queries ``[B, H_q, D]``.
        cache: of the layer, versions included.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        seq_lens: ``[B]`` int32, the new token included.
        out: ``[B, H_kv, topk]`` int32, written whole: physical pages ascending by logical page, -1 padded.
        workspace: scratch for at least this batch.
        counters: ``HSACounters.values``, added to.
        processors: multiprocessors of the device; None for as many programs per row, whatever the batch.

    Returns:
        ``out``.
    """
    batch, num_heads, head_dim = q.shape
    keys, reprs = cache.keys, cache.reprs
    num_kv_heads = reprs.shape[1]
    rows = batch * num_kv_heads
    programs = programs_per_row(processors, rows, MAX_PROGRAMS_PER_ROW)
    topk = out.shape[-1]
    widths = ranking_widths(params.max_candidates(workspace.max_pages))
    warps = ranking_warps(widths)
    _select_pages_kernel[(rows, programs)](
        q,
        reprs,
        cache.stamps,
        cache.versions,
        page_table,
        seq_lens,
        out,
        workspace.scores,
        workspace.norms,
        workspace.arrivals,
        counters,
        keys,
        params.score_scale,
        params.sm_scale * params.k_scale,
        params.logit_cap,
        page_table.shape[1],
        q.stride(0),
        q.stride(1),
        keys.stride(0),
        keys.stride(1),
        reprs.stride(0),
        reprs.stride(1),
        page_table.stride(0),
        out.stride(0),
        out.stride(1),
        workspace.scores.stride(0),
        KV_HEADS=num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        BLOCK_G=triton.next_power_of_2(num_heads // num_kv_heads),
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        **params.layout,
        TOPK=topk,
        TOPK_BLOCK=triton.next_power_of_2(topk),
        KIND=params.kind.name,
        WIDTH=params.kind.width,
        STRATEGY=params.strategy,
        CAP=params.logit_cap > 0,
        MASK_LAST=params.mask_last_slot,
        HAS_VERSIONS=cache.stamps is not None,
        PAGES=min(PAGES_PER_STEP * warps, MAX_PAGES_PER_STEP),
        MOST_SPLITS=MAX_PROGRAMS_PER_ROW,
        WIDTHS=widths,
        num_warps=warps,
    )
    return out
