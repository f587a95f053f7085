# SPDX-License-Identifier: Apache-2.0
"""HSAAttnBackend on a real pool: every row of extend and decode equals the oracle, whatever the schedule."""

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa import selection_watch
from sglang.srt.layers.attention.hsa.config import NOT_WEIGHTS
from sglang.srt.layers.attention.hsa.passes.reference import ReferencePass
from sglang.test.attention.hsa_fixtures import KINDS_AND_STRATEGIES
from sglang.test.attention.hsa_harness import Harness

ATOL = 3e-5


def check(harness, sequences, new, **kwargs):
    q, o = harness.step(sequences, new, **kwargs)
    np.testing.assert_allclose(
        o.float().numpy(), harness.expected(q, sequences, new), atol=ATOL
    )
    return o


def complete_pages(harness, sequence):
    return harness.pages_of(sequence)[: sequence.length // harness.config.page_size]


OPTIONS = [(*pair, "mass") for pair in KINDS_AND_STRATEGIES]
OPTIONS += [
    (*pair, "score") for pair in KINDS_AND_STRATEGIES if pair[0] not in NOT_WEIGHTS
]


@pytest.mark.parametrize("chunk_repr,strategy,weight_mode", OPTIONS)
def test_prefill_and_decode(strategy, chunk_repr, weight_mode):
    h = Harness(
        selection_strategy=strategy,
        chunk_repr=chunk_repr,
        weight_mode=weight_mode,
        strict=True,
    )
    sequences = [h.new_sequence() for _ in range(3)]
    check(h, sequences, [130, 15, 64])
    for _ in range(20):  # crosses page boundaries in every sequence
        check(h, sequences, [1, 1, 1], decode=True)
    counts = h.backend.counters.snapshot()
    assert (
        counts["rows_sparse"] > 0
        and counts["pages_selected"] < counts["pages_candidate"]
    )
    assert counts["reprs_healed"] == 0


def test_chunked_prefill_cut_anywhere():
    """Chunks that start and end in mid-page complete their pages all the same."""
    h = Harness(strict=True)
    s = h.new_sequence()
    for chunk in (1, 15, 17, 62, 63, 64, 1, 47):
        check(h, [s], [chunk])
    assert h.backend.counters.snapshot()["reprs_written"] == s.length // 16


def test_mixed_batch_of_chunks_and_decoding_rows():
    h = Harness(strict=True)
    old = h.new_sequence()
    check(h, [old], [150])
    for _ in range(5):
        new = h.new_sequence()
        check(
            h, [old, new], [1, 70]
        )  # a mixed batch is an extend with rows of one token


def test_pages_generated_in_batched_decode_are_represented():
    h = Harness(num_pages=200, strict=True)
    sequences = [h.new_sequence() for _ in range(4)]
    check(h, sequences, [3, 16, 33, 60])
    for _ in range(100):
        check(h, sequences, [1] * 4, decode=True)
    for s in sequences:
        pages = complete_pages(h, s)
        assert h.pool.repr_valid(0, pages).all() and len(pages) > 5


def test_only_complete_pages_are_represented():
    h = Harness()
    s = h.new_sequence()
    for chunk in (15, 1, 16, 5):
        h.step([s], [chunk])
        pages = h.pages_of(s)
        valid = h.pool.repr_valid(0, pages)
        assert valid.tolist() == [(i + 1) * 16 <= s.length for i in range(len(pages))]


def test_shared_prefix_is_represented_once():
    """Requests with a common prefix share pages and representations."""
    h = Harness(strict=True)
    parent = h.new_sequence()
    check(h, [parent], [160])
    child = h.fork(parent, pages=9)
    other = h.fork(parent, pages=6)
    before = h.backend.counters.snapshot()["reprs_written"]
    check(h, [child, other, parent], [40, 3, 1])
    for _ in range(20):
        check(h, [child, other, parent], [1, 1, 1], decode=True)
    counts = h.backend.counters.snapshot()
    own = sum(
        s.length // 16 - shared for s, shared in ((child, 9), (other, 6), (parent, 10))
    )
    assert counts["reprs_written"] - before == own and counts["reprs_healed"] == 0


def test_recycled_pages_are_never_believed():
    """Freed pages keep their bytes and stamps; their next owner must not see them."""
    h = Harness(num_pages=24, strict=True)
    for round_ in range(6):
        sequences = [h.new_sequence() for _ in range(2)]
        check(h, sequences, [100 + 7 * round_, 90])
        for _ in range(20):
            check(h, sequences, [1, 1], decode=True)
        for s in sequences:
            h.free(s)
        assert h.allocator.available_size() == 24 * 16
    assert h.backend.counters.snapshot()["reprs_healed"] == 0


def test_missing_representations_are_healed_before_selection():
    h = Harness(strict=True)
    s = h.new_sequence()
    check(h, [s], [150])
    pages = complete_pages(h, s)
    h.pool.repr_stamps[0][pages[2:5].long()] -= 1
    h.pool.repr_buffers[0][pages[2:5].long()] = 255  # NaN as lowest value and step
    check(h, [s], [1], decode=True)
    assert h.backend.counters.snapshot()["reprs_healed"] == 3
    assert h.pool.repr_valid(0, pages).all()
    check(h, [s], [1], decode=True)
    assert h.backend.counters.snapshot()["reprs_healed"] == 3


def test_strict_mode_stops_on_a_page_that_stays_invalid(monkeypatch):
    h = Harness(strict=True)
    s = h.new_sequence()
    h.step([s], [150])
    h.pool.repr_stamps[0][complete_pages(h, s)[3].long()] -= 1
    monkeypatch.setattr(ReferencePass, "_write_missing", lambda *args: None)
    with pytest.raises(
        RuntimeError, match="layer 0 has complete pages without a valid"
    ):
        h.step([s], [1], decode=True)


def test_layers_keep_separate_representations():
    """Layers share pages and versions, and nothing else."""
    h = Harness(layers=3, hsa_layer_ids=[0, 2])
    s = h.new_sequence()
    h.step([s], [64], layer=2)
    pages = h.pages_of(s)
    assert h.pool.repr_valid(2, pages).all()
    assert not h.pool.repr_valid(0, pages).any()
    assert len(h.pool.repr_buffers) == 2 and not h.pool.has_page_repr(1)


def test_layers_without_hsa_are_dense():
    h = Harness(layers=2, hsa_layer_ids=[0], topk=1)
    dense = Harness(layers=2, hsa_layer_ids=[0], topk=10**6, num_pages=64)
    outputs = []
    for harness in (h, dense):
        s = harness.new_sequence()
        outputs.append(harness.step([s], [200], layer=1)[1])
        assert harness.backend.counters.snapshot()["rows_sparse"] == 0
    torch.testing.assert_close(*outputs)


def test_histories_of_many_lengths_in_one_process():
    """One backend, lengths in any order, poisoned memory throughout"""
    h = Harness(num_pages=40, strict=True)
    for length in (200, 1, 16, 199, 15, 17, 64, 2, 130, 31):
        s = h.new_sequence()
        check(h, [s], [length])
        for _ in range(3):
            check(h, [s], [1], decode=True)
        h.free(s)


def test_short_batches_take_the_dense_path_and_are_counted():
    h = Harness()
    s = h.new_sequence()
    h.step([s], [50])
    counts = h.backend.counters.snapshot()
    assert counts["rows_dense"] == 50 and counts["rows_sparse"] == 0
    assert counts["reprs_written"] == 3
    check(h, [s], [60])
    counts = h.backend.counters.snapshot()
    # 16-token pages, window 40, one sink page: position 71 is the first with a candidate.
    assert counts["rows_sparse"] == 110 - 71 and counts["rows_dense"] == 71
    assert counts["pages_candidate"] >= counts["pages_selected"] > 0


def test_dense_prefill_attends_everything_and_leaves_the_pages_ready():
    """Then decode selects; what prefill wrote is what sparse prefill writes."""
    h, everything = Harness(topk=1, prefill="dense"), Harness(topk=10**6)
    s, other = h.new_sequence(), everything.new_sequence()
    for new in (130, 70):
        o, expected = (x.step([y], [new])[1] for x, y in ((h, s), (everything, other)))
        torch.testing.assert_close(o, expected, atol=2e-5, rtol=0)
    counts = h.backend.counters.snapshot()
    assert counts["rows_dense"] == 200 and counts["rows_sparse"] == 0
    assert counts["reprs_written"] == 200 // 16 and counts["reprs_healed"] == 0
    check(h, [s], [1], decode=True)
    counts = h.backend.counters.snapshot()
    assert counts["rows_sparse"] == 1 and counts["reprs_healed"] == 0
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


def test_a_server_that_selects_nothing_says_so_once(monkeypatch, caplog):
    """Until it selects again. The shortest context that does is the one that the line names."""
    monkeypatch.setattr(selection_watch, "EVERY", 4)
    h = Harness(num_pages=80)
    short, long = h.new_sequence(), h.new_sequence()
    h.step([short], [h.config.shortest_sparse - 30])

    def lines(sequence, passes):
        caplog.clear()
        with caplog.at_level("WARNING"):
            for _ in range(passes):
                h.step([sequence], [1], decode=True)
        return [
            r.getMessage()
            for r in caplog.records
            if "selected no page" in r.getMessage()
        ]

    [line] = lines(short, 12)
    assert f"reached {h.config.shortest_sparse} tokens" in line
    assert not lines(short, 12)
    assert h.backend.counters.snapshot()["rows_sparse"] == 0
    h.step([long], [h.config.shortest_sparse])
    assert h.backend.counters.snapshot()["rows_sparse"] == 1
    assert not lines(long, 12)
    h.free(short)
    short = h.new_sequence()
    h.step([short], [20])
    assert len(lines(short, 16)) == 1


def test_soft_cap():
    h = Harness(logit_cap=2.0)
    s = h.new_sequence()
    q, o = h.step([s], [200])
    np.testing.assert_allclose(o.numpy(), h.expected(q, [s], [200]), atol=ATOL)
    for _ in range(3):
        check(h, [s], [1], decode=True)


def test_half_precision_pools():
    h = Harness(dtype=torch.float16, topk=10**6)
    s = h.new_sequence()
    q, o = h.step([s], [200])
    np.testing.assert_allclose(o.float().numpy(), h.expected(q, [s], [200]), atol=4e-3)


def test_layer_inputs_that_are_not_computed_are_refused():
    h = Harness()
    batch = h.batch({0: 5}, [h.new_sequence()], decode=False)
    h.backend.init_forward_metadata(batch)
    q, k = torch.randn(5, 64), torch.randn(5, 2, 16)
    for name, instead in (("return_lse", "choose another"), ("sinks", "use fa3")):
        with pytest.raises(NotImplementedError, match=f"passes {name} .*{instead}"):
            h.backend.forward_extend(
                q, k, k, h.layers[0], batch, **{name: torch.zeros(4)}
            )


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
