# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the select op for extend and slow_keys: codes to keys, scores, then rankings and lists.

Every query of a chunk meets every page, so the codes of a sequence are turned into keys once, in scratch. Scores are
products and little else: many small programs hide their latencies. Rankings take nearly all registers, so they are a kernel of
their own, with the scores between them in scratch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import rank_unknown_first
from sglang.srt.layers.attention.hsa.ops.select.extend_lists import (
    num_candidates,
    rank_and_list,
)
from sglang.srt.layers.attention.hsa.ops.select.extend_ranking import ordered_keys
from sglang.srt.layers.attention.hsa.ops.select.slow_codes import (
    load_kept,
    load_page,
    unpack,
)

PEAK_ROWS: tl.constexpr = tl.constexpr(8)


@triton.jit(do_not_specialize=["first_sequence"])
def expand_slow_kernel(
    repr_buffer,
    repr_version,
    page_version,
    page_table,
    spans,
    expanded,
    bias,
    first_sequence,
    stride_repr_page,
    stride_repr_head,
    stride_table,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SINKS: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """Keys of one candidate page of a sequence and KV head, and its ``rank_unknown_first`` of 0."""
    number = tl.program_id(0)
    g = tl.program_id(1)
    sequence = (first_sequence + tl.program_id(2)).to(tl.int64)
    if number < tl.load(spans + sequence * 2 + 1):
        place = (tl.load(spans + sequence * 2) + number).to(tl.int64)
        table_row = page_table + sequence * stride_table + SINKS
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
        at = (place * KV_HEADS + g) * PAGE_SIZE * 2 * BLOCK_HALF
        at = expanded + at + slot * 2 * BLOCK_HALF + c
        # Channels of padding are 0 in the queries; here they must only be finite.
        tl.store(at, tl.where(c < HALF, key, 0.0).to(dtype))
        tl.store(at + BLOCK_HALF, tl.where(c < HALF, key_2, 0.0).to(dtype))
        if g == 0:
            known = tl.zeros((), tl.float32)
            if HAS_VERSIONS:
                stamp = tl.load(repr_version + page)
                known = rank_unknown_first(known, stamp, tl.load(page_version + page))
            tl.store(bias + place, known)


@triton.jit(do_not_specialize=["first_item", "per_program"])
def score_slow_kernel(
    q,
    expanded,
    bias,
    spans,
    tiles,
    keys,
    channels,
    first_item,
    per_program,
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
    begin = tl.program_id(1) * per_program
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
        first_page = tl.load(spans + tl.load(tile) * 2).to(tl.int64)
        bias += first_page
        page_keys: tl.constexpr = KV_HEADS * PAGE_SIZE * 2 * BLOCK_HALF
        key_ptr = expanded + first_page * page_keys + g * (page_keys // KV_HEADS)
        key_ptr = key_ptr + slot * 2 * BLOCK_HALF + c
        for lo in range(begin, tl.minimum(begin + per_program, most), PAGES):
            raw = tl.full((ROWS * BLOCK_H, PAGES), float("-inf"), tl.float32)
            end = tl.minimum(PAGES, most - lo)
            for i in tl.range(0, end, num_stages=STAGES):
                at = tl.cast(lo + i, tl.int64) * page_keys
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
def _store_peaks(
    keys, peaks, lengths, most, stride_keys, ROWS: tl.constexpr, PEAKS: tl.constexpr
):
    """Maxima of the keys that lie a multiple of PEAKS apart, of each of ROWS rows, at ``peaks`` ``[ROWS, PEAKS]``."""
    BLOCK: tl.constexpr = PEAK_ROWS if PEAK_ROWS < ROWS else ROWS
    lane = tl.arange(0, PEAKS)[None, :]
    for at in range(0, ROWS, BLOCK):
        n = at + tl.arange(0, BLOCK)
        length = tl.load(lengths + n)[:, None]
        peak = tl.zeros((BLOCK, PEAKS), tl.uint32)
        for lo in range(0, most, PEAKS):
            column = lo + lane
            key = tl.load(
                keys + n[:, None] * stride_keys + column, mask=column < length, other=0
            )
            peak = tl.maximum(peak, key)
        tl.store(peaks + n[:, None] * PEAKS + lane, peak)


@triton.jit(do_not_specialize=["first_item", "items"])
def rank_slow_kernel(
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
