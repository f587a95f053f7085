# SPDX-License-Identifier: Apache-2.0
"""The decode path on its Triton kernels against the oracle: on a CUDA device, or under TRITON_INTERPRET=1."""

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.ops.common import max_programs, programs_per_row
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd
from sglang.srt.layers.attention.hsa.ops.select.decode_kernel import (
    SelectPagesWorkspace,
)
from sglang.srt.layers.attention.hsa.ops.select.slow_decode import (
    select_slow_pages_decode,
)
from sglang.srt.layers.attention.hsa.params import LayerCache
from sglang.srt.layers.attention.hsa.selector import HSASelector
from sglang.test.attention import hsa_oracle
from sglang.test.attention.hsa_device import ATOL, DEVICE, ON_GPU, needs_kernels
from sglang.test.attention.hsa_fixtures import (
    KINDS_AND_STRATEGIES,
    make_batch,
    make_params,
    rotary_channels,
)
from sglang.test.attention.hsa_harness import Harness

pytestmark = needs_kernels


def harness(**options):
    return Harness(device=DEVICE, decode_kernels=True, **options)


def check(h, sequences, **kwargs):
    q, o = h.step(sequences, [1] * len(sequences), decode=True, **kwargs)
    expected = h.expected(q, sequences, [1] * len(sequences))
    np.testing.assert_allclose(o.float().numpy(), expected, atol=ATOL)


@pytest.mark.parametrize("chunk_repr,strategy", KINDS_AND_STRATEGIES)
def test_every_kind_and_strategy(chunk_repr, strategy):
    h = harness(chunk_repr=chunk_repr, selection_strategy=strategy)
    sequences = [h.new_sequence() for _ in range(3)]
    h.step(sequences, [142, 15, 79])
    for _ in range(3):  # the first two cross a page boundary of every sequence
        check(h, sequences)
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    assert counts["reprs_healed"] == 0


@pytest.mark.parametrize(
    "heads,kv_heads,head_dim,page_size,window,sinks,topk,cap",
    [
        (1, 1, 16, 16, 1, 0, 1, 0.0),
        (4, 4, 80, 32, 0, 2, 2, 0.0),
        (16, 1, 64, 64, 100, 1, 64, 5.0),
        (6, 2, 96, 16, 33, 3, 4, 0.0),
        (8, 2, 128, 128, 130, 1, 2, 0.0),
        (2, 1, 256, 16, 40, 0, 3, 0.0),
    ],
)
def test_shapes(heads, kv_heads, head_dim, page_size, window, sinks, topk, cap):
    """Head dims 16 to 256, groups 1 to 16, pages 16 to 128."""
    h = harness(
        num_pages=40, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, logit_cap=cap,
        page_size=page_size, window_size=window, sink_pages=sinks, topk=topk,
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(2)]
    h.step(sequences, [8 * page_size + 5, 1])
    for _ in range(2):
        check(h, sequences)


@pytest.mark.parametrize(
    "heads,kv_heads,page_size,window,sinks,cap",
    [(6, 2, 16, 33, 3, 0.0), (16, 1, 64, 1, 0, 5.0), (4, 4, 32, 130, 2, 0.0)],
)
def test_shares_are_measured_with_the_window_and_the_sinks(
    heads, kv_heads, page_size, window, sinks, cap
):
    """Few pages of many, so that a wrong normaliser of one head shows in what is selected."""
    h = harness(
        num_pages=90, num_heads=heads, num_kv_heads=kv_heads, head_dim=32, logit_cap=cap, page_size=page_size,
        window_size=window, sink_pages=sinks, topk=3, selection_strategy="softmax_head",
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(2)]
    h.step(sequences, [40 * page_size + 5, 9 * page_size])
    for _ in range(2):
        check(h, sequences)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 127, 200])
def test_odd_lengths(length):
    """No empty part may leak NaN; unused slots hold NaN."""
    h = harness()
    s = h.new_sequence()
    h.step([s], [length])
    check(h, [s])


