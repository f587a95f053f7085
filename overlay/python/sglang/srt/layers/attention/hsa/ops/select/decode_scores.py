# SPDX-License-Identifier: Apache-2.0
"""Pieces of the decode selection kernel: what one query's heads make of some pages, and of the keys next to it."""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.layers.attention.hsa.ops.common import (
    rank_unknown_first,
    running_max,
    soft_cap,
)
from sglang.srt.layers.attention.hsa.ops.linear_kinds import (
    head_features,
    query_features,
)
from sglang.srt.layers.attention.hsa.ops.select.decode_ranking import rank_and_count


@triton.jit
def load_reprs(
    index,
    reachable,
    repr_buffer,
    table_row,
    stride_repr_page,
    stride_repr_head,
    g,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGES: tl.constexpr,
):
    """Physical pages ``[PAGES]`` and both halves of their representations ``[PAGES, BLOCK_D]`` float32.

    The loads depend on ``reachable`` (inside the table) only, not on the length: they start while it is read.
    """
    d = tl.arange(0, BLOCK_D)
    page = tl.load(table_row + index, mask=reachable, other=0).to(tl.int64)
    e_ptr = (
        repr_buffer
        + page[:, None] * stride_repr_page
        + g * stride_repr_head
        + d[None, :]
    )
    mask = reachable[:, None] & (d < HEAD_DIM)[None, :]
    first = tl.load(e_ptr, mask=mask, other=0.0).to(tl.float32)
    if WIDTH == 2:
        second = tl.load(e_ptr + HEAD_DIM, mask=mask, other=0.0).to(tl.float32)
    else:
        second = tl.zeros((PAGES, BLOCK_D), tl.float32)
    return page, first, second


@triton.jit
def head_scores(
    e_first,
    e_second,
    q_row,
    sm_scale,
    stride_q_head,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PAGES: tl.constexpr,
):
    """Raw scores of each query head ``[BLOCK_G, PAGES]``, -inf for heads of padding."""
    d = tl.arange(0, BLOCK_D)
    row = tl.arange(0, BLOCK_G)
    raw = tl.full((BLOCK_G, PAGES), float("-inf"), tl.float32)
    for h in tl.static_range(GROUP):
        head = tl.load(q_row + h * stride_q_head + d, mask=d < HEAD_DIM, other=0.0)
        f, s = query_features(head.to(tl.float32), sm_scale, KIND)
        score = tl.sum(e_first * f[None, :] + e_second * s[None, :], axis=1)
        raw = tl.where((row == h)[:, None], score[None, :], raw)
    return raw


@triton.jit
def _score_pages(
    index,
    reachable,
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
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    STRATEGY: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    PAGES: tl.constexpr,
):
    """Scores of the pages ``index`` ``[PLANES, PAGES]``, ``rank_unknown_first`` where a page has no valid representation.

    A plane per head for ``softmax_head``, else one plane.
    """
    page, e_first, e_second = load_reprs(
        index, reachable, repr_buffer, table_row, stride_repr_page, stride_repr_head, g, HEAD_DIM, BLOCK_D, WIDTH, PAGES
    )  # fmt: skip
    if STRATEGY == "group":
        score = tl.sum(e_first * first[None, :] + e_second * second[None, :], axis=1)
        score = score[None, :]
    else:
        score = head_scores(
            e_first, e_second, q_row, sm_scale, stride_q_head, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, KIND, PAGES
        )  # fmt: skip
        if STRATEGY == "head":
            score = tl.max(score, axis=0)[None, :]
    if HAS_VERSIONS:
        stamp = tl.load(repr_version + page, mask=reachable, other=0)
        current = tl.load(page_version + page, mask=reachable, other=0)
        score = rank_unknown_first(score, stamp[None, :], current[None, :])
    return score


