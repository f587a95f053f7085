# SPDX-License-Identifier: Apache-2.0
"""A log line when HSA has selected nothing for a while, so that nobody tunes a budget that does nothing."""

from __future__ import annotations

import logging
from typing import Optional

import torch

from sglang.srt.layers.attention.hsa.counters import INDEX, HSACounters

logger = logging.getLogger(__name__)

EVERY = 2000  # passes between two looks at the counters
AHEAD = 16  # passes that the copy for a look is started before it


class SelectionWatch:
    """Looks at a backend's counters from time to time, without a wait: at a copy that was started some passes before.

    Args:
        counters: of the backend.
        shortest: tokens of the shortest context with a page to select.
    """

    def __init__(self, counters: HSACounters, shortest: int):
        self.counters, self.shortest = counters, shortest
        values = counters.values
        self.copy = torch.empty(
            values.shape, dtype=values.dtype, pin_memory=values.is_cuda
        )
        self.passes = 0
        self.rows_sparse: Optional[int] = None
        self.told = False

    def tick(self) -> None:
        """Count a pass; every so often log once, until a row was sparse again, that none was."""
        self.passes += 1
        place = self.passes % EVERY
        if place == max(EVERY - AHEAD, 1):
            self.copy.copy_(self.counters.values, non_blocking=True)
        elif place == 0:
            self._look(int(self.copy[INDEX["rows_sparse"]]))

    def _look(self, rows_sparse: int) -> None:
        nothing = rows_sparse == self.rows_sparse
        if nothing and not self.told:
            logger.warning(
                f"HSA selected no page in the last {EVERY} passes, so attention was dense and --hsa-topk did nothing: "
                f"no context reached {self.shortest} tokens, or all were prompts below --hsa-prefill."
            )
        self.told, self.rows_sparse = nothing, rows_sparse
