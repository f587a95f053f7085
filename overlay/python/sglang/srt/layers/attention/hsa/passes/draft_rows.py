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
from sglang.srt.layers.attention.hsa.compat import is_draft_extend

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


def write_draft_rows(
    forward_batch: ForwardBatch,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    page_table: torch.Tensor,
    *,
    page_size: int,
    num_draft_tokens: int,
) -> List[Rows]:
    """Write the rows of a pass, one ``Rows`` per step of a multi-step draft.

    Row j of a request with n rows is the query at position ``length - n + j``, where ``length`` counts the request's
    keys with the pass's own. Step i of a multi-step draft has the token that i others follow the committed ones.

    Args:
        forward_batch: B requests in decode (of a multi-step draft), verification or draft extend.
        req_to_token: slot of each position of each request ``[num_requests, context]`` int32.
        seq_lens: ``[steps, >= B * D]`` int32, written.
        page_table: ``[steps, >= B * D, max_pages]`` int32, written as far as each row's keys go.
        page_size: slots per page.
        num_draft_tokens: D, the most rows of a request; 1 in decode.
    """
    mode = forward_batch.forward_mode
    rows = len(forward_batch.seq_lens) * num_draft_tokens
    written = [
        Rows(lens[:rows], table[:rows]) for lens, table in zip(seq_lens, page_table)
    ]
    lens = [step.seq_lens for step in written]
    if mode.is_decode():
        lengths = dict(
            cache_seqlens_list=lens,
            seq_len_offsets=range(1, len(lens) + 1),
            forward_mode=DECODE,
        )
    else:
        lengths = dict(
            cache_seqlens_list=None,
            seqlens_expanded_list=lens,
            num_draft_tokens=num_draft_tokens,
            forward_mode=TARGET_VERIFY,
        )
        if is_draft_extend(mode):
            seq_lens.zero_()  # rows beyond the sum of the lengths are left alone
            lengths["extend_seq_lens"] = forward_batch.extend_seq_lens
            lengths["forward_mode"] = DRAFT_EXTEND
    fused_metadata_precompute_and_broadcast_cuda(
        seq_lens=forward_batch.seq_lens,
        req_pool_indices=forward_batch.req_pool_indices,
        req_to_token=req_to_token,
        cu_seqlens_k_list=None,
        page_indices_list=None,
        nsa_cache_seqlens_list=None,
        nsa_cu_seqlens_k_list=None,
        real_page_table_list=[step.page_table for step in written],
        max_len=req_to_token.shape[1],
        nsa_index_topk=None,
        real_page_size=page_size,
        ragged=True,
        **lengths,
    )
    return written
