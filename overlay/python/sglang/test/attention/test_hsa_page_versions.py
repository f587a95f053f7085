# SPDX-License-Identifier: Apache-2.0
"""Page versions against the schedule: pages handed out while a forward pass of the batch before still runs.

On a GPU the allocator's stream runs ahead of the forward stream. Here the two are interleaved by hand, in the
worst order: the next batch gets its pages before the forward pass before it has read anything.
"""

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.params import NO_VERSION
from sglang.test.attention.hsa_harness import Harness

PAGE = 16


def forward(h, batch):
    """One forward pass with random inputs through layer 0."""
    h.backend.init_forward_metadata(batch)
    tokens = len(batch.out_cache_loc)
    q, k, v = (torch.randn(tokens, heads * 16) for heads in (4, 2, 2))
    return h.run_layer(0, q, k, v, batch)


def ended_request(h, length):
    """A request that the scheduler has just ended, and the batch that decodes one more token for it."""
    s = h.new_sequence()
    h.step([s], [length])
    return s, h.batch({0: 1}, [s], decode=True)


@pytest.mark.parametrize("length", [63, 150, 159])
def test_a_late_forward_pass_never_stamps_pages_of_the_next_batch(length):
    """The overlap race: the next batch owns the pages before the late writer reads versions and tables."""
    h = Harness(num_pages=12, strict=True)
    s, late = ended_request(h, length)
    pages = h.pages_of(s).long()
    h.free(s)
    heir = h.new_sequence()
    next_batch = h.batch({0: 12 * PAGE}, [heir], decode=False)  # takes every page
    assert set(pages.tolist()) <= set(h.pages_of(heir).tolist())

    forward(h, late)
    assert not h.pool.repr_valid(0, pages).any()
    # A row that the heir has taken over makes no difference: what it names is not the late batch's.
    assert (h.backend.forward_pass.metadata.page_version == NO_VERSION).all()
    assert not h.backend.forward_pass.metadata.page_complete.any()

    forward(h, next_batch)  # strict: recomputes every representation
    assert h.pool.repr_valid(0, pages).all()
    assert h.backend.counters.snapshot()["reprs_healed"] == 0


@pytest.mark.parametrize("static", [False, True])
def test_versions_are_read_once(monkeypatch, static):
    """What the allocator changes while a pass takes its copy is either in it or not, and never half."""
    pool = Harness(num_pages=12).pool
    built_at, mine, reads = pool.page_handouts, pool.page_version.clone(), []

    def page_version(pool):
        if reads:
            pool.page_versions.renew()  # the allocator, on another stream
        reads.append(True)
        return pool.page_versions.version

    monkeypatch.setattr(type(pool), "page_version", property(page_version))
    # Decode has both in tensors that a CUDA graph holds.
    number = torch.tensor([built_at]) if static else built_at
    out = torch.zeros_like(mine) if static else None
    assert torch.equal(pool.versions_at(number, out), mine)


@pytest.mark.parametrize("moment", ["before metadata", "before writers"])
def test_a_writer_stamps_the_version_its_batch_was_built_with(moment):
    h = Harness(num_pages=12)
    s, late = ended_request(h, 63)
    page = h.pages_of(s)[3].long()
    built_with = int(h.pool.page_version[page])
    stamp = int(h.pool.repr_stamps[0][page])

    if moment == "before writers":
        h.backend.init_forward_metadata(late)
    h.pool.bump_page_version(
        page.view(1) * PAGE
    )  # the allocator, for a batch that is built after
    if moment == "before metadata":
        h.backend.init_forward_metadata(late)
    x = torch.randn(1, 2 * 16)
    h.run_layer(0, torch.randn(1, 4 * 16), x, x.clone(), late)

    assert not h.pool.repr_valid(0, page)
    expected = stamp if moment == "before metadata" else built_with
    assert h.pool.repr_stamps[0][page] == expected < h.pool.page_version[page]


