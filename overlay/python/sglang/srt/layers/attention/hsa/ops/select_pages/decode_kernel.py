# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the select_pages op for decode: scores, top-k and logical-to-physical in one launch.

Several programs share the candidate pages of one sequence and KV head. Each writes the scores of its pages; the
one that finishes last ranks them all. Work follows the sequence's length: lengths are run-time values, and the
grid depends on neither length nor context limit, so a captured CUDA graph serves every batch of its size.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.chunk_repr import num_channels
from sglang.srt.layers.attention.hsa.counters import INDEX
from sglang.srt.layers.attention.hsa.ops.select_pages.decode_scores import (
    add_to_norm,
    local_logits,
    rank_by_share,
    score_pages,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.features import query_features
from sglang.srt.layers.attention.hsa.ops.select_pages.ranking import (
    ranking_widths,
    store_best,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.slow_scores import load_halves

PAGES_PER_STEP = 8  # and warp
KEYS_PER_WARP = 64  # and step, of slow_keys
MAX_PROGRAMS_PER_ROW = 32


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
    channels,
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
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    STRATEGY: tl.constexpr,
    CAP: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    PAGES: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    SHARES: tl.constexpr,
    WIDTHS: tl.constexpr,
    ROWS_DENSE: tl.constexpr,
    ROWS_SPARSE: tl.constexpr,
    PAGES_CANDIDATE: tl.constexpr,
    PAGES_SELECTED: tl.constexpr,
):
    row = tl.program_id(0)
    share = tl.program_id(1)
    shares = tl.num_programs(1)
    b = row // KV_HEADS
    g = row % KV_HEADS
    position = tl.load(seq_lens + b).to(tl.int32) - 1
    start = tl.maximum(position - WINDOW + 1, 0) // PAGE_SIZE
    count = tl.maximum(start - SINKS, 0)
    table_row = page_table + b.to(tl.int64) * stride_table + SINKS
    out_row = out + b.to(tl.int64) * stride_out_row + g * stride_out_head
    PLANES: tl.constexpr = GROUP if STRATEGY == "softmax_head" else 1
    scores_row = scores + row.to(tl.int64) * PLANES * stride_scores
    # Where the scores of a step go: a plane per head, or the only plane.
    plane = tl.arange(0, BLOCK_G if STRATEGY == "softmax_head" else 1)
    plane_ptr = scores_row + plane[:, None] * stride_scores
    in_plane = (plane < PLANES)[:, None]

    d = tl.arange(0, BLOCK_D)
    in_head = d < HEAD_DIM
    q_row = q + b.to(tl.int64) * stride_q_row + (g * GROUP).to(tl.int64) * stride_q_head
    # The strategy group: the heads' features add up before they meet E.
    first = tl.zeros((BLOCK_D,), tl.float32)
    second = tl.zeros((BLOCK_D,), tl.float32)
    head = tl.arange(0, BLOCK_G)
    if KIND == "slow_keys":
        first, second = load_halves(
            q_row + head * stride_q_head, channels, head < GROUP, HALF, BLOCK_HALF
        )
    elif STRATEGY == "group":
        heads = tl.load(
            q_row + head[:, None] * stride_q_head + d[None, :],
            mask=(head < GROUP)[:, None] & in_head[None, :],
            other=0.0,
        )
        features = query_features(heads.to(tl.float32), sm_scale, KIND)
        first = tl.sum(features[0], axis=0)
        second = tl.sum(features[1], axis=0)
    index = share * PAGES + tl.arange(0, PAGES)
    score = score_pages(
        share * PAGES,
        table_width - SINKS,
        repr_buffer,
        repr_version,
        page_version,
        table_row,
        q_row,
        first,
        second,
        sm_scale,
        stride_q_head,
        stride_repr_page,
        stride_repr_head,
        g,
        GROUP,
        BLOCK_G,
        HEAD_DIM,
        BLOCK_D,
        KIND,
        STRATEGY,
        HAS_VERSIONS,
        PAGES,
        PAGE_SIZE,
        HALF,
        PRECISION,
    )
    mask = in_plane & (index < count)[None, :]
    tl.store(plane_ptr + index[None, :], score, mask=mask)
    if STRATEGY == "softmax_head":
        top = tl.full((BLOCK_G,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_G,), tl.float32)
        score = tl.where(mask, score, float("-inf"))
        top, total = add_to_norm(top, total, score)
    for lo in range((share + shares) * PAGES, count, shares * PAGES):
        index = lo + tl.arange(0, PAGES)
        score = score_pages(
            lo,
            count,
            repr_buffer,
            repr_version,
            page_version,
            table_row,
            q_row,
            first,
            second,
            sm_scale,
            stride_q_head,
            stride_repr_page,
            stride_repr_head,
            g,
            GROUP,
            BLOCK_G,
            HEAD_DIM,
            BLOCK_D,
            KIND,
            STRATEGY,
            HAS_VERSIONS,
            PAGES,
            PAGE_SIZE,
            HALF,
            PRECISION,
        )
        mask = in_plane & (index < count)[None, :]
        tl.store(plane_ptr + index[None, :], score, mask=mask)
        if STRATEGY == "softmax_head":
            score = tl.where(mask, score, float("-inf"))
            top, total = add_to_norm(top, total, score)
    if STRATEGY == "softmax_head":
        # Sinks and window count in the normaliser as their keys do. A row without candidates ranks nothing.
        table = page_table + b.to(tl.int64) * stride_table
        local_keys = (
            tl.minimum(start, SINKS) * PAGE_SIZE + position + 1 - start * PAGE_SIZE
        )
        local_keys = tl.where(count > 0, local_keys, 0)
        for lo in range(share * PAGES, local_keys, shares * PAGES):
            logits = local_logits(
                lo + tl.arange(0, PAGES),
                position,
                start,
                q_row,
                k_buffer,
                table,
                key_scale,
                logit_cap,
                stride_q_head,
                stride_k_slot,
                stride_k_head,
                g,
                GROUP,
                BLOCK_G,
                HEAD_DIM,
                BLOCK_D,
                PAGE_SIZE,
                SINKS,
                CAP,
                PAGES,
            )
            top, total = add_to_norm(top, total, logits)
        norms_row = norms + row.to(tl.int64) * shares * GROUP
        head = tl.arange(0, BLOCK_G)
        norm = tl.where(total > 0, top + tl.log(total), float("-inf"))
        tl.store(norms_row + share * GROUP + head, norm, mask=head < GROUP)

    # The last program to arrive sees all scores.
    tl.debug_barrier()
    if tl.atomic_add(arrivals + row, 1, sem="acq_rel") == shares - 1:
        tl.store(arrivals + row, 0)  # ready for the next launch
        if STRATEGY == "softmax_head":
            rank_by_share(
                scores_row,
                norms_row,
                count,
                shares,
                stride_scores,
                GROUP,
                BLOCK_G,
                SHARES,
                WIDTHS[1] if len(WIDTHS) > 1 else WIDTHS[0],
            )
            tl.debug_barrier()
        found = store_best(
            scores_row, table_row, out_row, count, TOPK, TOPK_BLOCK, WIDTHS
        )
        if count > 0:
            tl.atomic_add(counters + PAGES_CANDIDATE, count.to(tl.int64))
            tl.atomic_add(counters + PAGES_SELECTED, found.to(tl.int64))
        # Rows of length 1 pad the batch of a CUDA graph.
        if (g == 0) & (position > 0):
            tl.atomic_add(
                counters + tl.where(count > 0, ROWS_SPARSE, ROWS_DENSE),
                tl.full((), 1, tl.int64),
            )


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
            (rows * group, max_pages), dtype=torch.float32, device=device
        )
        self.norms = torch.empty(
            max_programs * group, dtype=torch.float32, device=device
        )
        self.arrivals = torch.zeros(rows, dtype=torch.int32, device=device)


