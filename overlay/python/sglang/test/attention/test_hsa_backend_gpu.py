# SPDX-License-Identifier: Apache-2.0
"""HSAAttnBackend on a CUDA device, on the real pool with its own store kernel and the Triton allocator."""

import numpy as np
import pytest
import torch

from sglang.test.attention.hsa_harness import Harness

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads,kv_heads,head_dim", [(16, 2, 64), (8, 8, 128)])
def test_prefill_and_decode_equal_the_oracle(dtype, heads, kv_heads, head_dim):
    """Every page is selected, so that rounding cannot change the selection."""
    h = Harness(
        num_pages=64, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
        device="cuda", dtype=dtype, page_size=64, window_size=128, topk=10**6, strict=True,
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(3)]
    q, o = h.step(sequences, [700, 65, 300])
    sample = slice(None, None, 37)
    q = q.to(dtype)
    expected = h.expected(q, sequences, [700, 65, 300])
    np.testing.assert_allclose(
        o.float().numpy()[sample], expected[sample], atol=TOLERANCE[dtype]
    )
    for _ in range(3):
        q, o = h.step(sequences, [1, 1, 1], decode=True)
        expected = h.expected(q.to(dtype), sequences, [1, 1, 1])
        np.testing.assert_allclose(o.float().numpy(), expected, atol=TOLERANCE[dtype])
    counts = h.backend.counters.snapshot()
    assert (
        counts["rows_sparse"] > 0
        and counts["pages_selected"] == counts["pages_candidate"]
    )


def test_few_pages_equal_the_oracle():
    h = Harness(
        num_pages=64, num_heads=8, num_kv_heads=2, head_dim=64, device="cuda",
        page_size=64, window_size=128, topk=2, strict=True,
    )  # fmt: skip
    s = h.new_sequence()
    q, o = h.step([s], [1000])
    np.testing.assert_allclose(o.numpy(), h.expected(q, [s], [1000]), atol=1e-4)
    for _ in range(30):
        q, o = h.step([s], [1], decode=True)
        np.testing.assert_allclose(o.numpy(), h.expected(q, [s], [1]), atol=1e-4)
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    assert counts["reprs_written"] == s.length // 64 and counts["reprs_healed"] == 0


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
