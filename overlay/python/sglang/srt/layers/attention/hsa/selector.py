# SPDX-License-Identifier: Apache-2.0
"""HSASelector: reference of the select op. Score candidate pages, take the top k, map them to physical pages."""

from __future__ import annotations

from typing import Optional, Tuple

import torch

from sglang.srt.layers.attention.hsa.layout import num_candidate_pages
from sglang.srt.layers.attention.hsa.ops.gather import take
from sglang.srt.layers.attention.hsa.params import AttentionParams

NEG_INF = float("-inf")
# Query rows scored at once: bounds the scores held in memory to rows * H_q * pages.
ROWS_PER_BLOCK = 256


class HSASelector:
    """Page selection of one layer. It sees tensors only.

    Args:
        params: of the layer.
        channels: that a kind which keeps some of them takes ``[R]`` int32; None for a kind that takes all.
    """

    def __init__(
        self, params: AttentionParams, channels: Optional[torch.Tensor] = None
    ):
        self.params, self.channels = params, channels

    def compute_logits(
        self,
        q: torch.Tensor,
        chunk_repr: torch.Tensor,
        candidate: torch.Tensor,
        local_lse: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Scores of one sequence's pages for some of its queries.

        The strategy makes one score of the query heads of a KV head: ``group`` sums them, ``head`` takes their maximum,
        ``softmax_head`` the maximum of raw minus the head's log normaliser.

        Args:
            q: queries ``[T, H_q, D]``.
            chunk_repr: representations of the sequence's pages ``[C, H_kv, repr_dim]``.
            candidate: which pages each query may select ``[T, C]`` bool.
            local_lse: log-sum-exp of window and sinks ``[T, H_q]`` float32; needed by ``softmax_head``.
            bias: by which the pages' scores are raised ``[C, H_kv, G]`` float32; None for a kind that has none.

        Returns:
            (logits ``[T, H_kv, C]``, raw ``[T, H_q, C]``), float32, -inf where ``candidate`` is False.
        """
        params, (num_tokens, num_heads, head_dim) = self.params, q.shape
        num_pages, num_kv_heads, _ = chunk_repr.shape
        grouped = q.reshape(
            num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim
        )
        raw = params.kind.raw_scores(
            grouped, chunk_repr, params.score_scale, self.channels
        )
        if bias is not None:
            raw = raw + bias.permute(1, 2, 0)
        # A page without a representation may hold anything, NaN included: mask before any arithmetic.
        raw = raw.masked_fill(~candidate[:, None, None, :], NEG_INF)

        if params.strategy == "group":
            logits = raw.sum(dim=2)
        elif params.strategy == "head":
            logits = raw.amax(dim=2)
        else:
            lse = local_lse.view(num_tokens, num_kv_heads, -1)
            norm = torch.logaddexp(lse, torch.logsumexp(raw, dim=-1))
            logits = (raw - norm.unsqueeze(-1)).amax(dim=2)
        return logits, raw.view(num_tokens, num_heads, num_pages)

    def topk_transform(
        self, logits: torch.Tensor, page_table: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """The k best pages per query and KV head, as logical and as physical pages.

        The order is total: higher score first, then the smaller logical page. The output is ascending.

        Args:
            logits: ``[T, H_kv, C]`` float32, -inf where a page is not selectable.
            page_table: physical page of each logical page ``[C]``.

        Returns:
            (logical, physical) ``[T, H_kv, min(topk, C)]`` int32, padded at the end with -1.
        """
        num_pages = logits.shape[-1]
        width = min(self.params.topk, num_pages)
        scores, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        absent = scores[..., :width] == NEG_INF
        chosen = order[..., :width].masked_fill(absent, num_pages)
        logical, _ = torch.sort(chosen, dim=-1)  # the absent ones, num_pages, go last
        absent = logical == num_pages
        physical = page_table.long()[logical.masked_fill(absent, 0)]
        return (
            logical.masked_fill(absent, -1).int(),
            physical.masked_fill(absent, -1).int(),
        )

    def select(
        self,
        q: torch.Tensor,
        reprs: torch.Tensor,
        repr_valid: torch.Tensor,
        page_table: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        seq_lens: torch.Tensor,
        local_lse: Optional[torch.Tensor] = None,
        own: Optional[torch.Tensor] = None,
        biases: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Select pages for a batch of sequences whose queries are packed one after another.

        Args:
            q: queries ``[T, H_q, D]``; those of sequence b are its last ``cu_seqlens_q[b + 1] - cu_seqlens_q[b]``
                positions.
            reprs: representations by physical page ``[num_pages, H_kv, repr_dim]``.
            repr_valid: whether the sequence's logical page has a representation ``[B, max_pages]`` bool. One that has none
                ranks before all others, so that it is not lost.
            page_table: physical page of each logical page ``[B, max_pages]`` int32.
            cu_seqlens_q: ``[B + 1]`` int32.
            seq_lens: keys of each sequence, its new ones included ``[B]`` int32.
            local_lse: see ``compute_logits``.
            own: pages of this batch ``[B, max_pages]`` bool, the only ones to select; None for all.
            biases: by which scores are raised, by physical page ``[num_pages, H_kv, G]`` float32; None for none.

        Returns:
            selected physical pages ``[T, H_kv, K]`` int32, ascending by logical page, padded with -1, and their
            raw scores per query head ``[T, H_q, K]`` float32, -inf where padded. K is at most ``topk`` and at most
            the largest number of candidates in the batch.
        """
        starts, lens = cu_seqlens_q.tolist(), seq_lens.tolist()
        num_heads, num_kv_heads = q.shape[1], reprs.shape[1]
        sinks = self.params.sink_pages
        width = min(self.params.topk, max(self._candidates(n - 1) for n in lens))
        selected = torch.full(
            (q.shape[0], num_kv_heads, width), -1, dtype=torch.int32, device=q.device
        )
        scores = torch.full(
            (q.shape[0], num_heads, width), NEG_INF, device=q.device
        ).float()

        for b, seq_len in enumerate(lens):
            last = self._candidates(seq_len - 1)
            if last == 0:
                continue
            pages = page_table[b, sinks : sinks + last]  # [C]
            chunk_repr = take(reprs, pages.long())  # [C, H_kv, R]
            bias = None if biases is None else biases[pages.long()]
            valid = repr_valid[b, sinks : sinks + last]
            unknown = ~valid if own is None else ~valid & own[b, sinks : sinks + last]
            first_position = seq_len - (starts[b + 1] - starts[b])
            page = torch.arange(last, device=q.device)
            for lo in range(starts[b], starts[b + 1], ROWS_PER_BLOCK):
                hi = min(lo + ROWS_PER_BLOCK, starts[b + 1])
                position = first_position + torch.arange(
                    lo - starts[b], hi - starts[b], device=q.device
                )
                inside = page < self._candidates(position).unsqueeze(1)
                lse = None if local_lse is None else local_lse[lo:hi]
                logits, raw = self.compute_logits(
                    q[lo:hi], chunk_repr, inside & valid, lse, bias
                )
                first = (inside & unknown).unsqueeze(1)
                logits = logits.masked_fill(first, float("inf"))
                logical, physical = self.topk_transform(logits, pages)
                k = logical.shape[-1]
                selected[lo:hi, :, :k] = physical
                index = logical.long().repeat_interleave(
                    num_heads // num_kv_heads, dim=1
                )
                picked = raw.gather(-1, index.clamp(min=0))
                scores[lo:hi, :, :k] = picked.masked_fill(index < 0, NEG_INF)
        return selected, scores

    def _candidates(self, position):
        return num_candidate_pages(
            position,
            self.params.window_size,
            self.params.page_size,
            self.params.sink_pages,
            self.params.dense_below,
        )