def test_neighbours_of_an_ended_request_are_unharmed():
    """A batch of a running and an ended request, run after the ended one's pages went to a third."""
    h = Harness(num_pages=40, strict=True)
    running, ended = h.new_sequence(), h.new_sequence()
    h.step([running, ended], [159, 150])
    late = h.batch({0: 1, 1: 1}, [running, ended], decode=True)
    h.free(ended)
    heir = h.new_sequence()
    next_batch = h.batch({0: 200}, [heir], decode=False)

    forward(h, late)
    own = h.pages_of(running)
    assert h.pool.repr_valid(0, own[: running.length // PAGE]).all()
    forward(h, next_batch)
    assert h.pool.repr_valid(0, h.pages_of(heir)[: 200 // PAGE]).all()
    assert h.backend.counters.snapshot()["reprs_healed"] == 0


def test_chunk_of_an_aborted_prefill_runs_after_its_pages_were_given_away():
    h = Harness(num_pages=12, strict=True)
    s = h.new_sequence()
    h.step([s], [64])
    late = h.batch({0: 64}, [s], decode=False)
    h.free(s)
    heir = h.new_sequence()
    next_batch = h.batch({0: 12 * PAGE - 1}, [heir], decode=False)
    forward(h, late)
    assert not h.pool.repr_valid(0, h.pages_of(heir)).any()
    forward(h, next_batch)
    valid = h.pool.repr_valid(0, h.pages_of(heir))
    assert valid.tolist() == [True] * 11 + [False], "the last page is one token short"


def test_every_random_interleaving_gives_every_request_its_own_answer():
    """Batches built ahead of the forward passes, requests ended and pages reused in between."""
    # Both seeded: now and then two pages have scores within rounding of each other.
    rng, values = np.random.default_rng(0), torch.Generator().manual_seed(0)
    h = Harness(
        num_pages=30, topk=2
    )  # not strict: the harness poisons what the late pass may still read
    for _ in range(30):
        s = h.new_sequence()
        h.step([s], [int(rng.integers(1, 200))])
        late = h.batch({0: 1}, [s], decode=True)
        h.free(s)
        other = h.new_sequence()
        length = int(rng.integers(1, 250))
        begin = h.batch({0: length}, [other], decode=False)
        forward(h, late)
        h.backend.init_forward_metadata(begin)
        q, k, v = (torch.randn(length, n, 16, generator=values) for n in (4, 2, 2))
        o = h.run_layer(0, q.flatten(1), k.flatten(1), v.flatten(1), begin)
        other.k, other.v = list(k.double().numpy()), list(v.double().numpy())
        np.testing.assert_allclose(
            o.view(length, 4, -1).numpy(), h.expected(q, [other], [length]), atol=3e-5
        )
        h.free(other)
    assert h.backend.counters.snapshot()["reprs_healed"] == 0


def test_a_running_request_whose_pages_are_replaced_while_its_metadata_is_built():
    """The scheduler finds twins of a request's pages in the radix cache, repoints its row, frees the request's own
    pages and hands them out, between the late pass's reads of table and versions."""
    h = Harness(num_pages=24, strict=True)
    first, twin = h.new_sequence(), h.new_sequence()
    h.step([first], [96])
    h.rng.manual_seed(0)
    h.step([twin], [96])
    old = h.req_to_token_pool.req_to_token[twin.row, :96].clone()
    late = h.batch({0: 1}, [twin], decode=True)
    pool = h.req_to_token_pool

    class RacingTable:
        """What the forward stream reads is the row before, and the allocator is done right after."""

        @property
        def req_to_token(self):
            seen = pool.req_to_token.clone()
            pool.req_to_token[twin.row, :96] = pool.req_to_token[first.row, :96]
            h.allocator.free(old.long())
            assert set(old.tolist()) <= set(h.allocator.alloc(10 * PAGE).tolist())
            return seen

    late.req_to_token_pool = RacingTable()
    h.backend.init_forward_metadata(late)
    md = h.backend.forward_pass.metadata
    assert md.page_complete[0, :6].all(), "no candidate may go missing"
    assert h.pool.repr_valid(0, md.real_page_table, md.page_version)[0, :6].all()


def test_a_batch_without_a_count_sees_what_was_handed_out_so_far():
    h = Harness(strict=True)
    s = h.new_sequence()
    batch = h.batch({0: 64}, [s], decode=False)
    batch.page_handouts = None
    forward(h, batch)
    assert h.pool.repr_valid(0, h.pages_of(s)).all()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
