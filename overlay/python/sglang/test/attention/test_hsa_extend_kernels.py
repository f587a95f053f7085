# SPDX-License-Identifier: Apache-2.0
"""The extend path on its Triton kernels against the oracle: on a CUDA device, or under TRITON_INTERPRET=1."""

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.ops.extend import kernel as extend
from sglang.srt.layers.attention.hsa.ops.page_repr import kernel as page_repr
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd
from sglang.srt.layers.attention.hsa.ops.page_table import kernel as page_table
from sglang.srt.layers.attention.hsa.ops.select import extend_kernel
from sglang.srt.layers.attention.hsa.params import layer_params
from sglang.test.attention.hsa_device import ATOL, DEVICE, ON_GPU, needs_kernels
from sglang.test.attention.hsa_fixtures import KINDS_AND_STRATEGIES
from sglang.test.attention.hsa_harness import Harness

pytestmark = needs_kernels


def harness(**options):
    return Harness(device=DEVICE, extend_kernels=True, **options)


def check(h, sequences, new, **kwargs):
    q, o = h.step(sequences, new, **kwargs)
    np.testing.assert_allclose(
        o.float().numpy(), h.expected(q, sequences, new), atol=ATOL
    )


@pytest.mark.parametrize("chunk_repr,strategy", KINDS_AND_STRATEGIES)
def test_every_kind_and_strategy(chunk_repr, strategy):
    h = harness(chunk_repr=chunk_repr, selection_strategy=strategy)
    sequences = [h.new_sequence() for _ in range(3)]
    check(h, sequences, [130, 15, 64])
    check(h, sequences, [1, 70, 33])  # prefixes that end inside a page
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    assert counts["reprs_healed"] == 0


@pytest.mark.parametrize("chunk_repr", ["mean", "mean_std", "landmark"])
@pytest.mark.parametrize("page_size,cap", [(16, 0.0), (64, 5.0)])
def test_score_weights(chunk_repr, page_size, cap):
    h = harness(
        chunk_repr=chunk_repr, weight_mode="score", page_size=page_size, logit_cap=cap, num_pages=40
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(2)]
    h.prepare(sequences, [7 * page_size + 3, page_size])
    check(h, sequences, [20, 9])


