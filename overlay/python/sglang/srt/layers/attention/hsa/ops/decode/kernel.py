# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the decode op: sinks, selected pages and window under one softmax, in one launch.

The pages of one row and KV head form one list: sinks, selected, window. Several programs share the list, each
attends its part for all query heads of the KV head at once, and the one that finishes last combines the parts.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    LOG2_E,
    decode_row,
    dot_precision,
    running_max,
    shared_bytes,
    soft_cap,
    stages_that_fit,
)
from sglang.srt.layers.attention.hsa.ops.decode.page_scores import page_score
from sglang.srt.layers.attention.hsa.ops.extend.attention_step import own_softmax
from sglang.srt.layers.attention.hsa.ops.linear_kinds import head_features
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

MAX_SPLITS = 16
MAX_STAGES = 3  # pages in flight, as far as they fit into shared memory


@triton.jit(do_not_specialize=["sequences"])
def _decode_hsa_kernel(
    q,
    k_buffer,
    v_buffer,
    selected,
    page_table,
    seq_lens,
    select_q,
    repr_buffer,
    biases,
    sink_logits,
    out,
    part_o,
    part_lse,
    arrivals,
    sequences,
    sm_scale,
    score_scale,
    logit_cap,
    k_scale,
    v_scale,
    stride_q_row,
    stride_q_head,
    stride_k_slot,
    stride_k_head,
    stride_v_slot,
    stride_v_head,
    stride_selected_row,
    stride_selected_head,
    stride_table,
    stride_select_row,
    stride_select_head,
    stride_repr_page,
    stride_repr_head,
    stride_out_row,
    stride_out_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
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
    TOPK: tl.constexpr,
    CAP: tl.constexpr,
    BY_SCORE: tl.constexpr,
    SINK_LOGITS: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    COMBINE_SPLITS: tl.constexpr,
    COMBINE_G: tl.constexpr,
    MASK_LAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    b = row // KV_HEADS
    g = row % KV_HEADS
    position, start, candidates = decode_row(
        seq_lens, b, PAGE_SIZE, WINDOW, SINKS, DENSE_BELOW
    )
    table_row = page_table + (b % sequences).to(tl.int64) * stride_table
    selected_row = (
        selected + b.to(tl.int64) * stride_selected_row + g * stride_selected_head
    )

    head = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_V)
    offset = tl.arange(0, PAGE_SIZE)
    in_group = head < GROUP
    q_ptr = (
        q
        + b.to(tl.int64) * stride_q_row
        + (g * GROUP + head[:, None]) * stride_q_head
        + d[None, :]
    )
    query = tl.load(q_ptr, mask=in_group[:, None] & (d[None, :] < HEAD_DIM), other=0.0)
    if BY_SCORE:
        first_feature, second_feature = head_features(
            select_q + b.to(tl.int64) * stride_select_row + g * GROUP * stride_select_head, score_scale,
            stride_select_head, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, KIND,
        )  # fmt: skip

    # The last page of the window is the query's own; the list is as long as this row needs.
    window_pages = position // PAGE_SIZE - start + 1
    chosen = tl.minimum(candidates, TOPK)
    pages = SINKS + chosen + window_pages
    per_split = tl.cdiv(pages, num_splits)
    top = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, BLOCK_V), tl.float32)
    for unit in range(split * per_split, tl.minimum((split + 1) * per_split, pages)):
        # No branch: the loads of the next pages must be free to start early.
        in_window = unit >= SINKS + chosen
        logical = tl.where(in_window, start + unit - (SINKS + chosen), unit)
        from_table = in_window | (unit < tl.minimum(start, SINKS))
        from_selection = (unit >= SINKS) & (unit < SINKS + chosen)
        page = tl.maximum(
            tl.load(table_row + logical, mask=from_table, other=-1),
            tl.load(selected_row + unit - SINKS, mask=from_selection, other=-1),
        )
        # Only the query's own page holds slots past the query.
        visible = (page >= 0) & (
            from_selection | (logical * PAGE_SIZE + offset <= position)
        )
        if EXACT > 0:
            visible = visible & (logical * PAGE_SIZE + offset > position - EXACT)
        if MASK_LAST:
            visible = visible & (offset < PAGE_SIZE - 1)
        slot = tl.maximum(page, 0).to(tl.int64) * SLOTS + offset
        k_ptr = (
            k_buffer + slot[None, :] * stride_k_slot + g * stride_k_head + d[:, None]
        )
        key = tl.load(k_ptr, mask=visible[None, :] & (d[:, None] < HEAD_DIM), other=0.0)
        v_ptr = (
            v_buffer + slot[:, None] * stride_v_slot + g * stride_v_head + dv[None, :]
        )
        value = tl.load(v_ptr, mask=visible[:, None] & (dv[None, :] < V_DIM), other=0.0)
        logits = tl.dot(query, key.to(query.dtype), input_precision=PRECISION)
        logits = logits * (sm_scale * k_scale)
        if CAP:
            logits = soft_cap(logits, logit_cap)
        logits = tl.where(visible[None, :], logits, float("-inf"))
        if BY_SCORE:
            score = page_score(
                first_feature, second_feature, tl.maximum(page, 0).to(tl.int64), g, from_selection,
                repr_buffer, biases,
                stride_repr_page, stride_repr_head, KV_HEADS, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, KIND, WIDTH,
            )  # fmt: skip
            p, highest, mass = own_softmax(logits, LOG2_E)
            lse = (highest + tl.log2(mass)) / LOG2_E
            weight = tl.where(from_selection, score, lse)
            weight = tl.where(mass > 0, weight, float("-inf"))
            new_top, origin = running_max(top, weight)
            weight = tl.exp(weight - origin)
            p *= (weight / tl.where(mass > 0, mass, 1.0))[:, None]
            mass = weight
        else:
            new_top, origin = running_max(top, tl.max(logits, axis=1))
            p = tl.exp(logits - origin[:, None])
            mass = tl.sum(p, axis=1)
        rescale = tl.exp(top - origin)
        acc = acc * rescale[:, None] + tl.dot(
            p.to(query.dtype), value.to(query.dtype), input_precision=PRECISION
        )
        total = total * rescale + mass
        top = new_top

    part = row.to(tl.int64) * num_splits + split
    norm = tl.where(total > 0, total, 1.0)
    o_ptr = part_o + (part * GROUP + head[:, None]) * V_DIM + dv[None, :]
    tl.store(o_ptr, acc / norm[:, None], mask=in_group[:, None] & (dv[None, :] < V_DIM))
    tl.store(part_lse + part * GROUP + head, top + tl.log(total), mask=in_group)

    # The last program to arrive combines the parts.
    tl.debug_barrier()
    if tl.atomic_add(arrivals + row, 1, sem="acq_rel") == num_splits - 1:
        tl.store(arrivals + row, 0)  # ready for the next launch
        n = tl.arange(0, COMBINE_SPLITS)
        first = row.to(tl.int64) * num_splits
        for h0 in tl.static_range(0, GROUP, COMBINE_G):
            h = h0 + tl.arange(0, COMBINE_G)
            live = (n[:, None] < num_splits) & (h[None, :] < GROUP)
            at = (first + n[:, None]) * GROUP + h[None, :]  # [splits, heads]
            lse = tl.load(
                part_lse + at, mask=live, other=float("-inf"), cache_modifier=".cg"
            )
            highest = tl.max(lse, axis=0)
            if SINK_LOGITS:
                sink = tl.load(sink_logits + g * GROUP + h, mask=h < GROUP, other=0.0)
                sink = sink.to(tl.float32)
                highest = tl.maximum(highest, sink)
            # A head of padding has no part at all; measure it against 0 to avoid -inf - -inf.
            highest = tl.where(highest == float("-inf"), 0.0, highest)
            weight = tl.exp(lse - highest[None, :])
            mass = tl.sum(weight, axis=0)
            if SINK_LOGITS:
                mass += tl.exp(sink - highest)
            o = tl.load(
                part_o + at[:, :, None] * V_DIM + dv[None, None, :],
                mask=live[:, :, None] & (dv[None, None, :] < V_DIM),
                other=0.0,
                cache_modifier=".cg",
            )
            share = weight / tl.where(mass > 0, mass, 1.0)[None, :]
            combined = tl.sum(o * share[:, :, None], axis=0) * v_scale  # [heads, V]
            out_ptr = (
                out
                + b.to(tl.int64) * stride_out_row
                + (g * GROUP + h[:, None]) * stride_out_head
                + dv[None, :]
            )
            tl.store(
                out_ptr,
                combined.to(out.dtype.element_ty),
                mask=(h[:, None] < GROUP) & (dv[None, :] < V_DIM),
            )


