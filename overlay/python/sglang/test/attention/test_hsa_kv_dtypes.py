# SPDX-License-Identifier: Apache-2.0
"""Key-value caches of every dtype: representations and attention see the keys as they come back from the cache."""

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.page_repr import KINDS
from sglang.test.attention.hsa_fixtures import rotary_channels
from sglang.test.attention.hsa_harness import Harness

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
SCALES = (0.037, 0.21)


@pytest.mark.parametrize("chunk_repr", ["mean", "mean_std", "slow_keys", "landmark"])
@pytest.mark.parametrize("kv_scales", [None, SCALES, (1.0, 1.0)])
@pytest.mark.parametrize("dtype", FP8)
def test_fp8_attention_and_selection_equal_the_oracle_on_dequantised_keys(
    dtype, kv_scales, chunk_repr
):
    h = Harness(
        kv_cache_dtype=dtype, kv_scales=kv_scales, chunk_repr=chunk_repr, strict=True
    )
    sequences = [h.new_sequence() for _ in range(2)]
    for new, decode in (([130, 15], False), ([17, 62], False), *[([1, 1], True)] * 12):
        q, o = h.step(sequences, new, decode=decode)
        np.testing.assert_allclose(o.numpy(), h.expected(q, sequences, new), atol=3e-5)
    counts = h.backend.counters.snapshot()
    assert (
        0 < counts["pages_selected"] < counts["pages_candidate"]
        and counts["reprs_healed"] == 0
    )


@pytest.mark.parametrize("strategy", ["group", "head", "softmax_head"])
@pytest.mark.parametrize("weight_mode", ["mass", "score"])
def test_landmark_scores_carry_the_scale_of_the_keys(strategy, weight_mode):
    h = Harness(
        kv_cache_dtype=torch.float8_e4m3fn, kv_scales=(0.05, 0.3), chunk_repr="landmark",
        selection_strategy=strategy, weight_mode=weight_mode,
    )  # fmt: skip
    s = h.new_sequence()
    q, o = h.step([s], [200])
    np.testing.assert_allclose(o.numpy(), h.expected(q, [s], [200]), atol=3e-5)


@pytest.mark.parametrize("dtype", FP8)
def test_representations_are_taken_from_dequantised_keys(dtype):
    h = Harness(kv_cache_dtype=dtype, kv_scales=SCALES, chunk_repr="mean_std")
    s = h.new_sequence()
    h.step([s], [64])
    keys = torch.as_tensor(np.stack(s.k)).view(4, 16, 2, 16)
    found = h.pool.get_chunk_repr(0, h.pages_of(s))
    expected = KINDS["mean_std"].represent(keys).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FP8)
def test_codes_are_taken_from_dequantised_keys(dtype):
    """Within half a step of the keys as attention reads them, and what bfloat16 takes from the lowest one and the step."""
    h = Harness(kv_cache_dtype=dtype, kv_scales=SCALES, chunk_repr="slow_keys")
    s = h.new_sequence()
    h.step([s], [64])
    channels = rotary_channels(16).long()
    keys = torch.as_tensor(np.stack(s.k)).view(4, 16, 2, 16)[..., channels]
    reprs = h.pool.get_chunk_repr(0, h.pages_of(s))
    found = KINDS["slow_keys"].keys(reprs, len(channels)).transpose(1, 2)
    half_step = (keys.amax(1) - keys.amin(1)) / 30 + keys.abs().amax(1) / 128
    assert ((found - keys).abs() <= half_step.unsqueeze(1)).all()


def test_short_rows_of_an_fp8_cache_do_not_depend_on_their_neighbours():
    """Alone, no row has a candidate; beside a long sequence the same rows must give the same bits."""
    alone, beside = (
        Harness(kv_cache_dtype=torch.float8_e4m3fn, kv_scales=SCALES, seed=3)
        for _ in range(2)
    )
    short = alone.new_sequence()
    _, o = alone.step([short], [40])
    assert alone.backend.counters.snapshot()["rows_dense"] == 40
    first, long = beside.new_sequence(), beside.new_sequence()
    beside.rng.manual_seed(9)
    beside.step([long], [150])
    beside.rng.manual_seed(3)
    batch = beside.batch({0: 40, 1: 1}, [first, long], decode=False)
    rng = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(40, heads, 16, generator=rng) for heads in (4, 2, 2))
    k += torch.sin(torch.arange(40).div(16, rounding_mode="floor").float() * 2.3)[
        :, None, None
    ]
    q, k, v = (torch.cat([x, torch.ones_like(x[:1])]).flatten(1) for x in (q, k, v))
    beside.backend.init_forward_metadata(batch)
    together = beside.run_layer(0, q, k, v, batch).view(41, 4, -1)
    torch.testing.assert_close(together[:40], o, rtol=0, atol=1e-6)


def test_the_given_keys_are_not_divided_in_place():
    """``set_kv_buffer`` divides what it gets by the scale; a model may still use the tensor."""
    h = Harness(kv_cache_dtype=torch.float8_e4m3fn, kv_scales=SCALES)
    s = h.new_sequence()
    batch = h.batch({0: 64}, [s], decode=False)
    h.backend.init_forward_metadata(batch)
    k, v = torch.randn(64, 2, 16), torch.randn(64, 2, 16)
    before = k.clone(), v.clone()
    h.run_layer(0, torch.randn(64, 64), k, v, batch)
    assert torch.equal(k, before[0]) and torch.equal(v, before[1])


@pytest.mark.parametrize("dtype,atol", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_caches(dtype, atol):
    h = Harness(dtype=dtype, topk=10**6, strict=True)
    s = h.new_sequence()
    for new in (200, 3, 80):
        q, o = h.step([s], [new])
        np.testing.assert_allclose(
            o.float().numpy(), h.expected(q, [s], [new]), atol=atol
        )
    stored = KINDS[h.config.chunk_repr].storage_dtype(dtype)
    assert h.pool.repr_buffers[0].dtype == stored


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
