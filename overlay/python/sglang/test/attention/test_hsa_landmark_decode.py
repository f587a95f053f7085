# SPDX-License-Identifier: Apache-2.0
"""Decode kernels of checkpoints with landmarks against their definition (docs/hils.md), head by head.

Without a GPU they run under TRITON_INTERPRET=1. Memory of pages that no sequence has is NaN.
"""

import pytest
import torch

from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.landmark_rows import decode_landmark_rows
from sglang.srt.layers.attention.hsa.ops.page_repr.landmark_kernel import (
    write_landmark_pages,
)
from sglang.srt.layers.attention.hsa.ops.page_table.landmark_lengths import (
    landmark_lengths,
)
from sglang.srt.layers.attention.hsa.ops.select import prior_decode
from sglang.srt.layers.attention.hsa.ops.select.by_kind import decode_programs
from sglang.srt.layers.attention.hsa.page_repr import PRIOR
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache
from sglang.srt.layers.attention.hsa.passes.decode_attention import DecodeSize
from sglang.srt.layers.attention.hsa.passes.split_decode import SplitDecode
from sglang.test.attention.hsa_device import DEVICE, needs_kernels
from sglang.test.attention.hsa_fixtures import make_params

pytestmark = needs_kernels

# A tensor core multiplies 16 places or more.
SLOTS, PLACES, PAGES, KV_HEADS, SCALE = 15, 16, 200, 2, 0.3
# The second completes a page, the third pads a CUDA graph, the fourth has all in its window.
SEQ_LENS = (223, 210, 1, 5)
# Pages of the four in the test of the writer: the first belongs to a later batch.
WRITTEN = (31, 30, 3, 4)


def make_config(window=16):
    return make_params(
        page_size=SLOTS, window_size=window, topk=3, sink_pages=0, chunk_repr="prior",
        selection_strategy="softmax_head", weight_mode="score",
    ).config  # fmt: skip


def make(group, head_dim, window, softmax1):
    """(parameters, cache, page table, queries, queries that choose) of one step."""
    config = make_config(window)
    sinks = torch.zeros(KV_HEADS * group, device=DEVICE) if softmax1 else None
    params = AttentionParams(config, SCALE, mask_last_slot=True, sink_logits=sinks)
    generator = torch.Generator().manual_seed(group)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    versions = torch.arange(PAGES, device=DEVICE)
    cache = LayerCache(
        random(PAGES * SLOTS, KV_HEADS, head_dim),
        random(PAGES * SLOTS, KV_HEADS, head_dim),
        random(PAGES, KV_HEADS, group * head_dim),
        versions.clone(),
        versions,
        biases=random(PAGES, KV_HEADS, group),
    )
    table = torch.stack(
        [torch.randperm(PAGES, generator=generator)[:16] for _ in SEQ_LENS]
    )
    free = torch.ones(PAGES, dtype=torch.bool)
    free[table.flatten()] = False
    free[list(WRITTEN)] = False
    for memory in (cache.keys, cache.values, cache.reprs, cache.biases):
        memory.unflatten(0, (PAGES, -1))[free.to(DEVICE)] = float("nan")
    rows = 2 * len(SEQ_LENS), KV_HEADS * group, head_dim
    return params, cache, table.int().to(DEVICE), random(*rows), random(*rows)


def lengths():
    seq_lens = torch.tensor(SEQ_LENS, device=DEVICE)
    out = torch.full((2 * len(SEQ_LENS),), -1, dtype=torch.int32, device=DEVICE)
    return landmark_lengths(seq_lens, out, SLOTS)


