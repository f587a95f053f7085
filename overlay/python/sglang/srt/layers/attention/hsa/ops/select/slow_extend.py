# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the select op for extend and slow_keys: codes to keys, scores, then rankings and lists.

Every query of a chunk meets every page, so the codes of a sequence are turned into keys once, in scratch. Scores are
products and little else: many small programs hide their latencies. Rankings take nearly all registers, so they are a kernel of
their own, with the scores between them in scratch of bounded size, which tiles share by taking turns.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import dot_precision, rank_unknown_first
from sglang.srt.layers.attention.hsa.ops.extend.plan import ExtendPlan
from sglang.srt.layers.attention.hsa.ops.select.extend_lists import (
    num_candidates,
    rank_and_list,
)
from sglang.srt.layers.attention.hsa.ops.select.extend_ranking import (
    LANES,
    WIDTHS,
    num_peaks,
    ordered_keys,
    rows_at_a_time,
)
from sglang.srt.layers.attention.hsa.ops.select.page_lists import PageLists
from sglang.srt.layers.attention.hsa.ops.select.slow_codes import (
    load_kept,
    load_page,
    scale_back,
    unpack,
)
from sglang.srt.layers.attention.hsa.page_repr import num_channels
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

SCRATCH_BYTES = 128 << 20
PAGES = 16  # whose scores are stored together
PAGES_PER_PROGRAM = 64
PEAK_ROWS: tl.constexpr = tl.constexpr(8)