def select_pages_decode(
    q: torch.Tensor,
    repr_buffer: torch.Tensor,
    repr_version: Optional[torch.Tensor],
    page_version: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: SelectPagesWorkspace,
    counters: torch.Tensor,
    *,
    page_size: int,
    window_size: int,
    sink_pages: int,
    kind: str,
    strategy: str,
    sm_scale: float,
    programs_per_row: int,
    keys: torch.Tensor,
    key_scale: float,
    logit_cap: float,
    channels: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Select pages for one new token per sequence.

    Args:
        q: queries ``[B, H_q, D]``.
        repr_buffer: representations by physical page ``[num_pages, H_kv, repr_dim]``, last dimension contiguous.
        repr_version: version each was written for ``[num_pages]`` int64; None for a kind that is not stored.
        page_version: versions that were read before the page table ``[num_pages]`` int64.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        seq_lens: ``[B]`` int32, the new token included.
        out: ``[B, H_kv, topk]`` int32, written whole: physical pages ascending by logical page, -1 padded.
        workspace: scratch for at least this batch.
        counters: ``HSACounters.values``, added to.
        strategy: ``group``, ``head`` or ``softmax_head``.
        programs_per_row: programs that share one sequence and KV head, 1 to MAX_PROGRAMS_PER_ROW.
        keys: cached keys ``[num_slots, H_kv, D]``, of which ``softmax_head`` reads sinks and window.
        key_scale, logit_cap: softmax scale times that of the cached keys, and soft cap, of their logits.
        channels: that the representations are taken from ``[R]`` int32; None for a kind that takes all.

    Returns:
        ``out``.
    """
    batch, num_heads, head_dim = q.shape
    num_kv_heads = repr_buffer.shape[1]
    topk = out.shape[-1]
    widths = ranking_widths(workspace.max_pages)
    warps = 4 if widths[-1] <= 4096 else 8
    block_g = triton.next_power_of_2(num_heads // num_kv_heads)
    pages = PAGES_PER_STEP * warps
    if kind == "slow_keys":  # a matrix product: 16 rows at least, so many keys a step
        block_g, pages = max(block_g, 16), max(1, KEYS_PER_WARP * warps // page_size)
    half = num_channels(head_dim) // 2
    _select_pages_kernel[(batch * num_kv_heads, programs_per_row)](
        q,
        repr_buffer,
        repr_version,
        page_version,
        page_table,
        seq_lens,
        out,
        workspace.scores,
        workspace.norms,
        workspace.arrivals,
        counters,
        keys,
        channels,
        sm_scale,
        key_scale,
        logit_cap,
        page_table.shape[1],
        q.stride(0),
        q.stride(1),
        keys.stride(0),
        keys.stride(1),
        repr_buffer.stride(0),
        repr_buffer.stride(1),
        page_table.stride(0),
        out.stride(0),
        out.stride(1),
        workspace.scores.stride(0),
        KV_HEADS=num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        BLOCK_G=block_g,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        PAGE_SIZE=page_size,
        WINDOW=max(window_size, 1),
        SINKS=sink_pages,
        TOPK=topk,
        TOPK_BLOCK=triton.next_power_of_2(topk),
        KIND=kind,
        STRATEGY=strategy,
        CAP=logit_cap > 0,
        HAS_VERSIONS=repr_version is not None,
        PAGES=pages,
        HALF=half,
        BLOCK_HALF=max(half, 16),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        SHARES=triton.next_power_of_2(programs_per_row),
        WIDTHS=widths,
        ROWS_DENSE=INDEX["rows_dense"],
        ROWS_SPARSE=INDEX["rows_sparse"],
        PAGES_CANDIDATE=INDEX["pages_candidate"],
        PAGES_SELECTED=INDEX["pages_selected"],
        num_warps=warps,
    )
    return out
