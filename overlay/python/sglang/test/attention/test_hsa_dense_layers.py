# SPDX-License-Identifier: Apache-2.0
"""Layers without HSA in decode: the decode kernels attend their whole past, beside the HSA layers of the same pass.

On a CUDA device, or under TRITON_INTERPRET=1.
"""

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.hsa.passes.decode import decoded_layers
from sglang.test.attention.hsa_device import needs_kernels
from sglang.test.attention.hsa_faults import leave_arrivals
from sglang.test.attention.hsa_layers import Layers

pytestmark = needs_kernels


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
    h.layer_inputs = {"return_lse": True}
    with pytest.raises(NotImplementedError, match="layer 0 passes return_lse"):
        h.forward(batch, *inputs, 0)
