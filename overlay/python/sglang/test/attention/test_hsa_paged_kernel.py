# SPDX-License-Identifier: Apache-2.0
"""The HSA ops on a paged cache against the float64 oracle: shuffled pages, NaN in unused slots, odd lengths."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.config import NOT_WEIGHTS, WEIGHT_MODES
from sglang.srt.layers.attention.hsa.ops.extend.reference import extend_local_fwd
from sglang.srt.layers.attention.hsa.ops.merge.reference import merge_state
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd
from sglang.srt.layers.attention.hsa.page_repr import KINDS, slow_channels
from sglang.srt.layers.attention.hsa.params import LayerCache
from sglang.srt.layers.attention.hsa.passes.reference_attention import attend_reference
from sglang.srt.layers.attention.hsa.rotary_channels import layer_channels
from sglang.srt.layers.attention.hsa.selector import HSASelector
from sglang.test.attention import hsa_oracle as oracle
from sglang.test.attention.hsa_fixtures import (
    KINDS_AND_STRATEGIES,
    make_batch,
    make_params,
    rotary_channels,
    slots_of,
)

ATOL = 2e-5


def represent(batch, opt):
    """Representations of every physical page; NaN for the incomplete and the unused."""
    num_pages = batch.k_buffer.shape[0] // opt.page_size
    every = torch.arange(num_pages)
    return page_repr_fwd(batch.k_buffer, every, params_of(opt), kept(opt))


def params_of(opt):
    return make_params(
        opt.scale, opt.cap, page_size=opt.page_size, window_size=opt.window_size, sink_pages=opt.sink_pages,
        topk=opt.topk, chunk_repr=opt.kind, selection_strategy=opt.strategy, weight_mode=opt.mode,
    )  # fmt: skip


def run(batch, q, q_lens, opt, *, decode=False):
    """Selection and attention of the last ``q_lens`` tokens of each sequence; returns (o, selected)."""
    cu = torch.tensor([0, *itertools.accumulate(q_lens)], dtype=torch.int32)
    reprs = represent(batch, opt)
    cache = LayerCache(batch.k_buffer, batch.v_buffer, reprs, channels=kept(opt))
    valid = torch.ones_like(batch.page_table, dtype=torch.bool)
    table, lens = batch.page_table, batch.seq_lens
    params = params_of(opt)
    return attend_reference(q, cache, valid, table, lens, cu, params, decode=decode)


def logical(batch, b, physical):
    """Logical pages of a row of physical ones, without the padding."""
    table = batch.page_table[b].tolist()
    return [table.index(p) for p in physical.tolist() if p >= 0]


def queries(num_tokens, num_heads, head_dim, seed=1):
    return torch.randn(
        num_tokens, num_heads, head_dim, generator=torch.Generator().manual_seed(seed)
    )


def small(**kwargs):
    """Pages of 16 and a window of 40: many pages within a few hundred tokens; heads of 16."""
    channels = tuple(rotary_channels(16).tolist())
    return oracle.Options(
        **{"page_size": 16, "window_size": 40, "topk": 3, "scale": 0.25, **kwargs},
        channels=channels,
    )


def kept(opt):
    return torch.tensor(opt.channels) if opt.kind == "slow_keys" else None


OPTIONS = [
    (*pair, mode)
    for pair in KINDS_AND_STRATEGIES
    for mode in WEIGHT_MODES
    if mode == "mass" or pair[0] not in NOT_WEIGHTS  # start-up refuses that pair
]


@pytest.mark.parametrize("kind,strategy,mode", OPTIONS)
def test_extend_and_decode_equal_the_oracle(kind, strategy, mode):
    opt = small(kind=kind, strategy=strategy, mode=mode)
    lens = [1, 15, 16, 17, 200, 333]
    batch = make_batch(lens, page_size=16)
    q_lens = [1, 15, 3, 17, 200, 5]
    q = queries(sum(q_lens), 4, 16)
    o, selected = run(batch, q, q_lens, opt)
    row = 0
    for b, (n, m) in enumerate(zip(lens, q_lens)):
        for i in range(n - m, n):
            expected = oracle.attend(
                q[row].double().numpy(), batch.k[b], batch.v[b], i, opt
            )
            np.testing.assert_allclose(
                o[row].numpy(), expected, atol=ATOL, err_msg=f"{b=} {i=}"
            )
            chosen, _ = oracle.select(q[row].double().numpy(), batch.k[b], i, opt)
            for g in range(2):
                assert logical(batch, b, selected[row, g]) == chosen[g], (b, i, g)
            row += 1

    q = queries(len(lens), 4, 16, seed=2)
    o, selected = run(batch, q, [1] * len(lens), opt, decode=True)
    for b, n in enumerate(lens):
        query = q[b].double().numpy()
        expected = oracle.attend(query, batch.k[b], batch.v[b], n - 1, opt)
        np.testing.assert_allclose(o[b].numpy(), expected, atol=ATOL, err_msg=f"{b=}")
        chosen, _ = oracle.select(query, batch.k[b], n - 1, opt)
        assert {g: logical(batch, b, selected[b, g]) for g in range(2)} == chosen


@pytest.mark.parametrize(
    "num_heads,num_kv_heads", [(1, 1), (4, 4), (8, 1), (16, 2), (8, 4)]
)
def test_head_groups(num_heads, num_kv_heads):
    """MHA, GQA and MQA."""
    opt = small(strategy="softmax_head")
    batch = make_batch(
        [150, 97], page_size=16, num_kv_heads=num_kv_heads, v_head_dim=24
    )
    q = queries(2, num_heads, 16)
    for decode in (True, False):
        o, _ = run(batch, q, [1, 1], opt, decode=decode)
        for b, n in enumerate([150, 97]):
            expected = oracle.attend(
                q[b].double().numpy(), batch.k[b], batch.v[b], n - 1, opt
            )
            np.testing.assert_allclose(o[b].numpy(), expected, atol=ATOL)


@pytest.mark.parametrize("page_size", [16, 64, 128])
@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_all_pages_selected_is_dense_attention(page_size, cap):
    opt = oracle.Options(
        page_size=page_size, window_size=512, topk=10**6, scale=0.3, cap=cap
    )
    lens = [1, 63, 64, 65, 127, 640, 1000]
    batch = make_batch(lens, page_size=page_size)
    q = queries(len(lens), 4, 16)
    for decode in (True, False):
        o, _ = run(batch, q, [1] * len(lens), opt, decode=decode)
        for b, n in enumerate(lens):
            expected = oracle.dense(
                q[b].double().numpy(), batch.k[b], batch.v[b], n - 1, opt
            )
            np.testing.assert_allclose(o[b].numpy(), expected, atol=ATOL)


@pytest.mark.parametrize("n", [*range(1, 130), 576, 577, 1000])
def test_short_sequences_are_finite_and_dense(n):
    """No window or page with an empty key set may leak NaN."""
    opt = oracle.Options(topk=2, scale=0.3)
    batch = make_batch([n])
    q = queries(1, 4, 16)
    for decode in (True, False):
        o, selected = run(batch, q, [1], opt, decode=decode)
        query = q[0].double().numpy()
        expected = oracle.attend(query, batch.k[0], batch.v[0], n - 1, opt)
        np.testing.assert_allclose(o[0].numpy(), expected, atol=ATOL)
        if n <= 512 + 63:
            assert selected.numel() == 0


def test_zero_window_attends_the_own_page_only():
    opt = small(window_size=0, sink_pages=0, topk=1)
    batch = make_batch([100], page_size=16)
    q = queries(1, 4, 16)
    for decode in (True, False):
        o, _ = run(batch, q, [1], opt, decode=decode)
        expected = oracle.attend(q[0].double().numpy(), batch.k[0], batch.v[0], 99, opt)
        np.testing.assert_allclose(o[0].numpy(), expected, atol=ATOL)
    assert oracle.local_positions(99, opt) == [96, 97, 98, 99]


def test_few_pages_differ_from_dense():
    opt = small(topk=1)
    batch = make_batch([400], page_size=16)
    q = queries(1, 4, 16)
    o, _ = run(batch, q, [1], opt, decode=True)
    expected = oracle.dense(q[0].double().numpy(), batch.k[0], batch.v[0], 399, opt)
    assert np.abs(o[0].numpy() - expected).max() > 100 * ATOL


@pytest.mark.parametrize("decode", [True, False])
def test_only_selected_pages_reach_the_output(decode):
    """Changing an unselected page changes no bit of the output; a selected one changes it."""
    opt = small()
    batch = make_batch([300], page_size=16)
    q = queries(1, 4, 16)
    reprs = represent(
        batch, opt
    )  # fixed, so that only attention can tell the difference
    o, selected = run(batch, q, [1], opt, decode=decode)
    chosen = {p for g in range(2) for p in logical(batch, 0, selected[0, g])}
    candidates = set(oracle.candidate_pages(299, opt))
    assert chosen and candidates - chosen
    for page in candidates:
        slots = slots_of(batch, 0, page, 16)
        values = batch.v_buffer.clone()
        values[slots] += 3.0
        changed = batch._replace(v_buffer=values)
        again, same = run(changed, q, [1], opt, decode=decode)
        assert torch.equal(represent(changed, opt).nan_to_num(), reprs.nan_to_num())
        assert torch.equal(same, selected)
        assert torch.equal(o, again) == (page not in chosen), page


def best(topk, logits, page_table):
    return HSASelector(make_params(topk=topk)).topk_transform(logits, page_table)


def test_ties_go_to_the_smaller_page_and_order_is_ascending():
    logits = torch.tensor([[[1.0, 2.0, 2.0, 2.0, 0.5, float("-inf")]]])
    page_table = torch.tensor([50, 40, 30, 20, 10, 60], dtype=torch.int32)
    selected, physical = best(2, logits, page_table)
    assert selected.tolist() == [[[1, 2]]] and physical.tolist() == [[[40, 30]]]
    selected, physical = best(6, logits, page_table)
    assert selected.tolist() == [[[0, 1, 2, 3, 4, -1]]]
    assert physical.tolist() == [[[50, 40, 30, 20, 10, -1]]]
    same = torch.zeros(1, 1, 1000)
    table = torch.arange(1000)
    assert best(7, same, table)[0].tolist() == [[list(range(7))]]


def test_extend_selects_what_decode_selects():
    opt = small(strategy="softmax_head")
    batch = make_batch([257, 90], page_size=16)
    q = queries(2, 4, 16)
    o_decode, decode = run(batch, q, [1, 1], opt, decode=True)
    o_extend, extend = run(batch, q, [1, 1], opt)
    assert torch.equal(decode, extend)
    torch.testing.assert_close(o_decode, o_extend, atol=ATOL, rtol=0)


def test_rows_do_not_depend_on_the_batch_or_on_the_cut():
    opt = small()
    batch = make_batch([333, 40, 150], page_size=16)
    q_lens = [333, 40, 150]
    q = queries(sum(q_lens), 4, 16)
    whole, selected = run(batch, q, q_lens, opt)
    alone = batch._replace(
        page_table=batch.page_table[2:],
        seq_lens=batch.seq_lens[2:],
        k=batch.k[2:],
        v=batch.v[2:],
    )
    o, pages = run(alone, q[373:], [150], opt)
    torch.testing.assert_close(o, whole[373:], atol=ATOL, rtol=0)
    assert torch.equal(pages, selected[373:, :, : pages.shape[-1]])
    begin = 0
    for end in (1, 15, 17, 63, 64, 200, 333):  # chunk ends, aligned or not
        part = batch._replace(
            page_table=batch.page_table[:1],
            seq_lens=torch.tensor([end], dtype=torch.int32),
        )
        o, pages = run(part, q[begin:end], [end - begin], opt)
        torch.testing.assert_close(o, whole[begin:end], atol=ATOL, rtol=0)
        width = pages.shape[-1]
        assert torch.equal(pages, selected[begin:end, :, :width])
        assert (selected[begin:end, :, width:] == -1).all()
        begin = end


def test_window_boundary_visibility():
    """One-hot values show exactly which positions a query sees around the window's edge."""
    opt = oracle.Options(window_size=512, topk=1, sink_pages=1, scale=0.0)
    for n in (511, 512, 513, 575, 576, 577, 640, 641):
        batch = make_batch([n], num_kv_heads=1, v_head_dim=n)
        values = torch.full_like(batch.v_buffer, float("nan"))
        slots = torch.cat(
            [slots_of(batch, 0, p, 64) for p in range(batch.page_table.shape[1])]
        )[:n]
        values[slots] = torch.eye(n).unsqueeze(1)
        batch = batch._replace(v_buffer=values)
        for decode in (True, False):
            o, selected = run(batch, queries(1, 1, 16), [1], opt, decode=decode)
            expected = set(oracle.local_positions(n - 1, opt))
            for page in logical(batch, 0, selected[0, 0]) if selected.numel() else []:
                expected |= set(range(page * 64, page * 64 + 64))
            assert set(o[0, 0].nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("strategy", ["group", "head", "softmax_head"])
def test_pages_without_a_representation_come_first(strategy):
    """They are not lost, whatever they hold; a page of a later batch is."""
    opt = small(topk=3, strategy=strategy)
    batch = make_batch([200], page_size=16)
    q = queries(1, 4, 16)
    valid = torch.ones_like(batch.page_table, dtype=torch.bool)
    valid[0, 3] = valid[0, 5] = valid[0, 6] = False
    own = torch.ones_like(valid)
    own[0, 6] = False
    reprs = represent(batch, opt)
    reprs[batch.page_table[0, 3]] = float("nan")
    lse = torch.zeros(1, 4)
    selector = HSASelector(params_of(opt))
    rest = batch.page_table, torch.tensor([0, 1]), batch.seq_lens, lse, own
    selected, _ = selector.select(q, reprs, valid, *rest)
    for g in range(2):
        pages = logical(batch, 0, selected[0, g])
        assert len(pages) == 3 and {3, 5} < set(pages) and 6 not in pages


def test_slow_keys_score_the_largest_logit_of_the_kept_channels():
    """Off by half a step per channel at most, and by what bfloat16 takes from lowest value and step."""
    opt = small(kind="slow_keys")
    batch = make_batch([64], page_size=16)
    q = queries(5, 2, 16)
    channels = kept(opt)
    keys = torch.as_tensor(batch.k[0]).float().view(4, 16, 2, 16)[..., channels]
    query = q[..., channels]
    best = torch.einsum("thd,cphd->thcp", query, keys).amax(-1) * opt.scale
    reprs = represent(batch, opt)[batch.page_table[0].long()]
    every = torch.ones(5, 4, dtype=torch.bool)
    _, raw = HSASelector(params_of(opt), channels).compute_logits(q, reprs, every)
    low, high = keys.amin(1), keys.amax(1)  # [C, H, R]
    half_step = (high - low) / 30 + low.abs().maximum(high.abs()) / 128
    bound = torch.einsum("thd,chd->thc", query.abs(), half_step) * opt.scale
    assert ((raw - best).abs() <= bound).all()
    assert (raw - best).abs().max() > 1e-4  # they are approximations


def test_outlying_channels_cost_the_others_nothing():
    """A channel of 1,000 beside others of 1: each has a step of its own."""
    keys = torch.randn(3, 16, 2, 16)
    far = keys.clone()
    channels = rotary_channels(16)
    outlier = channels[0].item()
    far[..., outlier] += 1000.0
    kind = KINDS["slow_keys"]
    plain, shifted = (kind.keys(kind.represent(k, channels), 8) for k in (keys, far))
    torch.testing.assert_close(shifted[..., 1:], plain[..., 1:], rtol=0, atol=0)
    error = shifted[..., 0] - far[..., outlier].transpose(1, 2)
    assert error.abs().max() < 4.5  # bfloat16 has steps of 4 there


def test_slow_channels_are_those_that_turn_least():
    """Pairs of channels half a head apart, neighbours, and channels that are not turned at all."""
    speeds = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    apart = torch.tensor(speeds * 2)
    assert slow_channels(apart).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    beside = torch.tensor(speeds).repeat_interleave(2)
    assert slow_channels(beside).tolist() == [*range(8, 16)]
    partly = torch.tensor([1.0, 0.1] * 4 + [0.0] * 8)
    assert slow_channels(partly).tolist() == [*range(8, 16)]
    assert slow_channels(torch.ones(8)).tolist() == [*range(8)], "a word of codes"


def test_heads_smaller_than_a_word_of_codes_are_refused():
    with pytest.raises(ValueError, match="heads of at least 8 channels, not 4; use"):
        layer_channels(torch.nn.Module(), ["attn"], 4)


def test_merge_of_empty_parts():
    o = torch.randn(2, 3, 4)
    lse = torch.randn(2, 3)
    nothing = torch.full((2, 3), float("-inf"))
    merged, total = merge_state(o, lse, torch.zeros_like(o), nothing)
    assert torch.equal(merged, o) and torch.equal(total, lse)
    merged, total = merge_state(
        torch.zeros_like(o), nothing, torch.zeros_like(o), nothing
    )
    assert torch.equal(merged, torch.zeros_like(o)) and torch.equal(total, nothing)


def test_scales_dequantise_keys_and_values():
    opt = small()
    batch = make_batch([100], page_size=16)
    q = queries(1, 4, 16)
    half = batch._replace(k_buffer=batch.k_buffer / 2, v_buffer=batch.v_buffer / 4)
    params = params_of(opt)
    scaled = dataclasses.replace(params, k_scale=2.0, v_scale=4.0)
    rest = batch.page_table, torch.tensor([0, 1]), batch.seq_lens
    expected, _ = extend_local_fwd(q, batch.k_buffer, batch.v_buffer, *rest, params)
    o, _ = extend_local_fwd(q, half.k_buffer, half.v_buffer, *rest, scaled)
    torch.testing.assert_close(o, expected)
    pages = batch.page_table[0, :6]
    torch.testing.assert_close(
        page_repr_fwd(half.k_buffer, pages, scaled),
        page_repr_fwd(batch.k_buffer, pages, params),
    )


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