@pytest.mark.parametrize(
    "page_size,chunk_repr,strategy,weights,cap",
    [
        (16, "landmark", "group", "mass", 5.0),
        (64, "slow_keys", "head", "mass", 0.0),
        (16, "mean_std", "softmax_head", "score", 0.0),
        (16, "mean", "softmax_head", "mass", 5.0),
    ],
)
def test_masked_last_slots(page_size, chunk_repr, strategy, weights, cap):
    """Queries before, in and after a page's last slot, with and without a page to select."""
    h = harness(
        mask_last_slot=True, page_size=page_size, chunk_repr=chunk_repr, selection_strategy=strategy,
        weight_mode=weights, logit_cap=cap,
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(3)]
    h.step(sequences, [8 * page_size - 2, page_size - 2, 3 * page_size - 1])
    for _ in range(3):
        h.poison_last_slots(sequences)
        check(h, sequences)
    assert h.backend.counters.snapshot()["pages_selected"] > 0


@pytest.mark.parametrize(
    "page_size,chunk_repr,strategy,cap",
    [
        (16, "mean_std", "group", 0.0),
        (16, "mean", "softmax_head", 0.0),
        (16, "landmark", "head", 5.0),
        (64, "mean_std", "softmax_head", 0.0),
    ],
)
def test_pages_that_weigh_by_their_scores(page_size, chunk_repr, strategy, cap):
    h = harness(
        weight_mode="score", page_size=page_size, chunk_repr=chunk_repr, selection_strategy=strategy, logit_cap=cap
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(3)]
    h.step(sequences, [8 * page_size + 2, page_size - 1, 4 * page_size])
    for _ in range(3):
        check(h, sequences)
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


def test_every_page_selected_is_dense():
    h = harness(topk=10**6)
    s = h.new_sequence()
    h.step([s], [300])
    for _ in range(2):
        check(h, [s])
    counts = h.backend.counters.snapshot()
    assert counts["pages_selected"] == counts["pages_candidate"] > 0