@pytest.mark.parametrize(
    "page_size,chunk_repr,strategy,weights,cap",
    [
        (16, "slow_keys", "group", "mass", 5.0),  # a step is four pages
        (64, "landmark", "head", "mass", 0.0),  # a page
        (128, "mean", "group", "mass", 0.0),  # half a page
        (16, "landmark", "softmax_head", "score", 0.0),
        (64, "mean_std", "group", "score", 5.0),
    ],
)
def test_masked_last_slots(page_size, chunk_repr, strategy, weights, cap):
    h = harness(
        mask_last_slot=True, page_size=page_size, chunk_repr=chunk_repr, selection_strategy=strategy,
        weight_mode=weights, logit_cap=cap,
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(2)]
    check(h, sequences, [(96 // page_size + 3) * page_size - 2, page_size])
    h.poison_last_slots(sequences)
    check(h, sequences, [5, 1])
    assert h.backend.counters.snapshot()["pages_selected"] > 0


@pytest.mark.parametrize(
    "heads,kv_heads,head_dim,page_size,window,sinks,topk,cap",
    [
        (1, 1, 16, 16, 1, 0, 1, 0.0),
        (4, 4, 80, 32, 0, 2, 2, 0.0),
        (16, 1, 64, 64, 100, 1, 64, 5.0),
        (6, 2, 96, 16, 33, 3, 4, 0.0),
        (7, 1, 128, 128, 130, 1, 2, 0.0),
        (2, 1, 256, 16, 40, 0, 3, 0.0),
    ],
)
def test_shapes(heads, kv_heads, head_dim, page_size, window, sinks, topk, cap):
    h = harness(
        num_pages=40, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, logit_cap=cap,
        page_size=page_size, window_size=window, sink_pages=sinks, topk=topk,
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(2)]
    h.prepare(sequences, [5 * page_size, 3])
    # Over a boundary, and from the first position of a page on; interpreted, a row of large pages takes its time.
    pages = 3 if ON_GPU or page_size < 64 else 1
    check(h, sequences, [pages * page_size + 5, 1])
    keys, params = h.pool.get_key_buffer(0), layer_params(h.layers[0], h.pool, h.config)
    written = h.pages_of(sequences[0])[5 : 5 + pages]
    assert h.pool.repr_valid(0, written).all()
    torch.testing.assert_close(
        h.pool.repr_pages(0)[written.long()],
        page_repr_fwd(keys, written, params, h.pool.repr_channels_of(0)),
    )


@pytest.mark.parametrize(
    "dtype,chunk_repr",
    [(torch.float8_e4m3fn, "mean_std"), (torch.float8_e5m2, "landmark")],
)
def test_8_bit_cache(dtype, chunk_repr):
    """Extend and both ways to decode see the keys as they come back from the cache."""
    for strategy in ("group", "softmax_head"):
        h = harness(
            decode_kernels=True, kv_cache_dtype=dtype, kv_scales=(0.05, 0.3),
            chunk_repr=chunk_repr, selection_strategy=strategy,
        )  # fmt: skip
        sequences = [h.new_sequence() for _ in range(2)]
        h.step(sequences, [130, 15])
        check(h, sequences, [2, 17])
        check(h, sequences, [1, 1], decode=True)
        check(h, sequences, [1, 1], decode=True)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 127, 200])
def test_odd_lengths(length):
    """Unused slots hold NaN, and no empty part may leak one."""
    h = harness()
    check(h, [h.new_sequence()], [length])


def test_rows_that_nobody_clears(monkeypatch):
    """The output of extend starts as NaN here: tiles leave out no row of a batch, and padding reads as zeros."""
    new_empty = torch.Tensor.new_empty

    def poisoned(*args, **kwargs):
        x = new_empty(*args, **kwargs)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    h = harness()
    sequences = [h.new_sequence() for _ in range(4)]
    check(h, sequences, [130, 1, 33, 64])
    check(h, sequences, [1, 15, 32, 65])
    extend_pass = h.backend.forward_pass
    q = torch.randn(113 + 2, h.num_heads, h.head_dim, device=DEVICE)
    out = extend_pass.attend(q, h.layers[0])
    assert torch.isfinite(out).all() and not out[113:].any() and out[:113].any(-1).all()


def test_every_page_selected_is_dense():
    h = harness(topk=10**6)
    s = h.new_sequence()
    check(h, [s], [150])
    counts = h.backend.counters.snapshot()
    assert counts["pages_selected"] == counts["pages_candidate"] > 0
    assert counts["rows_sparse"] + counts["rows_dense"] == 150


def test_counters_equal_the_reference():
    """Every row is counted once, and pages once per KV head, on both paths."""
    counts = []
    for kernels in (True, False):
        h = harness() if kernels else Harness(device="cpu")
        sequences = [h.new_sequence() for _ in range(2)]
        h.step(sequences, [200, 3])
        h.step(sequences, [30, 17])
        counts.append(h.backend.counters.snapshot())
    assert counts[0] == counts[1]


def test_a_batch_attends_as_its_sequences_alone():
    """Prefixes that end anywhere, in one launch per op."""
    new = [1, 33, 64, 16]
    outputs = []
    for batched in (True, False):
        h = harness()
        sequences = [h.new_sequence() for _ in new]
        h.prepare(sequences, [150, 7, 64, 100])
        if batched:
            _, o = h.step(sequences, new)
            outputs.append(o)
        else:
            h.rng, rng = torch.Generator().manual_seed(1), h.rng
            outputs.append(_rows_alone(h, sequences, new, rng))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)


