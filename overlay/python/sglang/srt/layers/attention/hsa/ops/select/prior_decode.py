# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the select op for decode and ``prior``: as ``decode_kernel``, with a representation per query head.

Programs beside those of the pages add up sinks and window, so that neither waits for the other.

A step has two rows per sequence, the token's and a landmark's (see ``landmark_rows``). Representations of the pages that
tokens complete are written before: a request may share such a page with one that ended, and have it as a candidate.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    REPRS_MISSING,
    add_count,
    decode_row,
    programs_per_row,
)
from sglang.srt.layers.attention.hsa.ops.linear_kinds import head_features
from sglang.srt.layers.attention.hsa.ops.select.decode_kernel import (
    SelectPagesWorkspace,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_ranking import (
    ranking_warps,
    ranking_widths,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_scores import (
    add_local_logits,
    add_to_norm,
    rank_last,
    store_norms,
)
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

ELEMENTS_PER_STEP = 8192  # of representations
LOCAL_ELEMENTS_PER_STEP = 2048  # of keys
ROWS_PER_SEQUENCE = 2
PAGE_PROGRAMS, LOCAL_PROGRAMS = 64, 20  # most of a row and KV head
MOST_PROGRAMS = 128  # of both; a power of two


@triton.jit(do_not_specialize=["sequences", "page_programs"])
def _select_prior_decode_kernel(
    q,
    select_q,
    k_buffer,
    repr_buffer,
    biases,
    stamps,
    page_version,
    page_table,
    seq_lens,
    out,
    scores,
    norms,
    arrivals,
    counters,
    sequences,
    page_programs,
    scale,
    logit_cap,
    stride_q_row,
    stride_q_head,
    stride_select_row,
    stride_select_head,
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
    SLOTS: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    CAP: tl.constexpr,
    PAGES: tl.constexpr,
    LOCAL_KEYS: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    WIDTHS: tl.constexpr,
):
    row = tl.program_id(0)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    b = (row // KV_HEADS).to(tl.int64)
    g = row % KV_HEADS
    position, start, count = decode_row(
        seq_lens, b, PAGE_SIZE, WINDOW, SINKS, DENSE_BELOW
    )
    table = page_table + (b % sequences) * stride_table
    table_row = table + SINKS
    scores_row = scores + row.to(tl.int64) * GROUP * stride_scores
    norms_row = norms + row.to(tl.int64) * num_splits * GROUP
    chooser = select_q + b * stride_select_row + g * GROUP * stride_select_head
    d = tl.arange(0, BLOCK_D)
    head = tl.arange(0, BLOCK_G)
    n = tl.arange(0, PAGES)
    in_group = head < GROUP
    in_heads = in_group[:, None] & (d < HEAD_DIM)[None, :]
    feature, _ = head_features(
        chooser, scale, stride_select_head, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, "prior"
    )  # fmt: skip
    top = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    missing = tl.zeros((PAGES,), tl.int32)
    end = tl.where(split < page_programs, count, 0)
    for lo in range(split * PAGES, end, page_programs * PAGES):
        inside = lo + n < count
        page = tl.load(table_row + lo + n, mask=inside, other=0).to(tl.int64)
        stamp = tl.load(stamps + page, mask=inside, other=0)
        current = tl.load(page_version + page, mask=inside, other=-1)
        # What has no landmark's representation weighs nothing, whatever its bytes say.
        valid = inside & (stamp == current)
        missing += (inside & (current >= 0) & (stamp != current)).to(tl.int32)
        e_ptr = repr_buffer + page * stride_repr_page + g * stride_repr_head
        mean = tl.load(
            e_ptr[:, None, None] + head[None, :, None] * HEAD_DIM + d[None, None, :],
            mask=inside[:, None, None] & in_heads[None, :, :],
            other=0.0,
        ).to(tl.float32)
        bias_ptr = biases + ((page * KV_HEADS + g) * GROUP)[:, None] + head[None, :]
        live = inside[:, None] & in_group[None, :]
        raw = tl.sum(mean * feature[None, :, :], axis=2)  # [PAGES, BLOCK_G]
        raw += tl.load(bias_ptr, mask=live, other=0.0)
        raw = tl.where(valid[:, None] & in_group[None, :], raw, float("-inf"))
        plane_ptr = scores_row + head[None, :] * stride_scores + (lo + n)[:, None]
        tl.store(plane_ptr, raw, mask=live)
        if GROUP > 1:
            top, total = add_to_norm(top, total, tl.trans(raw))
    lost = tl.sum(missing)
    if (g == 0) & (lost > 0):
        add_count(counters + REPRS_MISSING, lost.to(tl.int64))
    if GROUP > 1:  # the normaliser of a single head ranks nothing
        if split >= page_programs:
            q_row = q + b * stride_q_row + g * GROUP * stride_q_head
            top, total = add_local_logits(
                top, total, split - page_programs, num_splits - page_programs, position, start, count, q_row, k_buffer,
                table, scale, logit_cap, stride_q_head, stride_k_slot, stride_k_head, g, GROUP, BLOCK_G, HEAD_DIM,
                BLOCK_D, PAGE_SIZE, SLOTS, SINKS, CAP, True, LOCAL_KEYS,
            )  # fmt: skip
        store_norms(norms_row, split, top, total, GROUP, BLOCK_G)

    out_row = out + b * stride_out_row + g * stride_out_head
    rank_last(
        arrivals + row, scores_row, norms_row, table_row, out_row, counters, count, position, g, stride_scores,
        GROUP > 1, GROUP, BLOCK_G, MOST_SPLITS, TOPK, TOPK_BLOCK, WIDTHS,
    )  # fmt: skip


def programs_of(
    processors: Optional[int], busy_rows: int, group: int
) -> tuple[int, int]:
    """Programs of a row and KV head: for its pages, and for sinks and window, which a single query head does not need.

    Most landmarks have nothing to do: ``busy_rows`` are half of all.
    """
    pages = programs_per_row(processors, busy_rows, PAGE_PROGRAMS)
    local = min(pages, LOCAL_PROGRAMS) if group > 1 else 0
    # A power of two of tokens fills a few more pages of 63 than a power of two.
    return pages + pages // 16, local


def programs_bound(pages: int) -> int:
    """Bound of the programs of a launch, given that of the programs for pages before ``programs_of`` adds to them."""
    return 2 * pages + pages // 16


def select_prior_pages_decode(
    q: torch.Tensor,
    cache: LayerCache,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: SelectPagesWorkspace,
    counters: torch.Tensor,
    params: AttentionParams,
    processors: Optional[int],
    select_q: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Select pages for a token and a landmark per sequence.

    Args:
        q: queries of all tokens, then of all landmarks ``[2 * B, H_q, D]``, last dimension contiguous.
        cache: of the layer, versions included; the keys and representations of the step are written.
        page_table: physical page of each logical page ``[B, max_pages]`` int32.
        seq_lens: places up to the row's own, which it includes ``[2 * B]`` int32; 0 for padding, and for the landmark of a
            page that is not complete.
        select_q: queries that choose ``[2 * B, H_q, D]``, last dimension contiguous; None for q.
        Others as of ``select_pages_decode``, out for all rows.

    Returns:
        ``out``.
    """
    num_heads, head_dim = q.shape[1:]
    keys, reprs, topk = cache.keys, cache.reprs, out.shape[-1]
    num_kv_heads = reprs.shape[1]
    rows = len(q) * num_kv_heads
    group = num_heads // num_kv_heads
    page_programs, local_programs = programs_of(
        processors, rows // ROWS_PER_SEQUENCE, group
    )
    widths = ranking_widths(params.max_candidates(workspace.max_pages))
    chooser = q if select_q is None else select_q
    block_g, block_d = triton.next_power_of_2(group), triton.next_power_of_2(head_dim)
    _select_prior_decode_kernel[(rows, page_programs + local_programs)](
        q,
        chooser,
        keys,
        reprs,
        cache.biases,
        cache.stamps,
        cache.versions,
        page_table,
        seq_lens,
        out,
        workspace.scores,
        workspace.norms,
        workspace.arrivals,
        counters,
        len(page_table),
        page_programs,
        params.sm_scale,
        params.logit_cap,
        q.stride(0),
        q.stride(1),
        chooser.stride(0),
        chooser.stride(1),
        keys.stride(0),
        keys.stride(1),
        reprs.stride(0),
        reprs.stride(1),
        page_table.stride(0),
        out.stride(0),
        out.stride(1),
        workspace.scores.stride(0),
        KV_HEADS=num_kv_heads,
        GROUP=group,
        BLOCK_G=block_g,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        **params.layout,
        SLOTS=params.slots_per_page,
        TOPK=topk,
        TOPK_BLOCK=triton.next_power_of_2(topk),
        CAP=params.logit_cap > 0,
        PAGES=max(1, ELEMENTS_PER_STEP // (block_g * block_d)),
        LOCAL_KEYS=max(16, LOCAL_ELEMENTS_PER_STEP // block_d),
        MOST_SPLITS=MOST_PROGRAMS,
        WIDTHS=widths,
        num_warps=ranking_warps(widths),
    )
    return out
