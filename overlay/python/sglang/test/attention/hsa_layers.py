# SPDX-License-Identifier: Apache-2.0
"""A model's layers of several kinds on one backend: with HSA, dense, and with a sliding window; with learned sinks or without."""

from __future__ import annotations

import dataclasses

import numpy as np

from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.test.attention import hsa_oracle
from sglang.test.attention.hsa_device import ATOL, DEVICE
from sglang.test.attention.hsa_harness import Harness


class Layers(Harness):
    """Layer 0 is dense, layer 1 uses HSA; both get the same inputs. The dense backend is for prompts alone.

    Args:
        sinks: learned sinks of each layer ``[H_q]``.
        windows: tokens that a layer with a sliding window attends, by number.
        options: of Harness.
    """

    def __init__(self, *, sinks=(), windows=None, **options):
        options = {"layers": 2, "hsa_layer_ids": [1], "num_pages": 80, **options}
        super().__init__(device=DEVICE, decode_kernels=True, **options)
        self.sinks, self.windows = sinks, windows or {}

    def with_inputs_of(self, layer):
        """What this layer passes to its attention."""
        if self.sinks:
            self.layer_inputs = {"sinks": self.sinks[layer].to(self.device)}

    def prefill(self, sequences, lengths):
        batch = self.batch(dict(enumerate(lengths)), sequences, False)
        self.backend.init_forward_metadata(batch)
        q, k, v = self.inputs(sequences, lengths)
        for layer in range(len(self.layers)):
            self.with_inputs_of(layer)
            self.forward(batch, q, k, v, layer)

    def decode_batch(self, sequences, new=1):
        batch = self.batch(dict.fromkeys(range(len(sequences)), new), sequences, new == 1)  # fmt: skip
        if new > 1:
            batch.forward_mode = ForwardMode.TARGET_VERIFY
            batch.seq_lens = batch.seq_lens - new
            batch.seq_lens_cpu = batch.seq_lens_cpu - new
        return batch

    def check(self, sequences, new=1, counts=None):
        """A pass through all layers, each against the oracle of its own attention.

        With ``counts`` it is a prompt with so many new tokens of each sequence, else decode or, of more, verification.
        """
        if counts is None:
            counts = [new] * len(sequences)
            batch = self.decode_batch(sequences, new)
        else:
            batch = self.batch(dict(enumerate(counts)), sequences, False)
        self.backend.init_forward_metadata(batch)
        q, k, v = self.inputs(sequences, counts)
        for number in range(len(self.layers)):
            self.with_inputs_of(number)
            o = self.forward(batch, q, k, v, number).float().numpy()
            np.testing.assert_allclose(
                o, self.expected_of(number, q.cpu(), sequences, counts), atol=ATOL
            )

    def expected_of(self, layer, q, sequences, counts):
        """The oracle's outputs of one layer ``[T, H_q, D]``."""
        sinks = tuple(self.sinks[layer].tolist()) if self.sinks else ()
        options = dataclasses.replace(self.oracle, sinks=sinks)
        attend = hsa_oracle.attend
        if not self.pool.has_page_repr(layer):
            attend = hsa_oracle.dense
        rows, row = [], 0
        for s, count in zip(sequences, counts):
            k, v = np.stack(s.k), np.stack(s.v)
            for i in range(s.length - count, s.length):
                first = max(0, i + 1 - self.windows.get(layer, i + 1))
                query = q[row].double().numpy()
                rows.append(attend(query, k[first:], v[first:], i - first, options))
                row += 1
        return np.stack(rows)