@triton.jit
def store_linear_scores(
    split,
    num_splits,
    count,
    table_end,
    scores_row,
    repr_buffer,
    repr_version,
    page_version,
    table_row,
    q_row,
    sm_scale,
    stride_q_head,
    stride_repr_page,
    stride_repr_head,
    stride_scores,
    g,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    STRATEGY: tl.constexpr,
    HAS_VERSIONS: tl.constexpr,
    PAGES: tl.constexpr,
):
    """Score this program's split of a row's ``count`` pages by a linear kind, PAGES at a time.

    Stores a plane of scores per head for ``softmax_head``, else one, at ``scores_row``; returns the running log-sum-exp of
    each plane as in ``add_to_norm``. The first loads are bounded by the table alone: they start while the length is read.
    """
    PLANES: tl.constexpr = GROUP if STRATEGY == "softmax_head" else 1
    BLOCK_PLANES: tl.constexpr = BLOCK_G if STRATEGY == "softmax_head" else 1
    plane = tl.arange(0, BLOCK_PLANES)
    plane_ptr = scores_row + plane[:, None] * stride_scores
    top = tl.full((BLOCK_PLANES,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_PLANES,), tl.float32)
    # The strategy group: the heads' features add up before they meet E.
    first = tl.zeros((BLOCK_D,), tl.float32)
    second = tl.zeros((BLOCK_D,), tl.float32)
    if STRATEGY == "group":
        features = head_features(
            q_row, sm_scale, stride_q_head, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, KIND
        )  # fmt: skip
        first = tl.sum(features[0], axis=0)
        second = tl.sum(features[1], axis=0)
    index = split * PAGES + tl.arange(0, PAGES)
    score = _score_pages(
        index, index < table_end, repr_buffer, repr_version, page_version, table_row, q_row, first, second, sm_scale,
        stride_q_head, stride_repr_page, stride_repr_head, g, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, KIND, WIDTH, STRATEGY,
        HAS_VERSIONS, PAGES,
    )  # fmt: skip
    mask = (plane < PLANES)[:, None] & (index < count)[None, :]
    tl.store(plane_ptr + index[None, :], score, mask=mask)
    if STRATEGY == "softmax_head":
        score = tl.where(mask & (score < float("inf")), score, float("-inf"))
        top, total = add_to_norm(top, total, score)
    for lo in range((split + num_splits) * PAGES, count, num_splits * PAGES):
        index = lo + tl.arange(0, PAGES)
        score = _score_pages(
            index, index < count, repr_buffer, repr_version, page_version, table_row, q_row, first, second, sm_scale,
            stride_q_head, stride_repr_page, stride_repr_head, g, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, KIND, WIDTH, STRATEGY,
            HAS_VERSIONS, PAGES,
        )  # fmt: skip
        mask = (plane < PLANES)[:, None] & (index < count)[None, :]
        tl.store(plane_ptr + index[None, :], score, mask=mask)
        if STRATEGY == "softmax_head":
            score = tl.where(mask & (score < float("inf")), score, float("-inf"))
            top, total = add_to_norm(top, total, score)
    return top, total


