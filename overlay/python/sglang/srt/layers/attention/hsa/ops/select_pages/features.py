# SPDX-License-Identifier: Apache-2.0
"""Query features inside a Triton program: the factors that a query contributes to a page's score."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def query_features(q, scale, KIND: tl.constexpr):
    """Features of queries of any shape, float32 (see ``chunk_repr``): the factors of E's first and second half."""
    if KIND == "mean_var":
        first, second = scale * q, 0.5 * scale * scale * q * q
    elif KIND == "min_max":
        first, second = scale * tl.minimum(q, 0.0), scale * tl.maximum(q, 0.0)
    else:
        first, second = scale * q, 0.0 * q
    return first, second
