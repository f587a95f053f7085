# SPDX-License-Identifier: Apache-2.0
"""How window, sink pages and candidate pages partition a query's past.

For the query at position i (0-based), page size P, window W and S sink pages:

    start(i)    = max(0, floor((i - W + 1) / P) * P)       W = 0 counts as W = 1: the query's own page
                  0 for i < dense_below: the window is the whole past
    window      = positions start(i) .. i
    sinks       = pages 0 .. S-1 that lie wholly left of start(i)
    candidates  = pages S .. start(i)/P - 1

The window is extended down to a page boundary, so the three sets meet without overlap or hole and every
candidate page is complete.

``mask_last_slot`` is for models that were trained with a landmark at the end of every page: position j with
(j + 1) mod P = 0 is then no key, in the window, in sinks and in selected pages alike, and not for the query at j itself.
A landmark attends but is never attended. Its key still counts for the page's representation. As pages have two slots or
more, every query keeps a key: itself, or, where it sits in a last slot, the other tokens of its own page, which always
lie in its window.

In checkpoints of HiLS the landmark is a row and no token (see ``landmark_rows``): a page has one place more than slots.
Positions, P and W above count places then; the place of the token at position r of S slots per page is r + floor(r / S),
and the places of a page beside the last are its slots in the cache.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

IntOrTensor = TypeVar("IntOrTensor", int, torch.Tensor, np.ndarray)


def num_places(tokens: IntOrTensor, slots_per_page: int) -> IntOrTensor:
    """Places of a sequence of so many tokens whose complete pages have a landmark each; also the place of the next token."""
    return tokens + tokens // slots_per_page


def window_start_page(
    position: IntOrTensor, window_size: int, page_size: int, dense_below: int = 0
) -> IntOrTensor:
    """First page of the window of a query at ``position`` (an int, an integer tensor or array)."""
    page = (position - max(window_size, 1) + 1) // page_size
    page = page * (position >= dense_below)
    return max(page, 0) if isinstance(page, int) else page.clip(min=0)


def num_candidate_pages(
    position: IntOrTensor,
    window_size: int,
    page_size: int,
    sink_pages: int,
    dense_below: int = 0,
) -> IntOrTensor:
    """Number of candidate pages of a query at ``position``; they are pages sink_pages, sink_pages + 1, ..."""
    pages = window_start_page(position, window_size, page_size, dense_below)
    pages = pages - sink_pages
    return max(pages, 0) if isinstance(pages, int) else pages.clip(min=0)
