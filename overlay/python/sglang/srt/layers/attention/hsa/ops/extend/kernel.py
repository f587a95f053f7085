# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the extend op: sinks, selected pages and window of all new tokens of a batch in one launch.

A program takes a run of consecutive queries of one sequence, all query heads of one KV head. It reads the union of
the pages that its queries selected once, each row attending its own, then the sink and window pages; all of it is one
softmax.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    LOG2_E,
    dot_precision,
    running_max,
    shared_bytes,
    soft_cap,
    stages_that_fit,
    window_start,
)
from sglang.srt.layers.attention.hsa.ops.extend.attention_step import (
    accumulate,
    accumulate_page,
    linear_score,
    prior_score,
    raw_logits,
)
from sglang.srt.layers.attention.hsa.ops.extend.plan import ExtendPlan, rows_that_fit
from sglang.srt.layers.attention.hsa.ops.linear_kinds import query_features
from sglang.srt.layers.attention.hsa.ops.select.page_lists import PageLists
from sglang.srt.layers.attention.hsa.page_repr import PRIOR
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

KEYS_PER_STEP = 64
MAX_STAGES = 3
FOUR_PROGRAMS = 128  # registers of a thread, for so many programs on a multiprocessor


@triton.jit
def _extend_hsa_kernel(
    q,
    k_buffer,
    v_buffer,
    list_pages,
    list_rows,
    list_lengths,
    page_table,
    tiles,
    select_q,
    repr_buffer,
    biases,
    sink_logits,
    out,
    lse_out,
    scale,
    score_scale,
    logit_cap,
    v_scale,
    stride_q_row,
    stride_q_head,
    stride_k_slot,
    stride_k_head,
    stride_v_slot,
    stride_v_head,
    stride_list,
    stride_table,
    stride_select_row,
    stride_select_head,
    stride_repr_page,
    stride_repr_head,
    stride_out_row,
    stride_out_head,
    stride_lse_row,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    LISTS: tl.constexpr,
    LIST_ROWS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
    SLOTS: tl.constexpr,
    EXACT: tl.constexpr,
    KEYS: tl.constexpr,
    CAP: tl.constexpr,
    HAS_LISTS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    BY_SCORE: tl.constexpr,
    SINK_LOGITS: tl.constexpr,
    MASK_LAST: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Programs that run at the same time share a KV head, so that its pages stay in the L2 cache. The last tiles of a
    # long sequence have the longest lists: they start first.
    runs = tl.num_programs(0) // KV_HEADS
    g = tl.program_id(0) // runs
    run = runs - 1 - tl.program_id(0) % runs
    tile = run // LISTS
    first = (run % LISTS) * LIST_ROWS
    b = tl.load(tiles + tile * 4).to(tl.int64)
    row = tl.load(tiles + tile * 4 + 1).to(tl.int64) + first
    rows = tl.minimum(tl.load(tiles + tile * 4 + 2) - first, LIST_ROWS)
    first_position = tl.load(tiles + tile * 4 + 3) + first
    if rows > 0:
        r = tl.arange(0, TILE_ROWS)
        m = r // GROUP_BLOCK
        h = r % GROUP_BLOCK
        real = (m < rows) & (h < GROUP)
        d = tl.arange(0, BLOCK_D)
        dv = tl.arange(0, BLOCK_V)
        n = tl.arange(0, KEYS)
        query = tl.load(
            q
            + (row + m)[:, None] * stride_q_row
            + (g * GROUP + h)[:, None] * stride_q_head
            + d[None, :],
            mask=real[:, None] & (d[None, :] < HEAD_DIM),
            other=0.0,
        )
        k_head = k_buffer + g * stride_k_head
        v_head = v_buffer + g * stride_v_head
        table_row = page_table + b * stride_table
        top = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((TILE_ROWS,), tl.float32)
        acc = tl.zeros((TILE_ROWS, BLOCK_V), tl.float32)

        if BY_SCORE:
            if KIND == "prior":
                chooser = tl.load(
                    select_q
                    + (row + m)[:, None] * stride_select_row
                    + (g * GROUP + h)[:, None] * stride_select_head
                    + d[None, :],
                    mask=real[:, None] & (d[None, :] < HEAD_DIM),
                    other=0.0,
                )
            else:
                first_feature, second_feature = query_features(
                    query.to(tl.float32), score_scale, KIND
                )
        if HAS_LISTS:
            which = (tile * KV_HEADS + g) * LISTS + run % LISTS
            pages = list_pages + which.to(tl.int64) * stride_list
            row_bits = list_rows + which.to(tl.int64) * stride_list
            keys = tl.load(list_lengths + which) * PAGE_SIZE
            for lo in range(0, keys, KEYS):
                if KEYS <= PAGE_SIZE:  # a step lies in one page
                    inside = n < KEYS
                    unit = lo // PAGE_SIZE
                    page = tl.load(pages + unit).to(tl.int64)
                    bits = tl.load(row_bits + unit)
                    seen = ((bits >> m) & 1) != 0
                    slot = page * SLOTS + lo % PAGE_SIZE + n
                else:
                    inside = lo + n < keys
                    unit = (lo + n) // PAGE_SIZE
                    page = tl.load(pages + unit, mask=inside, other=0).to(tl.int64)
                    bits = tl.load(row_bits + unit, mask=inside, other=0)
                    seen = m >= 0
                    slot = page * SLOTS + (lo + n) % PAGE_SIZE
                if MASK_LAST:
                    key_slot = (lo + n) % PAGE_SIZE < PAGE_SIZE - 1
                    inside = inside & key_slot
                logits = raw_logits(
                    query, k_head, slot, inside, stride_k_slot, HEAD_DIM, BLOCK_D, PRECISION
                )  # fmt: skip
                base = scale
                if CAP:
                    logits, base = soft_cap(logits * scale, logit_cap), 1.0
                base *= LOG2_E
                if KEYS > PAGE_SIZE:
                    chosen = ((bits[None, :] >> m[:, None]) & 1) != 0
                    logits = tl.where(chosen, logits, float("-inf"))
                if MASK_LAST:
                    logits = tl.where(key_slot[None, :], logits, float("-inf"))
                if BY_SCORE:  # a step is one page
                    e = repr_buffer + page * stride_repr_page + g * stride_repr_head
                    if KIND == "prior":
                        score = prior_score(
                            chooser, e, biases + (page * KV_HEADS + g) * GROUP, h, score_scale,
                            GROUP, GROUP_BLOCK, HEAD_DIM, BLOCK_D, PRECISION,
                        )  # fmt: skip
                    else:
                        score = linear_score(
                            first_feature, second_feature, e, HEAD_DIM, BLOCK_D, WIDTH
                        )
                    top, total, acc = accumulate_page(
                        logits, base, score, seen, v_head, slot, inside, top, total, acc,
                        stride_v_slot, query.dtype, V_DIM, BLOCK_V, PRECISION,
                    )  # fmt: skip
                else:
                    best = tl.where(seen, tl.max(logits, axis=1) * base, float("-inf"))
                    top, total, acc = accumulate(
                        logits, best, base, seen, v_head, slot, inside, top, total, acc,
                        stride_v_slot, query.dtype, V_DIM, BLOCK_V, PRECISION,
                    )  # fmt: skip

        # Sink pages and window as one axis of keys; both end at the last row.
        position = first_position + m
        start = window_start(position, PAGE_SIZE, WINDOW, DENSE_BELOW)
        last = first_position + rows - 1
        last_start = window_start(last, PAGE_SIZE, WINDOW, DENSE_BELOW)
        first_start = window_start(first_position, PAGE_SIZE, WINDOW, DENSE_BELOW)
        sinks = tl.minimum(last_start, SINKS)
        gap = (tl.maximum(first_start, sinks) - sinks) * PAGE_SIZE
        sink_end = tl.minimum(start, SINKS) * PAGE_SIZE
        for lo in range(0, last + 1 - gap, KEYS):
            at = lo + n + tl.where(lo + n < sinks * PAGE_SIZE, 0, gap)
            inside = at <= last
            if MASK_LAST:
                inside = inside & (at % PAGE_SIZE < PAGE_SIZE - 1)
            page = tl.load(table_row + at // PAGE_SIZE, mask=inside, other=0)
            visible = (at[None, :] <= position[:, None]) & (
                (at[None, :] >= (start * PAGE_SIZE)[:, None])
                | (at[None, :] < sink_end[:, None])
            )
            if EXACT > 0:
                visible = visible & (at[None, :] > position[:, None] - EXACT)
            slot = page.to(tl.int64) * SLOTS + at % PAGE_SIZE
            logits = scale * raw_logits(
                query, k_head, slot, inside, stride_k_slot, HEAD_DIM, BLOCK_D, PRECISION
            )  # fmt: skip
            if CAP:
                logits = soft_cap(logits, logit_cap)
            if MASK_LAST:
                visible = visible & inside[None, :]
            logits = tl.where(visible, logits, float("-inf"))
            best = tl.max(logits, axis=1) * LOG2_E
            top, total, acc = accumulate(
                logits, best, LOG2_E, m >= 0, v_head, slot, inside, top, total, acc,
                stride_v_slot, query.dtype, V_DIM, BLOCK_V, PRECISION,
            )  # fmt: skip

        if SINK_LOGITS:
            sink = tl.load(sink_logits + g * GROUP + h, mask=real, other=0.0)
            sink = sink.to(tl.float32) * LOG2_E
            _, origin = running_max(top, sink)
            rescale = tl.exp2(top - origin)
            acc = acc * rescale[:, None]
            total = total * rescale + tl.exp2(sink - origin)
        o = acc / tl.where(total > 0, total, 1.0)[:, None] * v_scale
        out_ptr = (
            out
            + (row + m)[:, None] * stride_out_row
            + (g * GROUP + h)[:, None] * stride_out_head
            + dv[None, :]
        )
        mask = real[:, None] & (dv[None, :] < V_DIM)
        tl.store(out_ptr, o.to(out.dtype.element_ty), mask=mask)
        if HAS_LSE:
            lse_ptr = lse_out + (row + m) * stride_lse_row + g * GROUP + h
            tl.store(lse_ptr, (top + tl.log2(total)) / LOG2_E, mask=real)


def extend_hsa(
    q: torch.Tensor,
    cache: LayerCache,
    lists: Optional[PageLists],
    page_table: torch.Tensor,
    plan: ExtendPlan,
    out: torch.Tensor,
    params: AttentionParams,
    lse: Optional[torch.Tensor] = None,
    select_q: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Attention of all new tokens of a batch over sinks, selected pages and window.

    Args:
        q: packed queries ``[T, H_q, D]``, last dimension contiguous.
        cache: of the layer; the keys and values of the new tokens are written.
        lists: selected pages; None for sinks and window alone.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        plan: of the pass.
        out: ``[T, H_q, D_v]``, written whole.
        lse: natural log-sum-exp ``[T, H_q]`` float32, written if given; sink logits are left out then.
        select_q: queries that chose the pages ``[T, H_q, D]``, which ``prior`` scores them by.

    Returns:
        ``out``.
    """
    num_heads, head_dim = q.shape[1:]
    k_buffer, v_buffer = cache.keys, cache.values
    num_kv_heads, v_dim = v_buffer.shape[1:]
    reprs = cache.reprs if params.by_score and lists is not None else None
    group = num_heads // num_kv_heads
    group_block = triton.next_power_of_2(group)
    tile_rows, list_rows, batch_invariant = plan.tiling
    if lists is None:
        list_rows = min(tile_rows, rows_that_fit(group_block, max(head_dim, v_dim)))
    runs = tile_rows // list_rows
    rows = max(16, list_rows * group_block)  # tl.dot needs 16
    keys = KEYS_PER_STEP if reprs is None else params.page_size
    if batch_invariant:
        # Which pages share a step with one of the row's depends on the rows beside it.
        keys = min(keys, params.page_size)
    step_bytes = keys * (head_dim + v_dim) * k_buffer.element_size()
    stages = stages_that_fit(step_bytes, MAX_STAGES, shared_bytes(q.device))
    kind = "" if reprs is None else params.kind.name
    shape = launch_shape(max(head_dim, v_dim), rows, q.element_size(), kind, stages)
    _extend_hsa_kernel[(len(plan.tiles) * runs * num_kv_heads,)](
        q,
        k_buffer,
        v_buffer,
        None if lists is None else lists.pages,
        None if lists is None else lists.rows,
        None if lists is None else lists.lengths,
        page_table,
        plan.tiles,
        select_q,
        reprs,
        cache.biases,
        params.sink_logits,
        out,
        lse,
        params.sm_scale * params.k_scale,
        params.score_scale,
        params.logit_cap,
        params.v_scale,
        q.stride(0),
        q.stride(1),
        k_buffer.stride(0),
        k_buffer.stride(1),
        v_buffer.stride(0),
        v_buffer.stride(1),
        0 if lists is None else lists.pages.shape[-1],
        page_table.stride(0),
        0 if select_q is None else select_q.stride(0),
        0 if select_q is None else select_q.stride(1),
        0 if reprs is None else reprs.stride(0),
        0 if reprs is None else reprs.stride(1),
        out.stride(0),
        out.stride(1),
        0 if lse is None else lse.stride(0),
        KV_HEADS=num_kv_heads,
        GROUP=group,
        GROUP_BLOCK=group_block,
        LISTS=runs,
        LIST_ROWS=list_rows,
        TILE_ROWS=rows,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        V_DIM=v_dim,
        BLOCK_V=max(16, triton.next_power_of_2(v_dim)),
        **params.layout,
        SLOTS=params.slots_per_page,
        EXACT=params.exact_window,
        KEYS=keys,
        CAP=params.logit_cap > 0,
        HAS_LISTS=lists is not None,
        HAS_LSE=lse is not None,
        BY_SCORE=reprs is not None,
        SINK_LOGITS=params.sink_logits is not None and lse is None,
        MASK_LAST=params.mask_last_slot,
        KIND=kind,
        WIDTH=getattr(params.kind, "width", 0),
        PRECISION=dot_precision(q.dtype),
        **shape,
    )
    return out


def launch_shape(dim: int, rows: int, bytes_each: int, kind: str, stages: int) -> dict:
    """Warps, stages and the limit of registers.

    Few registers make room for one program more on a multiprocessor. Few rows have little to share among warps.

    Args:
        dim: of a key or a value; bytes_each: of its elements.
        rows: of a matrix product.
        kind: of representation by which pages are weighed; "" if they are not.
        stages: as many as fit.
    """
    if kind == PRIOR.name and rows == 16 and bytes_each == 2:
        return dict(num_warps=2, num_stages=2)
    num_warps = 4 if dim <= 128 and rows <= 64 else 8
    # The scores of linear kinds need more registers.
    if dim <= 64 and bytes_each == 2 and kind in ("", PRIOR.name):
        return dict(num_warps=num_warps, num_stages=2, maxnreg=FOUR_PROGRAMS)
    return dict(num_warps=num_warps, num_stages=stages)
