# SPDX-License-Identifier: Apache-2.0
"""HSA over draft tokens against the oracle: verification, draft extend, the steps of a multi-step draft.

On a CUDA device, or under TRITON_INTERPRET=1.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.backend import HSAAttnBackend
from sglang.srt.layers.attention.hsa.draft_backend import HSAMultiStepDraftBackend
from sglang.srt.layers.attention.hsa.ops.page_repr.reference import page_repr_fwd
from sglang.srt.layers.attention.hsa.params import layer_params
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.test.attention.hsa_device import ATOL, DEVICE, needs_kernels
from sglang.test.attention.hsa_harness import Harness
from sglang.test.attention.hsa_release import (
    DRAFT_EXTEND,
    begin_as_in_a_graph,
    draft_backend_factory,
    ragged_draft_extends,
)

pytestmark = needs_kernels
STEPS = 3  # draft tokens after the last committed one
PAGE = 16


def begin_eagerly(backend, batch):
    backend.init_forward_metadata(batch)


class Drafts(Harness):
    """A harness that drafts, verifies and rejects as SGLang's workers do."""

    def __init__(self, extend_kernels=False, **options):
        super().__init__(
            device=DEVICE, decode_kernels=True, extend_kernels=extend_kernels, num_draft_tokens=STEPS + 1, num_pages=40,
            num_heads=2, num_kv_heads=1, **{"window_size": 20, "topk": 2, **options},
        )  # fmt: skip
        self.draft = HSAMultiStepDraftBackend(self.runner, 1, STEPS + 1)

    def allocate(self, sequences, new):
        """A batch whose ``new`` tokens have slots and are not committed; the sequences already count them."""
        batch = self.batch(dict(enumerate(new)), sequences, decode=False)
        batch.seq_lens = batch.seq_lens - torch.tensor(new, device=self.device)
        batch.seq_lens_cpu = batch.seq_lens_cpu - torch.tensor(new)
        return batch

    def reject(self, sequence, count):
        """Forget the last ``count`` tokens: pages without a committed token go back, poisoned."""
        if count == 0:
            return
        committed = sequence.length - count
        first = -(-committed // PAGE) * PAGE
        slots = self.req_to_token_pool.req_to_token[
            sequence.row, first : sequence.length
        ].long()
        if len(slots):
            for buffer in (*self.pool.k_buffer, *self.pool.v_buffer):
                pages = slots // PAGE
                for page in pages.unique().tolist():
                    buffer[page * PAGE : (page + 1) * PAGE] = float("nan")
            self.allocator.free(slots)
        del sequence.k[committed:], sequence.v[committed:]
        sequence.length = committed

    def check(self, o, q, sequences, counts):
        expected = self.expected(q.cpu(), sequences, counts)
        np.testing.assert_allclose(o.float().numpy(), expected, atol=ATOL)

    def verify(self, sequences):
        """Verify ``STEPS + 1`` tokens of each sequence."""
        counts = [STEPS + 1] * len(sequences)
        batch = self.allocate(sequences, counts)
        batch.forward_mode = ForwardMode.TARGET_VERIFY
        self.backend.init_forward_metadata(batch)
        q, k, v = self.inputs(sequences, counts)
        self.check(self.forward(batch, q, k, v), q, sequences, counts)

    def draft_extend(self, sequences, counts):
        """Extend by the accepted tokens as a CUDA graph does: ``STEPS + 1`` rows of each, packed to the front."""
        total, rows = sum(counts), (STEPS + 1) * len(sequences)
        batch = self.batch(dict(enumerate(counts)), sequences, decode=False)
        batch.forward_mode = DRAFT_EXTEND
        begin_as_in_a_graph(self.backend, batch)
        q, k, v = self.inputs(sequences, counts)
        pad = [x.new_zeros((rows - total, *x.shape[1:])) for x in (q, k, v)]
        batch.out_cache_loc = torch.cat(
            [batch.out_cache_loc, batch.out_cache_loc.new_zeros(rows - total)]
        )
        o = self.forward(batch, *map(torch.cat, zip((q, k, v), pad)))
        self.check(o[:total], q, sequences, counts)
        assert (o[total:] == 0).all()

    def draft_extend_eagerly(self, sequences, counts):
        """Extend by the accepted tokens without a graph; SGLang leaves the prefix lengths of the prefill there."""
        batch = self.batch(dict(enumerate(counts)), sequences, decode=False)
        batch.forward_mode = DRAFT_EXTEND
        batch.extend_prefix_lens_cpu = [0]
        self.backend.init_forward_metadata(batch)
        q, k, v = self.inputs(sequences, counts)
        self.check(self.forward(batch, q, k, v), q, sequences, counts)
        self.check_representations(sequences, [s.length for s in sequences])

    def draft_extend_all(self, sequences, accepted, begin):
        """Extend by ``STEPS + 1`` tokens of each, and forget those that were not accepted."""
        counts = [STEPS + 1] * len(sequences)
        committed = [s.length for s in sequences]
        batch = self.batch(dict(enumerate(counts)), sequences, decode=False)
        batch.forward_mode = ForwardMode.DRAFT_EXTEND_V2
        # Lengths on the host are not known when the next batch is built.
        batch.seq_lens_cpu = batch.seq_lens_sum = None
        begin(self.backend, batch)
        q, k, v = self.inputs(sequences, counts)
        self.check(self.forward(batch, q, k, v), q, sequences, counts)
        self.check_representations(sequences, committed)
        for s, kept in zip(sequences, accepted):
            self.reject(s, STEPS + 1 - kept)

    def draft_steps(self, sequences, begin=begin_eagerly):
        """``STEPS`` single tokens of each sequence, one after another, on the multi-step backend."""
        batch = self.allocate(sequences, [STEPS] * len(sequences))
        for s in sequences:
            s.length -= STEPS
        slots = batch.out_cache_loc.view(len(sequences), STEPS)
        batch.forward_mode = ForwardMode.DECODE
        begin(self.draft, batch)
        ones = [1] * len(sequences)
        for step, backend in enumerate(self.draft.attn_backends):
            batch.out_cache_loc = slots[:, step]
            for s in sequences:
                s.length += 1
            q, k, v = self.inputs(sequences, ones)
            o = self.forward(batch, q, k, v, backend=backend)
            self.check(o, q, sequences, ones)

    def check_representations(self, sequences, settled):
        """Pages complete by ``settled`` tokens have their representation, pages with room left have none."""
        for s, count in zip(sequences, settled):
            pages = self.pages_of(s)
            valid = self.pool.repr_valid(0, pages)
            assert valid[: count // PAGE].all()
            assert not valid[s.length // PAGE :].any()
            complete = pages[: count // PAGE]
            expected = page_repr_fwd(
                self.pool.get_key_buffer(0),
                complete,
                layer_params(self.layers[0], self.pool, self.config),
                self.pool.repr_channels_of(0),
            )
            torch.testing.assert_close(
                self.pool.repr_pages(0)[complete.long()], expected, atol=1e-5, rtol=1e-5
            )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        dict(chunk_repr="mean_std", selection_strategy="group"),
        dict(chunk_repr="slow_keys", selection_strategy="head", logit_cap=5.0),
        dict(selection_strategy="softmax_head"),
        dict(weight_mode="score", chunk_repr="mean", window_size=STEPS + 1),
    ],
    ids=["group", "head", "softmax_head", "score"],
)
def test_verification_equals_decode_whatever_is_rejected(options):
    """Accepted tokens alone complete pages, in any number per pass and over page boundaries."""
    h = Drafts(**options)
    sequences = [h.new_sequence() for _ in range(2)]
    h.step(sequences, [106, 61])
    # The first sequence completes a page to the token; the second one with three tokens beyond, after a rejection.
    for accepted in ((4, 2), (2, 4), (1, 1), (3, 3)):
        committed = [s.length for s in sequences]
        h.verify(sequences)
        h.check_representations(sequences, committed)
        for s, kept in zip(sequences, accepted):
            h.reject(s, STEPS + 1 - kept)
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    assert counts["reprs_healed"] == 0
    assert counts["reprs_written"] == sum(c // PAGE for c in committed)


def test_verification_then_decode():
    """A request may go on without drafts: the page that verification left complete is represented by the decode."""
    h = Drafts()
    s = h.new_sequence()
    h.step([s], [5 * PAGE - 2])
    h.verify([s])  # crosses the boundary
    h.reject(s, 2)
    assert s.length == 5 * PAGE
    q, o = h.step([s], [1], decode=True)
    h.check(o, q, [s], [1])
    h.check_representations([s], [s.length - 1])


@ragged_draft_extends
@pytest.mark.parametrize(
    "options", [{}, dict(weight_mode="score")], ids=["mass", "score"]
)
def test_draft_rounds(options):
    """Draft steps, then the accepted tokens again as one ragged extend, over page boundaries."""
    h = Drafts(**options)
    sequences = [h.new_sequence() for _ in range(2)]
    h.step(sequences, [106, 61])
    for accepted in ((4, 1), (1, 3), (2, 4)):
        committed = [s.length for s in sequences]
        h.draft_steps(sequences)
        h.check_representations(sequences, committed)
        for s in sequences:
            h.reject(s, STEPS)
        h.draft_extend(sequences, accepted)


@pytest.mark.parametrize(
    "begin", [begin_eagerly, begin_as_in_a_graph], ids=["eager", "graph"]
)
@pytest.mark.parametrize(
    "options", [{}, dict(weight_mode="score")], ids=["mass", "score"]
)
def test_draft_rounds_that_overlap(options, begin):
    """Draft steps, then all draft tokens as one extend, rejected ones among them: pages are complete by accepted ones alone."""
    h = Drafts(**options)
    sequences = [h.new_sequence() for _ in range(2)]
    h.step(sequences, [106, 61])
    # As above: the second sequence rejects tokens beyond a page that the pass completed.
    for accepted in ((4, 2), (2, 4), (1, 1), (3, 3)):
        committed = [s.length for s in sequences]
        h.draft_steps(sequences, begin)
        h.check_representations(sequences, committed)
        for s in sequences:
            h.reject(s, STEPS)
        h.draft_extend_all(sequences, accepted, begin)
    assert h.backend.counters.snapshot()["reprs_healed"] == 0


@ragged_draft_extends
@pytest.mark.parametrize("lengths", [[76, 61], [5, 9]], ids=["sparse", "dense"])
def test_draft_extend_without_a_graph(lengths):
    h = Drafts(extend_kernels=True)
    sequences = [h.new_sequence() for _ in range(2)]
    h.prepare(sequences, lengths)
    for counts in ([4, 1], [1, 3]):
        h.draft_steps(sequences)
        for s in sequences:
            h.reject(s, STEPS)
        h.draft_extend_eagerly(sequences, counts)


def test_padding_rows_of_a_graph_are_harmless():
    """A graph's padding has one key, request 0, and the full number of rows."""
    h = Drafts()
    s = h.new_sequence()
    h.step([s], [100])
    batch = h.allocate([s], [STEPS + 1])
    batch.forward_mode, rows = ForwardMode.TARGET_VERIFY, 3 * (STEPS + 1)
    ones = torch.ones(2, dtype=batch.seq_lens.dtype, device=DEVICE)
    batch.seq_lens = torch.cat([batch.seq_lens, ones])
    batch.req_pool_indices = torch.cat(
        [batch.req_pool_indices, torch.zeros_like(batch.req_pool_indices).repeat(2)]
    )
    slots = batch.out_cache_loc
    batch.out_cache_loc = torch.cat([slots, slots.new_zeros(rows - len(slots))])
    before = h.backend.counters.snapshot()["reprs_written"]
    h.backend.init_forward_metadata(batch)
    q, k, v = h.inputs([s], [STEPS + 1])
    padded = [
        torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))]) for x in (q, k, v)
    ]
    o = h.forward(batch, *padded)
    h.check(o[: STEPS + 1], q, [s], [STEPS + 1])
    assert h.backend.counters.snapshot()["reprs_written"] == before


def test_draft_workers_find_both_backends():
    h = Drafts()
    h.runner.model_config = SimpleNamespace(hf_config=None, hf_text_config=None)
    with draft_backend_factory(h.runner, topk=1, steps=4) as factory:
        assert len(factory.create_decode_backend().attn_backends) == 3
        assert isinstance(factory.create_draft_extend_backend(), HSAAttnBackend)


def test_branching_drafts_are_refused():
    h = Drafts()
    with pytest.raises(ValueError, match="--speculative-eagle-topk 1, not 4"):
        HSAMultiStepDraftBackend(h.runner, 4, 3)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
