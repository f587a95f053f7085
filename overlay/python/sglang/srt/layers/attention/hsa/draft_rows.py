# SPDX-License-Identifier: Apache-2.0
"""Rows of the passes over draft tokens: several queries per request, each with a length and a page table of its own.

Speculative decoding has three such passes: verification (``D`` draft tokens of every request), draft extend (those that
were accepted) and the steps of a multi-step draft (one token per request and step). To decode they are batches with
more rows than requests. One launch writes the lengths and tables of all rows of all steps, and a CUDA graph can hold it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, List, NamedTuple

import torch

from sglang.jit_kernel.attention import fused_metadata_precompute_and_broadcast_cuda
from sglang.jit_kernel.fused_metadata_precompute_and_broadcast import (
    DECODE,
    DRAFT_EXTEND,
    TARGET_VERIFY,
)

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class Rows(NamedTuple):
    """Queries of one step.

    Attributes:
        seq_lens: keys that each row sees, its own included ``[R]``, any integer dtype; at most 0 for padding.
        page_table: physical page of each logical page ``[R, max_pages]`` int32.
    """

    seq_lens: torch.Tensor
    page_table: torch.Tensor


class DraftRows:
    """Static buffers for the rows of draft tokens.

    Args:
        req_to_token: slot of each position of each request ``[num_requests, context]`` int32.
        page_size: slots per page.
        num_draft_tokens: D, the most rows of a request in a pass.
        steps: steps of a multi-step draft that this is for; 1 for verification and draft extend.
    """

    def __init__(
        self,
        req_to_token: torch.Tensor,
        page_size: int,
        num_draft_tokens: int,
        steps: int,
    ):
        self.req_to_token, self.page_size = req_to_token, page_size
        self.num_draft_tokens = num_draft_tokens
        requests, width = req_to_token.shape
        rows, pages = requests * num_draft_tokens, -(-width // page_size)
        device = req_to_token.device
        self.seq_lens = torch.zeros((steps, rows), dtype=torch.int32, device=device)
        self.page_table = torch.zeros(
            (steps, rows, pages), dtype=torch.int32, device=device
        )

    def write(self, forward_batch: ForwardBatch) -> List[Rows]:
        """The rows of a pass, one ``Rows`` per step.

        Row j of a request with n rows is the query at position ``length - n + j``, where ``length`` counts the request's
        keys with the pass's own. Step i of a multi-step draft has the token that i others follow the committed ones.
        """
        seq_lens, mode = forward_batch.seq_lens, forward_batch.forward_mode
        batch, steps = len(seq_lens), len(self.seq_lens)
        if mode.is_decode():
            rows = batch
            lengths = dict(
                cache_seqlens_list=[lens[:rows] for lens in self.seq_lens],
                seq_len_offsets=range(1, steps + 1),
                forward_mode=DECODE,
            )
        else:
            rows = batch * self.num_draft_tokens
            if mode.is_draft_extend():
                self.seq_lens.zero_()  # rows beyond the sum of the lengths are left alone
            lengths = dict(
                cache_seqlens_list=None,
                seqlens_expanded_list=[lens[:rows] for lens in self.seq_lens],
                num_draft_tokens=self.num_draft_tokens,
                forward_mode=TARGET_VERIFY if mode.is_target_verify() else DRAFT_EXTEND,
                extend_seq_lens=(
                    forward_batch.extend_seq_lens if mode.is_draft_extend() else None
                ),
            )
        written = [
            Rows(lens[:rows], table[:rows])
            for lens, table in zip(self.seq_lens, self.page_table)
        ]
        fused_metadata_precompute_and_broadcast_cuda(
            seq_lens=seq_lens,
            req_pool_indices=forward_batch.req_pool_indices,
            req_to_token=self.req_to_token,
            cu_seqlens_k_list=None,
            page_indices_list=None,
            nsa_cache_seqlens_list=None,
            nsa_cu_seqlens_k_list=None,
            real_page_table_list=[step.page_table for step in written],
            max_len=self.req_to_token.shape[1],
            nsa_index_topk=None,
            real_page_size=self.page_size,
            ragged=True,
            **lengths,
        )
        return written