def _rows_alone(h, sequences, new, rng):
    """The same step one sequence at a time, with the random numbers of the batched one."""
    total = sum(new)
    q = torch.randn(total, h.num_heads, h.head_dim, generator=rng)
    k = torch.randn(total, h.num_kv_heads, h.head_dim, generator=rng)
    v = torch.randn(total, h.num_kv_heads, h.head_dim, generator=rng)
    rows, row = [], 0
    for s, count in zip(sequences, new):
        part = slice(row, row + count)
        page = (s.length + torch.arange(count)) // h.config.page_size
        drift = torch.sin(page.float() * 2.3 + s.row)[:, None, None]
        batch = h.batch({0: count}, [s], decode=False)
        h.backend.init_forward_metadata(batch)
        x = [
            t.flatten(1).to(DEVICE, h.dtype)
            for t in (q[part], k[part] + drift, v[part])
        ]
        rows.append(h.run_layer(0, *x, batch).view(count, h.num_heads, -1).cpu())
        row += count
    return torch.cat(rows)


def test_shared_pages_are_healed_once():
    """Two sequences of one batch share pages whose representation is gone."""
    h = harness(topk=2)
    parent = h.new_sequence()
    h.prepare([parent], [200])
    child = h.fork(parent, 9)
    h.pool.repr_stamps[0][h.pages_of(parent)[2:5].long()] -= 1
    before = h.backend.counters.snapshot()
    check(h, [parent, child], [20, 20])
    after = h.backend.counters.snapshot()
    assert after["reprs_healed"] - before["reprs_healed"] == 3
    assert h.pool.repr_valid(0, h.pages_of(parent)[:12]).all()


def test_a_page_handed_out_again_gets_no_stamp():
    """The request of a row has ended and its page went to a later batch before the pass ran."""
    h = harness()
    s = h.new_sequence()
    h.step([s], [64])
    batch = h.batch({0: 40}, [s], decode=False)
    page = h.pages_of(s)[1]
    stamp = h.pool.repr_stamps[0][page].clone()
    batch.page_handouts = h.pool.page_handouts
    h.pool.bump_page_version(page.long().view(1) * 16)  # for a later batch
    h.backend.init_forward_metadata(batch)
    x = torch.randn(40, 32, device=DEVICE)
    o = h.run_layer(0, torch.randn(40, 64, device=DEVICE), x, x.clone(), batch)
    assert h.pool.repr_stamps[0][page] == stamp
    lists = h.backend.forward_pass.tiles.lists
    assert page not in lists.pages[0, 0, 0, : lists.lengths[0, 0, 0]]
    assert torch.isfinite(o).all()


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str
)
def test_half_precision_at_real_shapes(dtype, tolerance, masked):
    h = Harness(
        num_pages=300, num_heads=16, num_kv_heads=2, head_dim=64, device="cuda", dtype=dtype,
        page_size=64, window_size=512, topk=10**6, mask_last_slot=masked,
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(3)]
    h.step(sequences, [9000, 65, 1])
    new = [100, 700, 2]
    q, o = h.step(sequences, new)
    expected = h.expected(q.to(dtype), sequences, new)
    np.testing.assert_allclose(o.float().numpy(), expected, atol=tolerance)


@pytest.mark.skipif(not ON_GPU, reason="compiles for a CUDA device")
def test_nothing_is_compiled_after_warm_up():
    kernels = [
        extend_kernel._select_pages_extend_kernel,
        extend._extend_hsa_kernel,
        page_repr._write_pages_kernel,
        page_table._page_table_kernel,
    ]

    def variants():
        return [sum(len(c[0]) for c in k.device_caches.values()) for k in kernels]

    h = Harness(
        num_pages=600, num_heads=16, num_kv_heads=2, head_dim=64, device="cuda",
        dtype=torch.bfloat16, page_size=64, window_size=512, topk=32,
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(4)]
    h.step(sequences, [2000, 1, 700, 64])
    h.step(sequences, [1, 650, 3, 129])
    compiled = variants()
    assert all(compiled)
    lengths = torch.Generator().manual_seed(0)
    for _ in range(50):
        h.step(sequences, torch.randint(1, 150, (4,), generator=lengths).tolist())
    assert variants() == compiled


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
