# SPDX-License-Identifier: Apache-2.0
"""Run SGLang's Triton kernels on CPU tensors: ``TRITON_INTERPRET=1 python interpreted_kernels.py IN.pt OUT.pt``."""

import sys

import torch
from host_release import (
    alloc_decode_kernel,
    alloc_extend_kernel,
    compute_position_triton,
    get_last_loc_triton,
    write_req_to_token_pool_triton,
)

from sglang.srt.utils import next_power_of_2


def alloc_extend(prefix_lens, seq_lens, last_loc, free_pages, page_size):
    out = torch.full((int((seq_lens - prefix_lens).sum()),), -7, dtype=torch.int64)
    bs = len(seq_lens)
    alloc_extend_kernel[(bs,)](prefix_lens, seq_lens, last_loc, free_pages, out, next_power_of_2(bs), page_size)
    return out


def alloc_decode(seq_lens, last_loc, free_pages, page_size):
    bs = len(seq_lens)
    out = torch.full((bs,), -7, dtype=torch.int64)
    alloc_decode_kernel[(bs,)](seq_lens, last_loc, free_pages, out, next_power_of_2(bs), page_size)
    return out


def write_req_to_token(req_to_token, req_pool_indices, prefix_tensors, prefix_lens, seq_lens, out_cache_loc):
    pointers = torch.tensor([t.data_ptr() for t in prefix_tensors], dtype=torch.uint64)
    write_req_to_token_pool_triton[(len(seq_lens),)](
        req_to_token,
        req_pool_indices,
        pointers,
        prefix_lens,
        seq_lens,
        seq_lens - prefix_lens,
        out_cache_loc,
        req_to_token.shape[1],
    )
    return req_to_token


OPS = dict(
    alloc_extend=alloc_extend,
    alloc_decode=alloc_decode,
    write_req_to_token=write_req_to_token,
    get_last_loc=get_last_loc_triton,
    compute_position=compute_position_triton,
)

if __name__ == "__main__":
    source, target = sys.argv[1:]
    torch.save([OPS[op](*args) for op, args in torch.load(source)], target)