def test_pages_generated_in_batched_decode_are_represented():
    """The page that a step completes is represented at the start of the next one, in every layer."""
    h = harness(num_pages=100, layers=2, window_size=1, sink_pages=0)
    sequences = [h.new_sequence() for _ in range(3)]
    h.step(sequences, [13, 14, 15])
    for _ in range(3):  # completes the first pages
        check(h, sequences)
    h.step(sequences, [12, 12, 12])
    for _ in range(4):  # and the second ones, one of them in the last step
        check(h, sequences)
    for s in sequences:
        committed = s.length - 1
        pages = h.pages_of(s)[: committed // 16]
        assert h.pool.repr_valid(0, pages).all() and h.pool.repr_valid(1, pages).all()


@pytest.mark.parametrize("weight_mode", ["mass", "score"])
def test_scratch_follows_the_batch_and_graphs_keep_theirs(weight_mode):
    """Scratch is made for the graphs' batches and for the largest other batch, not for all requests of the pool."""
    h = harness(weight_mode=weight_mode)
    kernels = h.backend.decode
    h.backend.init_cuda_graph_state(2, 2)
    captured = kernels.reserved
    sequences = [h.new_sequence() for _ in range(5)]
    h.step(sequences, [90, 40, 3, 77, 16])
    for batch, rows in ((1, 2), (3, 4), (5, 8), (2, 2), (4, 8)):
        check(h, sequences[:batch])
        assert kernels.buffers.seq_lens.shape[1] == rows
        assert (kernels.buffers is captured) == (rows == 2)
    assert kernels.reserved is captured


@pytest.mark.parametrize("processors", [4, 132])
def test_programs_of_any_batch_fit_the_scratch(processors):
    for rows in range(1, 700):
        most = max_programs(processors, rows, 16)
        assert all(
            n * programs_per_row(processors, n, 16) <= most for n in range(1, rows + 1)
        )


def test_kernel_and_reference_select_the_same_pages():
    h = harness(num_pages=128, topk=7)
    sequences = [h.new_sequence() for _ in range(2)]
    h.step(sequences, [900, 333])
    q, o = h.step(sequences, [1, 1], decode=True)
    for row, s in enumerate(sequences):
        chosen, _ = hsa_oracle.select(
            q[row].double().numpy(), np.stack(s.k), s.length - 1, h.oracle
        )
        table = h.pages_of(s).tolist()
        for g in range(2):
            got = h.backend.decode.buffers.attention.selected[row, g].tolist()
            assert [table.index(page) for page in got if page >= 0] == chosen[g]


def test_padded_rows_of_a_graph_are_harmless():
    """Rows of length 1 that point anywhere count nothing and write no representation."""
    h = harness()
    s = h.new_sequence()
    h.step([s], [100])
    batch = h.batch({0: 1}, [s], decode=True)
    before = h.backend.counters.snapshot()
    stamps = h.pool.repr_stamps[0].clone()
    batch.batch_size = 3
    batch.req_pool_indices = torch.tensor([s.row, 0, 9], device=DEVICE)
    batch.seq_lens = torch.tensor([101, 1, 1], device=DEVICE)
    batch.out_cache_loc = torch.cat(
        [batch.out_cache_loc, batch.out_cache_loc.new_zeros(2)]
    )
    h.backend.init_forward_metadata(batch)
    q, k, v = h.inputs([s], [1])
    padded = [torch.cat([x, x.new_ones(2, *x.shape[1:])]) for x in (q, k, v)]
    o = h.forward(batch, *padded)
    expected = h.expected(q.cpu(), [s], [1])
    np.testing.assert_allclose(o[:1].float().numpy(), expected, atol=ATOL)
    after = h.backend.counters.snapshot()
    assert (
        after["rows_sparse"] - before["rows_sparse"] == 1
        and after["rows_dense"] == before["rows_dense"]
    )
    assert torch.equal(h.pool.repr_stamps[0], stamps)


def test_a_page_handed_out_again_gets_no_stamp():
    """The request of a row has ended and its page went to a later batch before the pass ran."""
    h = harness()
    s = h.new_sequence()
    h.step([s], [64])
    batch = h.batch({0: 1}, [s], decode=True)
    page = h.pages_of(s)[3]
    h.pool.repr_stamps[0][page] -= 1  # not represented before this pass
    stamp = h.pool.repr_stamps[0][page].clone()
    built_at = h.pool.page_handouts
    h.pool.bump_page_version(
        page.long().view(1) * 16
    )  # the allocator, for a later batch
    batch.page_handouts = built_at
    h.backend.init_forward_metadata(batch)
    x = torch.randn(1, 32, device=DEVICE)
    h.run_layer(0, torch.randn(1, 64, device=DEVICE), x, x.clone(), batch)
    assert h.pool.repr_stamps[0][page] == stamp
    assert not h.pool.repr_valid(0, page)


def test_pages_without_a_representation_are_healed():
    """At both ends of a search step, in pages that two rows share: none is lost, and each is counted once."""
    h = harness(topk=4, num_pages=330, num_heads=2, num_kv_heads=1)
    parent = h.new_sequence()
    h.step([parent], [264 * 16 + 5])
    child = h.fork(parent, 260)
    h.step([child], [20])
    lost = h.pages_of(parent)[[1, 2, 255, 256, 259]].long()
    before = h.backend.counters.snapshot()["reprs_healed"]
    h.pool.repr_stamps[0][lost] -= 1
    h.pool.repr_buffers[0][lost] = 255  # NaN as lowest value and step
    check(h, [parent, child])
    assert h.backend.counters.snapshot()["reprs_healed"] - before == len(lost)
    assert h.pool.repr_valid(0, lost).all()


def test_a_twin_is_adopted_before_it_has_a_representation():
    """A request ends in the step that fills a page; another gets that page from the radix tree and decodes."""
    h = harness(topk=100, window_size=16)
    first, second = h.new_sequence(), h.new_sequence()
    h.step([first], [79])
    h.step([first], [1], decode=True)  # no pass of this request follows
    h.step([second], [140])
    table = h.req_to_token_pool.req_to_token
    table[second.row, :80] = table[first.row, :80]
    second.k[:80], second.v[:80] = first.k[:80], first.v[:80]
    page = h.pages_of(first)[4]
    assert not h.pool.repr_valid(0, page)
    for _ in range(2):
        check(h, [second])
    assert h.pool.repr_valid(0, page)
    assert h.backend.counters.snapshot()["reprs_healed"] == 1


def test_a_page_whose_last_key_comes_in_this_pass_is_left_to_the_next():
    """The scheduler ended a request whose last step is this one; another row has its page from the radix tree already."""
    h = harness(topk=100, window_size=16)
    first, second = h.new_sequence(), h.new_sequence()
    h.step([first], [79])
    h.step([second], [140])
    batch = h.batch({0: 1, 1: 1}, [first, second], decode=True)  # first fills page 4
    table = h.req_to_token_pool.req_to_token
    table[second.row, :80] = table[first.row, :80]
    h.backend.init_forward_metadata(batch)
    q, k, v = h.inputs([first, second], [1, 1])
    second.k[:80], second.v[:80] = first.k[:80], first.v[:80]
    o = h.forward(batch, q, k, v)
    expected = h.expected(q.cpu(), [first, second], [1, 1])
    np.testing.assert_allclose(o.float().numpy(), expected, atol=ATOL)
    page = h.pages_of(first)[4]
    assert not h.pool.repr_valid(0, page)
    check(h, [second])
    assert h.pool.repr_valid(0, page)


def test_only_strict_mode_stays_on_the_references():
    options = dict(
        selection_strategy="softmax_head", weight_mode="score", chunk_repr="mean"
    )
    assert HSAConfig(**options).needs_references is None
    assert "--hsa-strict" in HSAConfig(strict=True).needs_references


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
    h.step(sequences, [9000, 65, 4000])
    for _ in range(3):
        q, o = h.step(sequences, [1, 1, 1], decode=True)
        expected = h.expected(q.to(dtype), sequences, [1, 1, 1])
        np.testing.assert_allclose(o.float().numpy(), expected, atol=tolerance)


@pytest.mark.parametrize("strategy", ["group", "head"])
def test_slow_selection_of_few_and_many_pages(strategy):
    """Rows with fewer pages than warps share them and with more, pages without a valid stamp, twice in a row."""
    torch.manual_seed(0)
    page, heads, kv_heads, dim, topk = 16, 6, 2, 16, 5
    params = make_params(
        page_size=page, window_size=20, topk=topk, selection_strategy=strategy
    )
    batch = make_batch(
        [5, 60, 330, 900], page_size=page, num_kv_heads=kv_heads, head_dim=dim
    )
    channels = rotary_channels(dim)
    num_pages = len(batch.k_buffer) // page
    reprs = page_repr_fwd(batch.k_buffer, torch.arange(num_pages), params, channels)
    version = torch.ones(num_pages, dtype=torch.int64)
    # Fewer pages without a valid stamp than are selected, or scores would decide nothing.
    stamp = version.clone()
    stamp[batch.page_table[[2, 3, 3], [10, 9, 40]].long()] = 0
    q = torch.randn(4, heads, dim)
    expected, _ = HSASelector(params, channels).select(
        q, reprs, (stamp == version)[batch.page_table.long()], batch.page_table, torch.arange(5), batch.seq_lens
    )  # fmt: skip
    workspace = SelectPagesWorkspace(4, kv_heads, batch.page_table.shape[1], DEVICE)
    # The scratch may lie where the reference had its scores.
    workspace.scores.fill_(torch.nan)
    counters = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    tensors = batch.k_buffer, batch.v_buffer, reprs, stamp, version, channels
    cache = LayerCache(*(x.to(DEVICE) for x in tensors))
    inputs = [x.to(DEVICE) for x in (batch.page_table, batch.seq_lens)]
    for _ in range(2):
        out = torch.full((4, kv_heads, topk), -7, dtype=torch.int32, device=DEVICE)
        select_slow_pages_decode(
            q.to(DEVICE), cache, *inputs, out, workspace, counters, params, processors=4
        )
        assert out.tolist() == expected.tolist()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