class DecodeWorkspace:
    """Scratch of ``decode_hsa``, allocated once and reused by every layer.

    Args:
        max_rows: largest batch size.
        max_programs: most programs of a launch: rows times KV heads times splits.
        num_heads: query heads on this rank.
        num_kv_heads: KV heads on this rank.
        v_head_dim: dimensions of a value.
        device: CUDA device, or ``cpu`` under the Triton interpreter.
    """

    def __init__(
        self,
        max_rows: int,
        max_programs: int,
        num_heads: int,
        num_kv_heads: int,
        v_head_dim: int,
        device,
    ):
        self.max_programs = max_programs
        parts = max_programs * (num_heads // num_kv_heads)
        self.part_o = torch.empty(
            parts * v_head_dim, dtype=torch.float32, device=device
        )
        self.part_lse = torch.empty(parts, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(
            max_rows * num_kv_heads, dtype=torch.int32, device=device
        )

    def reset(self) -> None:
        """As ``SelectPagesWorkspace.reset``."""
        self.arrivals.zero_()


def decode_hsa(
    q: torch.Tensor,
    cache: LayerCache,
    selected_pages: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: DecodeWorkspace,
    params: AttentionParams,
    num_splits: int = MAX_SPLITS,
    max_splits: int = MAX_SPLITS,
    select_q: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Attention of rows with one query each over sinks, selected pages and window.

    Args:
        q: queries ``[B, H_q, D]``, last dimension contiguous.
        cache: of the layer; the keys and values of the new tokens are written.
        selected_pages: physical pages ``[B, H_kv, K]`` int32, -1 for none; K may be 0.
        page_table: physical page of each logical page ``[N, max_pages]`` int32; row b is of sequence b mod N.
        seq_lens: places up to the query's own, which it includes ``[B]`` int32; 0 for a row that attends nothing.
        out: ``[B, H_q, D_v]``, written whole; zeros for a row that attends nothing.
        workspace: scratch for at least this batch.
        num_splits: programs that share one row and KV head, at least 1; max_splits: most of any launch.
        select_q: queries that chose the pages ``[B, H_q, D]``, last dimension contiguous; None for q.

    Returns:
        ``out``.

    Raises:
        ValueError: for more programs than the scratch has room for.
    """
    batch, num_heads, head_dim = q.shape
    k_buffer, v_buffer, page_size = cache.keys, cache.values, params.page_size
    num_kv_heads, v_dim = v_buffer.shape[1:]
    if batch * num_kv_heads * num_splits > workspace.max_programs:
        raise ValueError(
            f"{batch} rows of {num_kv_heads} KV heads in {num_splits} splits need more than "
            f"{workspace.max_programs} programs"
        )
    group = num_heads // num_kv_heads
    block_v = triton.next_power_of_2(v_dim)
    # Few variants to compile: one of a single program, and one of any number.
    most = 1 if num_splits == 1 else max(num_splits, max_splits)
    combine_splits = triton.next_power_of_2(most)
    by_score = params.by_score and selected_pages.shape[-1] > 0
    chooser = q if select_q is None else select_q
    reprs = cache.reprs if by_score else None
    page_bytes = page_size * (head_dim + v_dim) * k_buffer.element_size()
    _decode_hsa_kernel[(batch * num_kv_heads, num_splits)](
        q,
        k_buffer,
        v_buffer,
        selected_pages,
        page_table,
        seq_lens,
        chooser,
        reprs,
        cache.biases,
        params.sink_logits,
        out,
        workspace.part_o,
        workspace.part_lse,
        workspace.arrivals,
        len(page_table),
        params.sm_scale,
        params.score_scale,
        params.logit_cap,
        params.k_scale,
        params.v_scale,
        q.stride(0),
        q.stride(1),
        k_buffer.stride(0),
        k_buffer.stride(1),
        v_buffer.stride(0),
        v_buffer.stride(1),
        selected_pages.stride(0),
        selected_pages.stride(1),
        page_table.stride(0),
        chooser.stride(0),
        chooser.stride(1),
        reprs.stride(0) if by_score else 0,
        reprs.stride(1) if by_score else 0,
        out.stride(0),
        out.stride(1),
        KV_HEADS=num_kv_heads,
        GROUP=group,
        BLOCK_G=max(16, triton.next_power_of_2(group)),  # tl.dot needs 16 rows
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        V_DIM=v_dim,
        BLOCK_V=max(16, block_v),
        **params.layout,
        SLOTS=params.slots_per_page,
        EXACT=params.exact_window,
        TOPK=selected_pages.shape[-1],
        CAP=params.logit_cap > 0,
        BY_SCORE=by_score,
        SINK_LOGITS=params.sink_logits is not None,
        KIND=params.kind.name if by_score else "",
        WIDTH=getattr(params.kind, "width", 0),
        COMBINE_SPLITS=combine_splits,
        COMBINE_G=min(
            triton.next_power_of_2(group), max(1, 8192 // (combine_splits * block_v))
        ),
        MASK_LAST=params.mask_last_slot,
        PRECISION=dot_precision(q.dtype),
        num_warps=4,
        num_stages=stages_that_fit(page_bytes, MAX_STAGES, shared_bytes(q.device)),
    )
    return out
