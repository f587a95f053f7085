# SPDX-License-Identifier: Apache-2.0
"""Device-side counters that prove which path ran, and their export.

The counts are taken on the device from what the ops produced, not from what the scheduler intended.
"""

from __future__ import annotations

from typing import Dict, Optional

import torch

COUNTERS = {
    "rows_dense": "Query rows of HSA layers with no page to select; they attend their whole past.",
    "rows_sparse": "Query rows of HSA layers that chose among candidate pages.",
    "pages_candidate": "Pages that sparse rows chose from, summed over rows and KV heads.",
    "pages_selected": "Pages that sparse rows attended, summed over rows and KV heads.",
    "reprs_written": "Page representations written when a page was completed.",
    "reprs_healed": "Page representations recomputed from the cache because none was valid.",
    "rows_landmark": "Of the query rows those of landmarks, in checkpoints that were trained for HSA.",
    "reprs_missing": "Complete pages that no landmark represented when they could be selected; 0 unless keys were damaged.",
}

INDEX = {name: i for i, name in enumerate(COUNTERS)}


class HSACounters:
    """Counters of one attention backend, summed over layers since start-up.

    Args:
        device: device that the counts are kept on.

    Attributes:
        values: the counts in the order of COUNTERS ``[len(COUNTERS)]`` int64; kernels add to them.
    """

    def __init__(self, device: torch.device | str):
        self.values = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)

    def add(self, name: str, amount: torch.Tensor | int) -> None:
        """Add a count, a device scalar or an int, without a host sync."""
        self.values[INDEX[name]] += amount

    def snapshot(self) -> Dict[str, int]:
        """Counts by name; waits for the device."""
        return dict(zip(COUNTERS, self.values.tolist()))


# The scheduler's process has one model and so one set of counters; its info and metrics hooks look here.
_live: Optional[HSACounters] = None
_page_repr_bytes = 0
_metrics: Dict[str, object] = {}
_published: Dict[str, int] = dict.fromkeys(COUNTERS, 0)


def register(counters: HSACounters, chunk_repr_bytes: int) -> None:
    """Make ``counters``, and the size of the page representations, the ones that this process exports."""
    global _live, _page_repr_bytes
    _live, _page_repr_bytes = counters, chunk_repr_bytes


def internal_state() -> Dict[str, object]:
    """Entries of ``/get_server_info``: none unless HSA serves in this process."""
    if _live is None:
        return {}
    return {
        "hsa_counters": _live.snapshot(),
        "hsa_chunk_repr_bytes": _page_repr_bytes,
    }


def publish(labels: Dict[str, str]) -> None:
    """Bring the Prometheus counters ``sglang:hsa_*_total`` up to date; nothing unless HSA serves here.

    Args:
        labels: label names and values of the scheduler's metrics.
    """
    if _live is None:
        return
    if not _metrics:
        # Must follow the setting of PROMETHEUS_MULTIPROC_DIR, as in upstream's collectors.
        from prometheus_client import Counter

        for name, text in COUNTERS.items():
            _metrics[name] = Counter(f"sglang:hsa_{name}_total", text, labels.keys())
    for name, value in _live.snapshot().items():
        _metrics[name].labels(**labels).inc(value - _published[name])
        _published[name] = value
