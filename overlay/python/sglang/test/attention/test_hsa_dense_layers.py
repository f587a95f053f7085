# SPDX-License-Identifier: Apache-2.0
"""Layers without HSA in decode: the decode kernels attend their whole past, beside the HSA layers of the same pass.

On a CUDA device, or under TRITON_INTERPRET=1.
"""

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.passes.decode import decoded_layers
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.test.attention import hsa_oracle
from sglang.test.attention.hsa_device import ATOL, DEVICE, needs_kernels
from sglang.test.attention.hsa_faults import leave_arrivals
from sglang.test.attention.hsa_harness import Harness

pytestmark = needs_kernels


class Layers(Harness):
    """Layer 0 is dense, layer 1 uses HSA; both get the same inputs. The dense backend is for prompts alone."""

    def __init__(self, **options):
        options = {"layers": 2, "hsa_layer_ids": [1], "num_pages": 80, **options}
        super().__init__(device=DEVICE, decode_kernels=True, **options)
        self.whole = hsa_oracle.Options(
            page_size=self.oracle.page_size, window_size=10**6, sink_pages=0, scale=self.oracle.scale,
            cap=self.oracle.cap,
        )  # fmt: skip

    def prefill(self, sequences, lengths):
        batch = self.batch(dict(enumerate(lengths)), sequences, False)
        self.backend.init_forward_metadata(batch)
        q, k, v = self.inputs(sequences, lengths)
        for layer in range(len(self.layers)):
            self.forward(batch, q, k, v, layer)

    def decode_batch(self, sequences, new=1):
        batch = self.batch(dict.fromkeys(range(len(sequences)), new), sequences, new == 1)  # fmt: skip
        if new > 1:
            batch.forward_mode = ForwardMode.TARGET_VERIFY
            batch.seq_lens = batch.seq_lens - new
            batch.seq_lens_cpu = batch.seq_lens_cpu - new
        return batch

    def check(self, sequences, new=1):
        """A pass through all layers, each against the oracle of its own attention."""
        counts = [new] * len(sequences)
        batch = self.decode_batch(sequences, new)
        self.backend.init_forward_metadata(batch)
        q, k, v = self.inputs(sequences, counts)
        sparse, rows = self.oracle, q.cpu()
        for number in range(len(self.layers)):
            o = self.forward(batch, q, k, v, number)
            self.oracle = sparse if self.pool.has_page_repr(number) else self.whole
            expected = self.expected(rows, sequences, counts)
            np.testing.assert_allclose(o.float().numpy(), expected, atol=ATOL)
        self.oracle = sparse


def without_dense_backend(h, monkeypatch):
    """Whatever asks the dense backend for anything fails."""
    monkeypatch.setattr(h.backend, "dense", None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(hsa_layer_ids=[0]),
        dict(layers=3, hsa_layer_ids=[1]),
        dict(logit_cap=5.0, sink_pages=3, page_size=32),
        dict(num_heads=6, num_kv_heads=1, head_dim=80, enable_swa_fusion=False),
        dict(weight_mode="score", selection_strategy="group"),
    ],
)
def test_every_layer_gets_its_own_attention(options, monkeypatch):
    h = Layers(**options)
    sequences = [h.new_sequence() for _ in range(3)]
    h.prefill(sequences, [300, 15, 79])
    without_dense_backend(h, monkeypatch)
    for _ in range(3):  # the second and the third pass complete a page
        h.check(sequences)
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    assert counts["reprs_healed"] == 0


def test_a_single_token_after_nothing(monkeypatch):
    h = Layers()
    without_dense_backend(h, monkeypatch)
    h.check([h.new_sequence()])


@pytest.mark.parametrize("chunk_repr", ["slow_keys", "mean_std"])
def test_a_launch_that_was_cut_off_harms_no_later_pass(chunk_repr):
    h = Layers(chunk_repr=chunk_repr)
    sequences = [h.new_sequence() for _ in range(2)]
    h.prefill(sequences, [300, 79])
    h.check(sequences)
    leave_arrivals(h, np.random.default_rng(0))
    h.check(sequences)


def test_draft_tokens_see_what_precedes_them(monkeypatch):
    h = Layers(num_draft_tokens=4)
    sequences = [h.new_sequence() for _ in range(2)]
    h.prefill(sequences, [140, 31])
    without_dense_backend(h, monkeypatch)
    h.check(sequences, new=4)


def test_an_8_bit_cache_is_read_with_its_scales(monkeypatch):
    options = dict(kv_cache_dtype=torch.float8_e4m3fn, kv_scales=(0.5, 2.0))
    h = Layers(**options)
    state = h.backend.decode
    assert h.backend.decode_needs_dense  # torch_native, which knows no scales
    state.layers, state.first_layer = frozenset({0, 1}), 0
    for step in state.steps:
        step.layers = state.layers
    sequences = [h.new_sequence()]
    without_dense_backend(h, monkeypatch)
    for _ in range(3):
        h.check(sequences)


def test_graph_runner_asks_the_dense_backend_for_nothing(monkeypatch):
    h = Layers()
    without_dense_backend(h, monkeypatch)
    h.backend.init_cuda_graph_state(4, 4)
    h.backend.init_forward_metadata_capture_cuda_graph()
    h.backend.init_forward_metadata_replay_cuda_graph()


def layers_of(h):
    return decoded_layers(dict(enumerate(h.layers)), h.backend.pool, h.backend.config)


def test_a_sliding_window_layer_goes_to_the_dense_backend():
    h = Layers()
    h.layers[0].sliding_window_size = 64
    assert layers_of(h) == {1}
    h.layers[0].sliding_window_size = -1
    assert layers_of(h) == {0, 1}


@pytest.mark.parametrize(
    "attribute,value",
    [("xai_temperature_len", 100), ("use_irope", True), ("tp_q_head_num", 8)],
)
def test_what_the_kernel_does_not_compute_goes_to_the_dense_backend(attribute, value):
    h = Layers()
    setattr(h.layers[0], attribute, value)
    assert layers_of(h) == {1}


def test_an_input_that_is_not_computed_is_refused():
    h = Layers()
    batch = h.decode_batch([h.new_sequence()])
    h.backend.init_forward_metadata(batch)
    inputs = h.inputs([h.new_sequence()], [1])
    h.layer_inputs = {"sinks": torch.zeros(4)}
    with pytest.raises(NotImplementedError, match="layer 0 passes sinks"):
        h.forward(batch, *inputs, 0)
