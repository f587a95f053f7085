# SPDX-License-Identifier: Apache-2.0
"""What these tests need that differs between the releases that have a [HiSparse] series."""

from array import array
from pathlib import Path

import pytest

import sglang

PACKAGE = Path(sglang.__file__).parent
KERNELS = {"v0.5.10rc0": "jit_kernel/csrc/hisparse.cuh", "v0.5.23": "kernels/jit/csrc/kvcacheio/hisparse.cuh"}
# The release that the tree is of; None where it has no series.
RELEASE = next((release for release, path in KERNELS.items() if (PACKAGE / path).exists()), None)
OLDEST = RELEASE == "v0.5.10rc0"
# From the repository's root, as the series and the lock name it.
KERNEL = f"python/sglang/{KERNELS[RELEASE]}" if RELEASE else None

# What the series of v0.5.10rc0 changes, and that of v0.5.23 leaves as upstream has it.
oldest = pytest.mark.skipif(not OLDEST, reason="of the patches of v0.5.10rc0 alone, see docs/hisparse.md")


def as_prefilled(req, length):
    """Let a request be one whose prompt of that length has just been computed."""
    if OLDEST:
        req.fill_ids = list(range(length))
        kv = req
    else:
        req.extend_end, kv = length, req.kv
    kv.kv_allocated_len = kv.kv_committed_len = length


def grow(req):
    """One more token of a request has a place."""
    kv = req if OLDEST else req.kv
    kv.kv_allocated_len += 1


def staged(coordinator):
    return coordinator.staging_reqs() if OLDEST else [act.req for act in coordinator.ack_staging_queue]


def prompt(length):
    return list(range(length)) if OLDEST else array("q", range(length))


def all_lengths(lengths, rows):
    """The arguments of ``map_last_loc_to_buffer`` that are on the CPU."""
    return (lengths,) if OLDEST else (lengths, rows)


def retracts_when_paused(world):
    """Whether a pause in mode retract has left nothing that a flush would clear under it."""
    idle = world.scheduler.is_fully_idle
    return not world.coordinator.has_ongoing_staging() if OLDEST else idle(ignore_waiting=True)


def decodes_past_the_end(world):
    """Steps that a request decodes in beyond its last: overlapping steps begin before results are seen."""
    return int(world.scheduler.enable_overlap and OLDEST)
