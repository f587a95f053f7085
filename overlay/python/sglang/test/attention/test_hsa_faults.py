# SPDX-License-Identifier: Apache-2.0
"""Every injected fault is healed, or stops the server in strict mode, or touches nothing that is ever read."""

import numpy as np
import pytest

from sglang.test.attention import hsa_faults as faults
from sglang.test.attention.hsa_harness import Harness

TRIALS = 60


def damaged(fault, seed, **kwargs):
    """A harness with two sequences, one of them damaged."""
    rng = np.random.default_rng(seed)
    h = Harness(num_pages=40, seed=seed, **kwargs)
    sequences = [h.new_sequence() for _ in range(2)]
    h.step(sequences, [int(rng.integers(100, 200)), int(rng.integers(1, 100))])
    fault(h, sequences[0], rng)
    return h, sequences


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("fault", [faults.flip_stamp, faults.lower_page_version])
def test_damaged_versions_are_healed(fault, strict):
    for seed in range(TRIALS):
        h, sequences = damaged(fault, seed, strict=strict)
        q, o = h.step(sequences, [1, 1], decode=True)
        np.testing.assert_allclose(
            o.numpy(), h.expected(q, sequences, [1, 1]), atol=3e-5
        )
        assert h.backend.counters.snapshot()["reprs_healed"] == 1, seed


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(
    "fault,message",
    [
        (faults.raise_page_version, "a version that was never given out"),
        (
            faults.flip_representation,
            "layer 0 has a representation that differs from its page's keys",
        ),
        (
            faults.flip_page_table_entry,
            "the page table|the slots of a page are not consecutive",
        ),
    ],
)
def test_what_cannot_be_healed_stops_a_strict_server(fault, message, decode):
    for seed in range(TRIALS):
        h, sequences = damaged(fault, seed, strict=True)
        with pytest.raises(RuntimeError, match=f"HSA: .*({message})"):
            h.step(sequences, [1, 1] if decode else [20, 3], decode=decode)


def test_damage_after_the_metadata_was_built_stops_a_strict_server():
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        h, sequences = damaged(lambda *_: None, seed, strict=True, layers=1)
        build = h.backend.init_forward_metadata

        def build_and_damage(batch):
            build(batch)
            table = h.backend.forward_pass.metadata.real_page_table
            last = (sequences[0].length - 1) // h.config.page_size
            column = int(rng.integers(last + 1))
            table[0, column] = (int(table[0, column]) + int(rng.integers(1, 41))) % 41

        h.backend.init_forward_metadata = build_and_damage
        with pytest.raises(RuntimeError, match="HSA: the "):
            h.step(sequences, [1, 1], decode=True)


def test_bytes_of_free_pages_are_never_read():
    """Recycled pages, whatever they hold and claim."""
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        h = Harness(num_pages=40, seed=seed, strict=True)
        gone, s = h.new_sequence(), h.new_sequence()
        h.step([gone, s], [180, 100])
        h.free(gone)
        for new, decode in ((30, False), (1, True), (1, True), (90, False)):
            faults.scribble_free_pages(h, rng)
            q, o = h.step([s], [new], decode=decode)
            np.testing.assert_allclose(o.numpy(), h.expected(q, [s], [new]), atol=3e-5)


def test_without_damage_a_strict_server_goes_on():
    for seed in range(10):
        h, sequences = damaged(lambda *_: None, seed, strict=True)
        h.step(sequences, [20, 3])
        h.step(sequences, [1, 1], decode=True)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