@triton.jit
def local_logits(
    token,
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
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SLOTS: tl.constexpr,
    SINKS: tl.constexpr,
    CAP: tl.constexpr,
    MASK_LAST: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Logits of sinks and window ``[BLOCK_G, TOKENS]``: those of the places number ``token``, counted sinks first.

    Sinks are pages 0 to SINKS - 1, the window begins at page ``start``; -inf past the query, where there is no key, and for
    heads of padding.
    """
    sinks = tl.minimum(start, SINKS)
    unit = token // PAGE_SIZE
    logical = tl.where(unit < sinks, unit, unit - sinks + start)
    place = logical * PAGE_SIZE + token % PAGE_SIZE
    visible = place <= position
    if MASK_LAST:
        visible = visible & (token % PAGE_SIZE < PAGE_SIZE - 1)
    page = tl.load(table + logical, mask=visible, other=0).to(tl.int64)
    slot = page * SLOTS + token % PAGE_SIZE
    d = tl.arange(0, BLOCK_D)
    k_ptr = k_buffer + slot[:, None] * stride_k_slot + g * stride_k_head + d[None, :]
    key = tl.load(k_ptr, mask=visible[:, None] & (d < HEAD_DIM)[None, :], other=0.0).to(
        tl.float32
    )
    # A key is a page of one: its score is the logit.
    logits = head_scores(
        key, key, q_row, key_scale, stride_q_head, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, "mean", TOKENS
    )  # fmt: skip
    if CAP:
        logits = soft_cap(logits, logit_cap)
    in_group = tl.arange(0, BLOCK_G) < GROUP
    return tl.where(in_group[:, None] & visible[None, :], logits, float("-inf"))


@triton.jit
def add_local_logits(
    top,
    total,
    split,
    num_splits,
    position,
    start,
    count,
    q_row,
    k_buffer,
    table,
    key_scale,
    logit_cap,
    stride_q_head,
    stride_k_slot,
    stride_k_head,
    g,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SLOTS: tl.constexpr,
    SINKS: tl.constexpr,
    CAP: tl.constexpr,
    MASK_LAST: tl.constexpr,
    KEYS: tl.constexpr,
):
    """``add_to_norm`` of this program's split of sinks and window, KEYS at a time; a row without candidates ranks nothing."""
    places = tl.minimum(start, SINKS) * PAGE_SIZE + position + 1 - start * PAGE_SIZE
    places = tl.where(count > 0, places, 0)
    for lo in range(split * KEYS, places, num_splits * KEYS):
        logits = local_logits(
            lo + tl.arange(0, KEYS), position, start, q_row, k_buffer, table, key_scale, logit_cap,
            stride_q_head, stride_k_slot, stride_k_head, g, GROUP, BLOCK_G, HEAD_DIM, BLOCK_D, PAGE_SIZE, SLOTS, SINKS,
            CAP, MASK_LAST, KEYS,
        )  # fmt: skip
        top, total = add_to_norm(top, total, logits)
    return top, total


@triton.jit
def store_norms(
    norms_row, split, top, total, GROUP: tl.constexpr, BLOCK_G: tl.constexpr
):
    """Store this program's log-sum-exp of each head for ``rank_by_share``."""
    head = tl.arange(0, BLOCK_G)
    norm = tl.where(total > 0, top + tl.log(total), float("-inf"))
    tl.store(norms_row + split * GROUP + head, norm, mask=head < GROUP)


@triton.jit
def add_to_norm(top, total, values):
    """Running log-sum-exp per row: maximum ``[G]`` and sum of exponentials ``[G]`` after ``values [G, N]``."""
    new_top, origin = running_max(top, tl.max(values, axis=1))
    exponentials = tl.exp(values - origin[:, None])
    return new_top, total * tl.exp(top - origin) + tl.sum(exponentials, axis=1)


@triton.jit
def rank_last(
    arrival,
    scores_row,
    norms_row,
    table_row,
    out_row,
    counters,
    count,
    position,
    g,
    stride_scores,
    BY_SHARE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK_BLOCK: tl.constexpr,
    WIDTHS: tl.constexpr,
):
    """``rank_and_count``, by the last of a row's programs to arrive, which sees all scores."""
    num_splits = tl.num_programs(1)
    tl.debug_barrier()
    if tl.atomic_add(arrival, 1, sem="acq_rel") == num_splits - 1:
        tl.store(arrival, 0)  # ready for the next launch
        if BY_SHARE:
            rank_by_share(
                scores_row, norms_row, count, num_splits, stride_scores, GROUP, BLOCK_G, MOST_SPLITS,
                WIDTHS[1] if len(WIDTHS) > 1 else WIDTHS[0],
            )  # fmt: skip
            tl.debug_barrier()
        rank_and_count(
            scores_row, table_row, out_row, counters, count, position, g, TOPK, TOPK_BLOCK, WIDTHS
        )  # fmt: skip


@triton.jit
def rank_by_share(
    scores_row,
    norms_row,
    count,
    num_splits,
    stride_scores,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Replace the first head's raw scores by every page's largest raw score minus that head's log normaliser."""
    head = tl.arange(0, BLOCK_G)
    split = tl.arange(0, MOST_SPLITS)
    norms = tl.load(
        norms_row + split[:, None] * GROUP + head[None, :],
        mask=(split < num_splits)[:, None] & (head < GROUP)[None, :],
        other=float("-inf"),
        cache_modifier=".cg",
    )
    top = tl.max(norms, axis=0)
    origin = tl.where(top == float("-inf"), 0.0, top)
    norm = origin + tl.log(tl.sum(tl.exp(norms - origin[None, :]), axis=0))  # [G]
    norm = tl.where(head < GROUP, norm, 0.0)
    for lo in range(0, count, WIDTH):
        index = lo + tl.arange(0, WIDTH)
        raw = tl.load(
            scores_row + head[:, None] * stride_scores + index[None, :],
            mask=(head < GROUP)[:, None] & (index < count)[None, :],
            other=float("-inf"),
            cache_modifier=".cg",
        )
        score = tl.max(raw - norm[:, None], axis=0)
        tl.store(scores_row + index, score, mask=index < count)
