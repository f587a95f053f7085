# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the select op for decode and slow_keys: scores in one launch, rankings in another.

A program of the first is a single warp that takes one page after another: it waits for no other warp, and many of them
hide each other's latencies. Triton fetches the next pages into shared memory meanwhile, and reads their codes from there
in the very registers that the matrix product wants. The grid depends on neither length nor context limit, so a CUDA graph
serves every batch of its size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    decode_row,
    dot_precision,
    rank_unknown_first,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_kernel import (
    SelectPagesWorkspace,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_ranking import (
    rank_and_count,
    ranking_warps,
    ranking_widths,
)
from sglang.srt.layers.attention.hsa.ops.select.slow_codes import (
    load_halves,
    load_page,
    scale_back,
    unpack,
)
from sglang.srt.layers.attention.hsa.page_repr import num_channels
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

MAX_WARPS_PER_ROW = 512
# As many programs as a multiprocessor holds: five with 81 to 96 registers a thread on each of its four schedulers. One more
# would wait until another has ended.
WARPS_PER_PROCESSOR = 20


@triton.jit
def _score_slow_decode_kernel(
    q,
    repr_buffer,
    repr_version,
    page_version,
    page_table,
    seq_lens,
    scores,
    channels,
    sm_scale,
    stride_q_row,
    stride_q_head,
    stride_repr_page,
    stride_repr_head,
    stride_table,
    stride_scores,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
    STRATEGY: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = tl.program_id(0)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    b = row // KV_HEADS
    g = row % KV_HEADS
    table_row = page_table + b.to(tl.int64) * stride_table + SINKS
    repr_head = repr_buffer + g * stride_repr_head
    _, _, count = decode_row(seq_lens, b, PAGE_SIZE, WINDOW, SINKS, DENSE_BELOW)
    head = tl.arange(0, BLOCK_G)
    in_group = head < GROUP
    q_row = q + b.to(tl.int64) * stride_q_row + (g * GROUP + head) * stride_q_head
    query, query_2 = load_halves(q_row, channels, in_group, HALF, BLOCK_HALF)
    query, query_2 = tl.trans(query), tl.trans(query_2)
    scores_row = scores + row.to(tl.int64) * stride_scores
    for i in tl.range(split, count, num_splits, num_stages=STAGES):
        page = tl.load(table_row + i).to(tl.int64)
        codes, low, step, low_2, step_2 = load_page(
            repr_head + page * stride_repr_page, PAGE_SIZE, HALF, BLOCK_HALF
        )
        stamp, version = 0, 0
        if HAS_VERSIONS:
            stamp = tl.load(repr_version + page)
            version = tl.load(page_version + page)
        key, key_2 = unpack(codes, low, step, low_2, step_2, query.dtype)
        logits = tl.dot(key, query, input_precision=PRECISION)
        logits = tl.dot(key_2, query_2, logits, input_precision=PRECISION)
        best = sm_scale * tl.max(logits, axis=0)  # [BLOCK_G]
        if STRATEGY == "group":
            score = tl.sum(tl.where(in_group, best, 0.0))
        else:
            score = tl.max(tl.where(in_group, best, float("-inf")))
        tl.store(scores_row + i, rank_unknown_first(score, stamp, version))


@triton.jit
def _rank_slow_decode_kernel(
    page_table,
    seq_lens,
    out,
    scores,
    counters,
    stride_table,
    stride_out_row,
    stride_out_head,
    stride_scores,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    WIDTHS: tl.constexpr,
):
    row = tl.program_id(0)
    b = row // KV_HEADS
    g = row % KV_HEADS
    position, _, count = decode_row(seq_lens, b, PAGE_SIZE, WINDOW, SINKS, DENSE_BELOW)
    rank_and_count(
        scores + row.to(tl.int64) * stride_scores,
        page_table + b.to(tl.int64) * stride_table + SINKS,
        out + b.to(tl.int64) * stride_out_row + g * stride_out_head,
        counters, count, position, g, TOPK, TOPK_BLOCK, WIDTHS,
    )  # fmt: skip


def select_slow_pages_decode(
    q: torch.Tensor,
    cache: LayerCache,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: SelectPagesWorkspace,
    counters: torch.Tensor,
    params: AttentionParams,
    processors: int,
) -> torch.Tensor:
    """As ``select_pages_decode``, by slow_keys and the strategy group or head."""
    batch, num_heads, head_dim = q.shape
    reprs = cache.reprs
    num_kv_heads = reprs.shape[1]
    rows = batch * num_kv_heads
    half = num_channels(head_dim) // 2
    layout = dict(KV_HEADS=num_kv_heads, **params.layout)
    warps_per_row = WARPS_PER_PROCESSOR * processors // rows
    group = num_heads // num_kv_heads
    _score_slow_decode_kernel[(rows, max(1, min(warps_per_row, MAX_WARPS_PER_ROW)))](
        q,
        reprs,
        cache.stamps,
        cache.versions,
        page_table,
        seq_lens,
        workspace.scores,
        cache.channels,
        params.score_scale * scale_back(q.dtype),
        q.stride(0),
        q.stride(1),
        reprs.stride(0),
        reprs.stride(1),
        page_table.stride(0),
        workspace.scores.stride(0),
        **layout,
        GROUP=group,
        BLOCK_G=max(16, triton.next_power_of_2(group)),  # of a matrix product
        STRATEGY=params.strategy,
        HAS_VERSIONS=cache.stamps is not None,
        HALF=half,
        BLOCK_HALF=max(half, 16),
        PRECISION=dot_precision(q.dtype),
        STAGES=3,
        num_warps=1,
    )
    topk = out.shape[-1]
    widths = ranking_widths(params.max_candidates(workspace.max_pages))
    _rank_slow_decode_kernel[(rows,)](
        page_table,
        seq_lens,
        out,
        workspace.scores,
        counters,
        page_table.stride(0),
        out.stride(0),
        out.stride(1),
        workspace.scores.stride(0),
        **layout,
        TOPK=topk,
        TOPK_BLOCK=triton.next_power_of_2(topk),
        WIDTHS=widths,
        num_warps=ranking_warps(widths),
    )
    return out
