# SPDX-License-Identifier: Apache-2.0
"""``hsa_mask_last_slot`` on the reference ops, and where it is refused. The kernels' own tests have their cases of it."""

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.config import SELECTION_STRATEGIES
from sglang.test.attention import hsa_oracle
from sglang.test.attention.hsa_harness import Harness

ATOL = 3e-5


def harness(**options):
    return Harness(mask_last_slot=True, **options)


def check(h, sequences, new, **kwargs):
    q, o = h.step(sequences, new, **kwargs)
    np.testing.assert_allclose(o.numpy(), h.expected(q, sequences, new), atol=ATOL)
    return o


@pytest.mark.parametrize("page_size,cap", [(16, 0.0), (16, 2.0), (64, 0.0)])
@pytest.mark.parametrize("strategy", SELECTION_STRATEGIES)
@pytest.mark.parametrize("weight_mode", ["mass", "score"])
def test_extend_and_decode(page_size, cap, strategy, weight_mode):
    h = harness(
        page_size=page_size, logit_cap=cap, selection_strategy=strategy, weight_mode=weight_mode,
        chunk_repr="landmark", strict=True,
    )  # fmt: skip
    sequences = [h.new_sequence() for _ in range(3)]
    check(h, sequences, [7 * page_size - 3, page_size - 1, page_size])
    h.poison_last_slots(sequences)
    check(h, sequences, [page_size + 1, 1, 17])  # a prefix that ends before a last slot
    for _ in range(3):  # queries before, in and after a last slot
        check(h, sequences, [1, 1, 1], decode=True)
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


@pytest.mark.parametrize("window_size,sink_pages", [(0, 0), (1, 2), (40, 1)])
def test_a_query_in_a_last_slot_keeps_the_rest_of_its_page(window_size, sink_pages):
    """No row is left without a key, and none sees itself, at the first last slot as at later ones."""
    h = harness(window_size=window_size, sink_pages=sink_pages)
    s = h.new_sequence()
    for new in (16, 15, 1, 80):
        assert check(h, [s], [new]).any(-1).all()
    for _ in range(17):
        assert check(h, [s], [1], decode=True).any(-1).all()


def test_nothing_depends_on_a_last_slot_but_the_representations():
    """Other tokens in the last slots change which pages are selected, and nothing else."""
    outputs = []
    for topk in (2, 10**6):
        for shift in (0.0, 3.0):
            h = harness(topk=topk, chunk_repr="landmark")
            s = h.new_sequence()
            batch = h.batch({0: 200}, [s], decode=False)
            h.backend.init_forward_metadata(batch)
            q, k, v = h.inputs([s], [200])
            k[15::16] += shift * torch.randn(
                k[15::16].shape, generator=torch.Generator().manual_seed(7)
            )
            v[15::16] += shift
            outputs.append(h.forward(batch, q, k, v))
    few, few_shifted, every, every_shifted = outputs
    torch.testing.assert_close(every, every_shifted, atol=1e-6, rtol=0)
    some = 103  # the first row with more than two pages to select from
    torch.testing.assert_close(few[:some], few_shifted[:some], atol=1e-6, rtol=0)
    assert (few - few_shifted)[some:].abs().max() > 0.1


def test_the_mask_shows_in_every_row_that_has_a_last_slot_behind_it():
    h, plain = harness(), Harness()
    s, t = h.new_sequence(), plain.new_sequence()
    masked, o = h.step([s], [150])[1], plain.step([t], [150])[1]
    differs = (masked - o).abs().amax((1, 2)) > 100 * ATOL
    assert not differs[:15].any() and differs[15:].all()


def test_no_pass_goes_to_the_dense_backend(monkeypatch):
    h = harness()
    monkeypatch.setattr(h.backend.dense, "forward_extend", None)  # not called
    s = h.new_sequence()
    check(h, [s], [40])
    assert h.backend.counters.snapshot()["rows_dense"] == 40


def test_off_is_the_same_as_left_out():
    outputs = []
    for inputs in ({}, {"hsa_mask_last_slot": False}):
        h = Harness(layers=2, hsa_layer_ids=[1])
        h.layer_inputs = inputs
        outputs.append([])
        for layer in range(2):
            s = h.new_sequence()
            outputs[-1].append(h.step([s], [100], layer=layer)[1])
            outputs[-1].append(h.step([s], [1], layer=layer, decode=True)[1])
    for a, b in zip(*outputs):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("decode", [False, True])
def test_an_unknown_input_is_refused(layer, decode):
    h = Harness(layers=2, hsa_layer_ids=[1])
    s = h.new_sequence()
    h.step([s], [20], layer=layer)
    h.layer_inputs = {"hsa_selection_query": torch.zeros(1)}
    with pytest.raises(NotImplementedError, match=f"layer {layer} .*hsa_selection_"):
        h.step([s], [1], layer=layer, decode=decode)


@pytest.mark.parametrize("decode", [False, True])
def test_a_dense_layer_is_refused(decode):
    h = Harness(layers=2, hsa_layer_ids=[1])
    s = h.new_sequence()
    h.step([s], [20], layer=0)
    h.layer_inputs = {"hsa_mask_last_slot": True}
    with pytest.raises(NotImplementedError, match="layer 0 .*dense .*--hsa-layers"):
        h.step([s], [1], layer=0, decode=decode)


def test_the_oracle_masks_by_the_definition():
    opt = hsa_oracle.Options(page_size=4, window_size=3, sink_pages=1, mask_last=True)
    assert hsa_oracle.local_positions(11, opt) == [0, 1, 2, 8, 9, 10]
    assert hsa_oracle.local_positions(12, opt) == [0, 1, 2, 8, 9, 10, 12]
    assert hsa_oracle.page_positions(1, opt) == [4, 5, 6]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