def expected(params, cache, table, q, chooser, places):
    """Attention of one row with so many places, and its pages by KV head."""
    group = q.shape[0] // KV_HEADS
    out, chosen = torch.zeros_like(q), []
    first = max(0, (places - params.window_size) // PLACES)
    slots = [
        [int(table[c]) * SLOTS + j for j in range(SLOTS) if c * PLACES + j < places]
        for c in range(-(-places // PLACES))
    ]
    window = sum(slots[first:], [])
    for g in range(KV_HEADS):
        heads = range(g * group, (g + 1) * group)
        k, v = cache.keys[:, g], cache.values[:, g]
        local = {h: SCALE * k[window] @ q[h] for h in heads}
        reprs = cache.reprs[table[:first].long(), g].view(first, group, q.shape[-1])
        biases = cache.biases[table[:first].long(), g]
        score = {
            h: SCALE * reprs[:, i] @ chooser[h] + biases[:, i]
            for i, h in enumerate(heads)
        }
        share = [score[h] - torch.cat([local[h], score[h]]).logsumexp(0) for h in heads]
        best = torch.stack(share).amax(0).topk(min(params.topk, first)).indices.tolist()
        chosen.append(sorted(int(table[c]) for c in best))
        for h in heads:
            parts = [(local[h].logsumexp(0), local[h].softmax(0) @ v[window])]
            for c in best:
                weights = (SCALE * k[slots[c]] @ q[h]).softmax(0)
                parts.append((score[h][c], weights @ v[slots[c]]))
            logits = torch.stack([part[0] for part in parts])
            if params.sink_logits is not None:
                logits = torch.cat([logits, logits.new_zeros(1)])
            for weight, (_, value) in zip(logits.softmax(0), parts):
                out[h] += weight * value
    return out, chosen


@pytest.mark.parametrize(
    "group,head_dim,window,softmax1",
    [(2, 16, 40, True), (1, 24, 1, False), (3, 16, 80, True)],
)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_rows_attend_by_the_definition(
    group, head_dim, window, softmax1, batch_invariant
):
    """With a program each for pages and window, or in a batch-invariant step with 17 and 16."""
    params, cache, table, q, chooser = make(group, head_dim, window, softmax1)
    counters, rows = HSACounters(DEVICE), lengths()
    assert rows.tolist() == [237, 223, 0, 5, 0, 224, 0, 0]
    size = DecodeSize(
        len(rows), table.shape[1], q.shape[1], KV_HEADS, head_dim, 2, batch_invariant
    )
    decode = SplitDecode(params.config, counters, size, torch.device(DEVICE))
    decode.begin()
    out = decode.launch(q, cache, table, rows, params, select_q=chooser)
    for i, places in enumerate(rows.tolist()):
        if not places:
            assert not out[i].any()
            continue
        of_row = table[i % len(SEQ_LENS)]
        want, chosen = expected(params, cache, of_row, q[i], chooser[i], places)
        torch.testing.assert_close(out[i], want, atol=1e-5, rtol=1e-5)
        for g, pages in enumerate(chosen):
            found = decode.selected[i, g].tolist()
            assert sorted(page for page in found if page >= 0) == pages
    counts = counters.snapshot()
    assert counts["rows_sparse"] == 3 and counts["reprs_missing"] == 0


def test_a_sequence_of_a_deterministic_step_does_not_depend_on_the_others():
    """Its token and its landmark, to the bit, alone and among others."""
    params, cache, table, q, chooser = make(3, 16, 80, True)
    counters, rows, every = HSACounters(DEVICE), lengths(), len(SEQ_LENS)
    size = DecodeSize(
        len(rows), table.shape[1], q.shape[1], KV_HEADS, 16, 2, batch_invariant=True
    )

    def step(sequences):
        own = [*sequences, *(every + i for i in sequences)]
        decode = SplitDecode(params.config, counters, size, torch.device(DEVICE))
        decode.begin()
        out = decode.launch(
            q[own], cache, table[sequences], rows[own], params, select_q=chooser[own]
        )
        # What is selected of a row without places is not defined.
        selected = decode.selected[: len(own)].clone()
        return out, selected.masked_fill_(rows[own][:, None, None] == 0, -1)

    whole, chosen = step(list(range(every)))
    for sequences in (*([i] for i in range(every)), [1, 0], [2, 1, 3]):
        own = [*sequences, *(every + i for i in sequences)]
        out, selected = step(sequences)
        assert torch.equal(out, whole[own])
        assert torch.equal(selected, chosen[own])


def test_a_landmark_writes_the_page_of_its_token():
    """Whatever the page table says by then, and nothing for a page that is not complete or belongs to a later batch."""
    params, cache, table, _, chooser = make(2, 16, 40, True)
    before = cache.reprs.clone()
    later, written, *_ = WRITTEN
    cache.stamps[written] = cache.versions[later] = -1
    out_slots = torch.tensor([page * SLOTS + SLOTS - 1 for page in WRITTEN])
    counters = HSACounters(DEVICE)
    landmarks = decode_landmark_rows(torch.tensor(SEQ_LENS, device=DEVICE))
    of_a_later_batch = torch.zeros_like(lengths())
    of_a_later_batch[len(SEQ_LENS)] = 224
    for rows in (lengths(), of_a_later_batch):
        write_landmark_pages(
            chooser, cache, landmarks, out_slots.to(DEVICE), counters.values, params, rows
        )  # fmt: skip
    own = slice(written * SLOTS, (written + 1) * SLOTS)
    mean, entropy = PRIOR.represent(
        cache.keys[None, own], chooser[None, 5].unflatten(1, (KV_HEADS, -1)), SCALE
    )
    torch.testing.assert_close(cache.reprs[written], mean[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.biases[written], entropy[0], atol=1e-5, rtol=1e-5)
    assert cache.stamps[written] == written
    others = torch.arange(PAGES, device=DEVICE) != written
    assert torch.equal(cache.reprs[others].nan_to_num(), before[others].nan_to_num())
    assert counters.snapshot()["reprs_written"] == 1


@pytest.mark.parametrize("processors", [None, 4, 108, 132])
@pytest.mark.parametrize("group", [1, 8])
def test_scratch_has_room_for_the_programs_of_any_batch(processors, group):
    config = make_config()
    for kv_heads in (1, 2, 8):
        for rows in (1, 2, 3, 8, 16, 33, 130, 300):
            all_rows = prior_decode.ROWS_PER_SEQUENCE * rows
            size = DecodeSize(
                all_rows, 100, kv_heads * group, kv_heads, 64, prior_decode.ROWS_PER_SEQUENCE
            )  # fmt: skip
            bound = decode_programs(config, lambda n: size.max_programs(processors, n))
            for fewer in range(1, rows + 1):
                busy = fewer * kv_heads
                programs = sum(prior_decode.programs_of(processors, busy, group))
                assert programs <= prior_decode.MOST_PROGRAMS
                assert prior_decode.ROWS_PER_SEQUENCE * busy * programs <= bound


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
