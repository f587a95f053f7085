# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the select_pages op for extend: page lists of all new tokens of a batch in one launch.

A program takes a tile of consecutive queries of one sequence and one KV head: scores of their candidate pages on
the tensor cores, each row's k-th best, and then the union of the rows' pages in ascending order, each with the set
of rows that selected it. Attention reads K and V once per page of that union. Scores live in scratch that belongs to
the program, which takes one tile after another: memory follows the device and the longest sequence of the batch, not
the number of new tokens.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.counters import INDEX
from sglang.srt.layers.attention.hsa.extend_plan import ExtendPlan
from sglang.srt.layers.attention.hsa.ops.select_pages.features import query_features
from sglang.srt.layers.attention.hsa.ops.select_pages.page_lists import (
    PAGES_PER_STEP,
    ExtendSelectWorkspace,
    PageLists,
)
from sglang.srt.layers.attention.hsa.ops.select_pages.row_ranking import (
    COLUMNS,
    GROUP_PAGES,
    load_keys,
    ordered_keys,
    row_thresholds,
    wide,
)

SHARED_BYTES = 180_000  # for features and the pages in flight


@triton.jit
def _exact_dot(e, f):
    """``[C, K]`` in its storage dtype times ``[K, R]`` float32, to float32 accuracy."""
    if e.dtype == tl.bfloat16:
        # Three bfloat16 terms hold all 24 bits of f; e is exact.
        high = f.to(tl.bfloat16)
        rest = f - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        c = tl.dot(e, low)
        c = tl.dot(e, middle, c)
        c = tl.dot(e, high, c)
    elif e.dtype == tl.float32:
        c = tl.dot(e, f, input_precision="ieee")
    else:
        c = tl.dot(e.to(tl.float32), f, input_precision="tf32x3")
    return c


@triton.jit
def _raw_scores(
    index,
    most,
    repr_head,
    repr_version,
    page_version,
    table_row,
    first,
    second,
    stride_repr_page,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
):
    """Scores of candidate pages ``index`` ``[C]`` for features ``[D, R]``: ``[R, C]``, -inf if not valid."""
    d = tl.arange(0, BLOCK_D)
    inside = index < most
    page = tl.load(table_row + index, mask=inside, other=0).to(tl.int64)
    e_ptr = repr_head + page[:, None] * stride_repr_page + d[None, :]
    valid = inside
    if HAS_VERSIONS:
        stamp = tl.load(repr_version + page, mask=inside, other=0)
        current = tl.load(page_version + page, mask=inside, other=1)
        valid = stamp == current
    # What is not valid may hold anything, NaN included: it never enters a score that counts.
    mask = inside[:, None] & (d[None, :] < HEAD_DIM)
    raw = _exact_dot(tl.load(e_ptr, mask=mask, other=0.0), first)
    if KIND == "mean_var" or KIND == "min_max":
        raw += _exact_dot(tl.load(e_ptr + HEAD_DIM, mask=mask, other=0.0), second)
    return tl.trans(tl.where(valid[:, None], raw, float("-inf")))