@triton.jit(do_not_specialize=["sequence", "count"])
def _expand_slow_kernel(
    repr_buffer,
    repr_version,
    page_version,
    page_table,
    expanded,
    bias,
    sequence,
    count,
    stride_repr_page,
    stride_repr_head,
    stride_table,
    PAGE_SIZE: tl.constexpr,
    SINKS: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """Keys of one candidate page and KV head, and its ``rank_unknown_first`` of 0."""
    number = tl.program_id(0)
    g = tl.program_id(1)
    table_row = page_table + sequence.to(tl.int64) * stride_table + SINKS
    page = tl.load(table_row + number).to(tl.int64)
    packed, low, step, low_2, step_2 = load_page(
        repr_buffer + page * stride_repr_page + g * stride_repr_head,
        PAGE_SIZE,
        HALF,
        BLOCK_HALF,
    )
    dtype: tl.constexpr = expanded.dtype.element_ty
    key, key_2 = unpack(packed, low, step, low_2, step_2, dtype)
    c = tl.arange(0, BLOCK_HALF)[None, :]
    slot = tl.arange(0, PAGE_SIZE)[:, None]
    at = (g * count + number).to(tl.int64) * PAGE_SIZE * 2 * BLOCK_HALF
    at = expanded + at + slot * 2 * BLOCK_HALF + c
    # Channels of padding are 0 in the queries; here they must only be finite.
    tl.store(at, tl.where(c < HALF, key, 0.0).to(dtype))
    tl.store(at + BLOCK_HALF, tl.where(c < HALF, key_2, 0.0).to(dtype))
    if g == 0:
        known = tl.zeros((), tl.float32)
        if HAS_VERSIONS:
            stamp = tl.load(repr_version + page)
            known = rank_unknown_first(known, stamp, tl.load(page_version + page))
        tl.store(bias + number, known)


@triton.jit(do_not_specialize=["first_item", "count"])
def _score_slow_kernel(
    q,
    expanded,
    bias,
    tiles,
    keys,
    channels,
    first_item,
    count,
    sm_scale,
    stride_q_row,
    stride_q_head,
    stride_keys,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ROWS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
    STRATEGY: tl.constexpr,
    PAGES: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Programs that run at the same time take the same pages for different queries.
    place = tl.program_id(0)
    item = first_item + place
    tile = tiles + (item // KV_HEADS) * 4
    g = item % KV_HEADS
    row = tl.load(tile + 1).to(tl.int64)
    rows = tl.load(tile + 2)
    m = tl.arange(0, ROWS)
    lengths = num_candidates(
        m, rows, tl.load(tile + 3), PAGE_SIZE, WINDOW, SINKS, DENSE_BELOW
    )
    most = tl.max(lengths)
    begin = tl.program_id(1) * PER_PROGRAM
    if begin < most:
        r = tl.arange(0, ROWS * BLOCK_H)
        h = r % BLOCK_H
        real = (r // BLOCK_H < rows) & (h < GROUP)
        q_row = (
            q + (row + r // BLOCK_H) * stride_q_row + (g * GROUP + h) * stride_q_head
        )
        query = load_kept(q_row, channels, real, HALF, BLOCK_HALF)
        key_row = keys + (place.to(tl.int64) * ROWS + m)[:, None] * stride_keys
        column = tl.arange(0, PAGES)[None, :]
        in_group = (tl.arange(0, BLOCK_H) < GROUP)[None, :, None]
        c = tl.arange(0, 2 * BLOCK_HALF)[:, None]
        slot = tl.arange(0, PAGE_SIZE)[None, :]
        key_ptr = expanded + g * count.to(tl.int64) * PAGE_SIZE * 2 * BLOCK_HALF
        key_ptr = key_ptr + slot * 2 * BLOCK_HALF + c
        for lo in range(begin, tl.minimum(begin + PER_PROGRAM, most), PAGES):
            raw = tl.full((ROWS * BLOCK_H, PAGES), float("-inf"), tl.float32)
            end = tl.minimum(PAGES, most - lo)
            for i in tl.range(0, end, num_stages=STAGES):
                at = tl.cast(lo + i, tl.int64) * PAGE_SIZE * 2 * BLOCK_HALF
                logits = tl.dot(query, tl.load(key_ptr + at), input_precision=PRECISION)
                best = tl.max(logits, axis=1)
                raw = tl.where(column == i, best[:, None], raw)
            index = lo + column
            known = tl.load(bias + index, mask=index < most, other=0.0)
            raw = tl.where(known == 0.0, raw * sm_scale, known)
            score = tl.reshape(raw, (ROWS, BLOCK_H, PAGES))
            if STRATEGY == "group":
                score = tl.sum(tl.where(in_group, score, 0.0), axis=1)
            else:
                score = tl.max(tl.where(in_group, score, float("-inf")), axis=1)
            value = tl.where(index < lengths[:, None], ordered_keys(score), 0)
            tl.store(key_row + index, value, mask=index < most)


@triton.jit
def _store_peaks(keys, peaks, lengths, most, stride_keys, ROWS, PEAKS: tl.constexpr):
    """Maxima of the keys that lie a multiple of PEAKS apart, of each of ROWS rows, at ``peaks`` ``[ROWS, PEAKS]``."""
    lane = tl.arange(0, PEAKS)[None, :]
    for at in range(0, ROWS, PEAK_ROWS):
        n = at + tl.arange(0, PEAK_ROWS)
        length = tl.load(lengths + n)[:, None]
        peak = tl.zeros((PEAK_ROWS, PEAKS), tl.uint32)
        for lo in range(0, most, PEAKS):
            column = lo + lane
            key = tl.load(
                keys + n[:, None] * stride_keys + column, mask=column < length, other=0
            )
            peak = tl.maximum(peak, key)
        tl.store(peaks + n[:, None] * PEAKS + lane, peak)


@triton.jit(do_not_specialize=["first_item", "items"])
def _rank_slow_kernel(
    page_table,
    tiles,
    list_pages,
    list_rows,
    list_lengths,
    keys,
    peaks,
    kept,
    ranks,
    counters,
    first_item,
    items,
    stride_table,
    stride_list,
    stride_keys,
    stride_kept,
    KV_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTHS: tl.constexpr,
    RANKED: tl.constexpr,
    PEAKS: tl.constexpr,
    LIST_ROWS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    peaks += program.to(tl.int64) * ROWS * PEAKS
    kept += program.to(tl.int64) * stride_kept
    ranks += program.to(tl.int64) * ROWS * 3
    m = tl.arange(0, ROWS)
    for place in range(program, items, tl.num_programs(0)):
        item = first_item + place
        tile = tiles + (item // KV_HEADS) * 4
        g = item % KV_HEADS
        b = tl.load(tile).to(tl.int64)
        rows = tl.load(tile + 2)
        lengths = num_candidates(
            m, rows, tl.load(tile + 3), PAGE_SIZE, WINDOW, SINKS, DENSE_BELOW
        )
        most = tl.max(lengths)
        item_keys = keys + tl.cast(place, tl.int64) * ROWS * stride_keys
        if most > WIDTHS[len(WIDTHS) - 1]:
            tl.store(ranks + m, lengths)
            tl.debug_barrier()
            _store_peaks(item_keys, peaks, ranks, most, stride_keys, ROWS, PEAKS)
        rank_and_list(
            item, g, rows, lengths, item_keys, peaks, kept, ranks, page_table + b * stride_table + SINKS,
            list_pages, list_rows, list_lengths, counters, stride_list, stride_keys, ROWS, WIDTHS, RANKED, PEAKS,
            LIST_ROWS, TOPK, TOPK_BLOCK,
        )  # fmt: skip


class SlowSelectWorkspace:
    """Scratch of ``select_slow_pages_extend``, reused by every layer; arguments as of ``ExtendSelectWorkspace``.

    Attributes:
        items: pairs of a tile and a KV head whose scores fit into the scratch at once.
        expanded: keys of the kept channels of one sequence, sized by the first layer that selects.
    """

    def __init__(self, plan: ExtendPlan, num_kv_heads: int, topk: int, processors: int):
        self.expanded: Optional[torch.Tensor] = None
        self.bias = torch.empty(
            plan.max_candidates, dtype=torch.float32, device=plan.tiles.device
        )
        tile_rows, device = plan.tiling.tile_rows, plan.tiles.device
        width = triton.cdiv(plan.max_candidates, LANES.value) * LANES.value
        items = len(plan.tiles) * num_kv_heads
        self.items = min(items, max(1, SCRATCH_BYTES // (tile_rows * width * 4)))
        self.programs = min(self.items, 2 * processors)

        def scratch(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.uint32, device=device)

        rows = self.programs * tile_rows
        self.ranks = torch.empty(rows * 3, dtype=torch.int32, device=device)
        self.keys = scratch(self.items * tile_rows, width)
        sieved = plan.max_candidates > WIDTHS[-1]
        self.peaks = scratch(rows * sieved, num_peaks(topk))
        self.kept = scratch(
            self.programs * sieved, rows_at_a_time(tile_rows)[-1] * WIDTHS[-1]
        )


def select_slow_pages_extend(
    q: torch.Tensor,
    cache: LayerCache,
    page_table: torch.Tensor,
    plan: ExtendPlan,
    out: PageLists,
    workspace: SlowSelectWorkspace,
    counters: torch.Tensor,
    params: AttentionParams,
) -> PageLists:
    """As ``select_pages_extend``, by slow_keys and the strategy group or head."""
    num_heads, head_dim = q.shape[1:]
    reprs, page_size, topk = cache.reprs, params.page_size, params.topk
    num_kv_heads = reprs.shape[1]
    group = num_heads // num_kv_heads
    half = num_channels(head_dim) // 2
    tile_rows = plan.tiling.tile_rows
    layout = dict(KV_HEADS=num_kv_heads, ROWS=tile_rows, **params.layout)
    block_half = max(half, 16)
    if workspace.expanded is None:
        shape = (num_kv_heads, plan.max_candidates, page_size, 2 * block_half)
        workspace.expanded = q.new_empty(shape)
    for sequence, candidates, first_tile, tiles in plan.sequences:
        if candidates:
            _expand_slow_kernel[(candidates, num_kv_heads)](
                reprs,
                cache.stamps,
                cache.versions,
                page_table,
                workspace.expanded,
                workspace.bias,
                sequence,
                candidates,
                reprs.stride(0),
                reprs.stride(1),
                page_table.stride(0),
                PAGE_SIZE=page_size,
                SINKS=params.sink_pages,
                HAS_VERSIONS=cache.stamps is not None,
                HALF=half,
                BLOCK_HALF=block_half,
                num_warps=4,
            )
        items = tiles * num_kv_heads
        for place in range(0, items, workspace.items):
            first = first_tile * num_kv_heads + place
            count = min(workspace.items, items - place)
            if candidates:
                _score_slow_kernel[(count, triton.cdiv(candidates, PAGES_PER_PROGRAM))](
                    q,
                    workspace.expanded,
                    workspace.bias,
                    plan.tiles,
                    workspace.keys,
                    cache.channels,
                    first,
                    candidates,
                    params.score_scale * scale_back(q.dtype),
                    q.stride(0),
                    q.stride(1),
                    workspace.keys.shape[1],
                    **layout,
                    GROUP=group,
                    BLOCK_H=triton.next_power_of_2(group),
                    STRATEGY=params.strategy,
                    PAGES=PAGES,
                    PER_PROGRAM=PAGES_PER_PROGRAM,
                    HALF=half,
                    BLOCK_HALF=block_half,
                    PRECISION=dot_precision(q.dtype),
                    STAGES=3,
                    num_warps=4,
                )
            _rank_slow_kernel[(min(count, workspace.programs),)](
                page_table,
                plan.tiles,
                out.pages,
                out.rows,
                out.lengths,
                workspace.keys,
                workspace.peaks,
                workspace.kept,
                workspace.ranks,
                counters,
                first,
                count,
                page_table.stride(0),
                out.pages.shape[-1],
                workspace.keys.shape[1],
                workspace.kept.shape[1],
                **layout,
                WIDTHS=WIDTHS,
                RANKED=rows_at_a_time(tile_rows),
                PEAKS=workspace.peaks.shape[1],
                LIST_ROWS=out.list_rows,
                TOPK=topk,
                TOPK_BLOCK=triton.next_power_of_2(topk),
                num_warps=4,
                num_stages=1,
            )
    return out
