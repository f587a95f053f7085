# SPDX-License-Identifier: Apache-2.0
"""The kernels of HiLS's norms and rotary embeddings compile for every card, with the shapes of their models; needs no GPU."""

import pytest
import torch

from sglang.srt.layers import hils_kernels, hils_ops
from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.hils_ops import HeadRows, Rotary
from sglang.test.attention.hsa_compile import record
from sglang.test.attention.test_hsa_kernels_cards import spilled
from sglang.test.attention.test_hsa_landmark_kernels import SHAPES

__all__ = ["record"]  # a fixture

ROWS = 3


@pytest.mark.parametrize("card", [80, 90, 120])
@pytest.mark.parametrize("model", SHAPES)
def test_kernels_fit_the_card(record, monkeypatch, card, model):
    """No register spills."""
    monkeypatch.setattr(compat, "attention_tp", lambda: (0, 1))
    heads = record(hils_kernels, "_norm_rotary_kernel", card)
    hidden = record(hils_kernels, "_norm_kernel", card)
    num_heads, kv_heads, head_dim = SHAPES[model]

    def rows(count, all_heads, added=None):
        norm = hils_ops.make_head_norm(head_dim, count, all_heads, 1e-6).bfloat16()
        x = torch.empty(ROWS, count, head_dim, dtype=torch.bfloat16)
        return HeadRows(x, norm, added)

    rotary, positions = Rotary(torch.ones(head_dim // 2), 9, False), torch.arange(ROWS)
    rounded = Rotary(torch.ones(head_dim // 2), 9, False).bfloat16()
    for all_heads, turn in ((False, rotary), (True, rounded), (True, None)):
        q, k = rows(num_heads, all_heads), rows(kv_heads, all_heads)
        for select_q in (None, rows(num_heads, all_heads, q.x)):
            hils_kernels.norm_rotary(q, k, select_q, turn, positions)
    x = torch.empty(ROWS, num_heads * head_dim, dtype=torch.bfloat16)
    for residual in (None, x):
        hils_kernels.norm(x, residual, x[0], 1e-6)
    hils_kernels.norm_add(x, x, x[0], 1e-6)
    assert len(heads.compiled) == 6 and len(hidden.compiled) == 3
    assert not any(map(spilled, heads.compiled + hidden.compiled))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
