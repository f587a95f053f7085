# SPDX-License-Identifier: Apache-2.0
"""Query features inside a Triton program: the factors that a query contributes to a page's score."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def query_features(q, scale, KIND: tl.constexpr):
    """Features of queries of any shape, float32, for a linear kind: the factors of E's first and second half."""
    first = scale * q
    second = 0.0 * q
    if KIND == "mean_std":
        second = scale * tl.abs(q)
    return first, second
