# SPDX-License-Identifier: Apache-2.0
"""Engines with every page selected, which must be dense attention, and the comparison of their answers."""

import numpy as np

EVERY_PAGE = dict(attention_backend="hsa", hsa_topk=10**6, hsa_layers="all", hsa_prefill="sparse", hsa_strict=True)
DENSE = dict(attention_backend="torch_native", page_size=64)


def assert_dense_answers(got, dense):
    """The same tokens, and log-probabilities within 1e-3, of a request with logprobs=True."""
    assert got["tokens"] == dense["tokens"]
    for mine, expected in zip(got["logprobs"], dense["logprobs"], strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-3)