@triton.jit(do_not_specialize=["items"])
def _select_pages_extend_kernel(
    q,
    repr_buffer,
    repr_version,
    page_version,
    page_table,
    tiles,
    local_lse,
    list_pages,
    list_rows,
    list_lengths,
    keys,
    maxima,
    kept,
    counters,
    sm_scale,
    items,
    stride_q_row,
    stride_q_head,
    stride_repr_page,
    stride_repr_head,
    stride_table,
    stride_lse_row,
    stride_list,
    stride_keys,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    LIST_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    TOPK: tl.constexpr,
    KIND: tl.constexpr,
    STRATEGY: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    PAGES: tl.constexpr,
    ROWS_DENSE: tl.constexpr,
    ROWS_SPARSE: tl.constexpr,
    PAGES_CANDIDATE: tl.constexpr,
    PAGES_SELECTED: tl.constexpr,
):
    LISTS: tl.constexpr = ROWS // LIST_ROWS
    GROUPS: tl.constexpr = PAGES // GROUP_PAGES
    FEATURE_ROWS: tl.constexpr = ROWS if STRATEGY == "group" else ROWS * GROUP_BLOCK
    program = tl.program_id(0)
    m = tl.arange(0, ROWS)
    own = program.to(tl.int64) * ROWS + m
    keys_row = keys + own * stride_keys
    maxima_row = maxima + own * WIDE
    kept_row = kept + own * WIDE
    r = tl.arange(0, ROWS * GROUP_BLOCK)
    h = r % GROUP_BLOCK
    d = tl.arange(0, BLOCK_D)
    for item in range(program, items, tl.num_programs(0)):
        tile = tiles + (item // KV_HEADS) * 4
        g = item % KV_HEADS
        b = tl.load(tile).to(tl.int64)
        row = tl.load(tile + 1).to(tl.int64)
        rows = tl.load(tile + 2)
        position = tl.load(tile + 3) + m
        start = tl.maximum(position - WINDOW + 1, 0) // PAGE_SIZE
        lengths = tl.where(m < rows, tl.maximum(start - SINKS, 0), 0)
        most = tl.max(lengths)
        table_row = page_table + b * stride_table + SINKS
        repr_head = repr_buffer + g * stride_repr_head

        q_ptr = (
            q
            + (row + r // GROUP_BLOCK)[:, None] * stride_q_row
            + (g * GROUP + h)[:, None] * stride_q_head
            + d[None, :]
        )
        real = (r // GROUP_BLOCK < rows) & (h < GROUP)
        query = tl.load(q_ptr, mask=real[:, None] & (d[None, :] < HEAD_DIM), other=0.0)
        first, second = query_features(query.to(tl.float32), sm_scale, KIND)
        if STRATEGY == "group":  # the heads' features add up before they meet E
            first = tl.sum(tl.reshape(first, (ROWS, GROUP_BLOCK, BLOCK_D)), axis=1)
            second = tl.sum(tl.reshape(second, (ROWS, GROUP_BLOCK, BLOCK_D)), axis=1)
        first, second = tl.trans(first), tl.trans(second)
        norm = tl.zeros((FEATURE_ROWS,), tl.float32)
        if STRATEGY == "softmax_head":
            lse_ptr = local_lse + (row + r // GROUP_BLOCK) * stride_lse_row
            norm = tl.load(lse_ptr + g * GROUP + h, mask=real, other=0.0)
            last = tl.reshape(
                tl.broadcast_to(lengths[:, None], (ROWS, GROUP_BLOCK)), (FEATURE_ROWS,)
            )
            for lo in range(0, most, PAGES):
                index = lo + tl.arange(0, PAGES)
                raw = _raw_scores(
                    index, most, repr_head, repr_version, page_version, table_row, first, second,
                    stride_repr_page, HEAD_DIM, BLOCK_D, KIND, HAS_VERSIONS,
                )  # fmt: skip
                raw = tl.where(index[None, :] < last[:, None], raw, float("-inf"))
                top = tl.maximum(norm, tl.max(raw, axis=1))
                total = tl.exp(norm - top) + tl.sum(tl.exp(raw - top[:, None]), axis=1)
                norm = top + tl.log(total)

        for lo in range(0, most, PAGES):
            index = lo + tl.arange(0, PAGES)
            score = _raw_scores(
                index, most, repr_head, repr_version, page_version, table_row, first, second,
                stride_repr_page, HEAD_DIM, BLOCK_D, KIND, HAS_VERSIONS,
            )  # fmt: skip
            if STRATEGY != "group":
                score -= norm[:, None]
                score = tl.where((h < GROUP)[:, None], score, float("-inf"))
                score = tl.max(tl.reshape(score, (ROWS, GROUP_BLOCK, PAGES)), axis=1)
            key = ordered_keys(score)
            key = tl.where(index[None, :] < lengths[:, None], key, 0)
            tl.store(keys_row[:, None] + index[None, :], key)
            if most > WIDE:
                part = tl.max(tl.reshape(key, (ROWS, GROUPS, GROUP_PAGES)), axis=2)
                place = lo // GROUP_PAGES + tl.arange(0, GROUPS)
                within = (place < WIDE)[None, :]
                tl.store(maxima_row[:, None] + place[None, :], part, mask=within)
        tl.debug_barrier()
        threshold = row_thresholds(
            keys_row, maxima_row, kept_row, lengths, most, TOPK, ROWS, WIDE
        )  # fmt: skip

        above = tl.zeros((ROWS,), tl.int32)
        for lo in range(0, most, COLUMNS):
            key = load_keys(keys_row, lengths, lo, most, COLUMNS)
            above += tl.sum((key > threshold[:, None]).to(tl.int32), axis=1)
        room = TOPK - above  # for the first of those that equal the threshold

        n = tl.arange(0, LISTS)
        list_row = (item * LISTS + n).to(tl.int64) * stride_list
        length = tl.zeros((LISTS,), tl.int32)
        ties = tl.zeros((ROWS,), tl.int32)
        selected = tl.zeros((), tl.int32)
        for lo in range(0, most, COLUMNS):
            column = lo + tl.arange(0, COLUMNS)
            key = load_keys(keys_row, lengths, lo, most, COLUMNS)
            tie = (key == threshold[:, None]) & (key > 0)
            order = ties[:, None] + tl.cumsum(tie.to(tl.int32), axis=1)
            chosen = (key > threshold[:, None]) | (tie & (order <= room[:, None]))
            ties += tl.sum(tie.to(tl.int32), axis=1)
            selected += tl.sum(chosen.to(tl.int32))
            bit = tl.where(chosen, (1 << (m % LIST_ROWS))[:, None], 0)
            bits = tl.sum(tl.reshape(bit, (LISTS, LIST_ROWS, COLUMNS)), axis=1)
            listed = bits != 0
            place = length[:, None] + tl.cumsum(listed.to(tl.int32), axis=1) - 1
            page = tl.load(table_row + column, mask=column < most, other=0)
            target = list_row[:, None] + place
            page = tl.broadcast_to(page[None, :], (LISTS, COLUMNS))
            tl.store(list_pages + target, page, mask=listed)
            tl.store(list_rows + target, bits, mask=listed)
            length += tl.sum(listed.to(tl.int32), axis=1)
        tl.store(list_lengths + item * LISTS + n, length)
        tl.debug_barrier()  # the next tile writes over the keys

        tl.atomic_add(counters + PAGES_CANDIDATE, tl.sum(lengths).to(tl.int64))
        tl.atomic_add(counters + PAGES_SELECTED, selected.to(tl.int64))
        if g == 0:
            sparse = tl.sum((lengths > 0).to(tl.int64))
            tl.atomic_add(counters + ROWS_SPARSE, sparse)
            tl.atomic_add(counters + ROWS_DENSE, rows.to(tl.int64) - sparse)


def select_pages_extend(
    q: torch.Tensor,
    repr_buffer: torch.Tensor,
    repr_version: Optional[torch.Tensor],
    page_version: torch.Tensor,
    page_table: torch.Tensor,
    plan: ExtendPlan,
    out: PageLists,
    workspace: ExtendSelectWorkspace,
    counters: torch.Tensor,
    *,
    page_size: int,
    window_size: int,
    sink_pages: int,
    topk: int,
    kind: str,
    strategy: str,
    sm_scale: float,
    local_lse: Optional[torch.Tensor] = None,
) -> PageLists:
    """Select pages for all new tokens of a batch.

    Args:
        q: packed queries ``[T, H_q, D]``, last dimension contiguous.
        repr_buffer: representations by physical page ``[num_pages, H_kv, repr_dim]``, last dimension contiguous.
        repr_version: version each was written for ``[num_pages]`` int64; None if all are valid.
        page_version: versions that were read before the page table ``[num_pages]`` int64.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        plan: of the pass, with at least one candidate page.
        out: written whole.
        workspace: made for plans of at least this size.
        counters: ``HSACounters.values``, added to.
        strategy: ``group``, ``head`` or ``softmax_head``.
        local_lse: log-sum-exp of window and sinks ``[T, H_q]`` float32; needed by ``softmax_head``.

    Returns:
        ``out``.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = repr_buffer.shape[1]
    group = num_heads // num_kv_heads
    items = len(plan.tiles) * num_kv_heads
    group_block, block_d = (triton.next_power_of_2(n) for n in (group, head_dim))
    # Three terms of either half of the features, and two halves of each page's representation.
    feature_rows = plan.tiling.tile_rows * (1 if strategy == "group" else group_block)
    features = 3 * 2 * feature_rows * block_d * 2
    pages, step = PAGES_PER_STEP, 2 * PAGES_PER_STEP * block_d * 2
    if features + step > SHARED_BYTES:
        pages, step = pages // 2, step // 2
    _select_pages_extend_kernel[(min(items, workspace.programs),)](
        q,
        repr_buffer,
        repr_version,
        page_version,
        page_table,
        plan.tiles,
        local_lse,
        out.pages,
        out.rows,
        out.lengths,
        workspace.keys,
        workspace.maxima,
        workspace.kept,
        counters,
        sm_scale,
        items,
        q.stride(0),
        q.stride(1),
        repr_buffer.stride(0),
        repr_buffer.stride(1),
        page_table.stride(0),
        0 if local_lse is None else local_lse.stride(0),
        out.pages.shape[-1],
        workspace.keys.shape[1],
        KV_HEADS=num_kv_heads,
        GROUP=group,
        GROUP_BLOCK=group_block,
        ROWS=plan.tiling.tile_rows,
        WIDE=wide(plan.tiling.tile_rows),
        LIST_ROWS=out.list_rows,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, block_d),
        PAGE_SIZE=page_size,
        WINDOW=max(window_size, 1),
        SINKS=sink_pages,
        TOPK=topk,
        KIND=kind,
        STRATEGY=strategy,
        HAS_VERSIONS=repr_version is not None,
        PAGES=pages,
        ROWS_DENSE=INDEX["rows_dense"],
        ROWS_SPARSE=INDEX["rows_sparse"],
        PAGES_CANDIDATE=INDEX["pages_candidate"],
        PAGES_SELECTED=INDEX["pages_selected"],
        num_warps=8,
        num_stages=3 if features + 2 * step <= SHARED_BYTES else 2,
    )
    return out
