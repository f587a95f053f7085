# SPDX-License-Identifier: Apache-2.0
"""The methods of the scheduler that the patches change against the pinned release's, on the same traffic."""

import pytest
from hisparse_release import OLDEST, oldest
from pin import pin_function
from scheduler_world import PAGE, World, random_traffic

from sglang.srt.managers import scheduler as module

PIN = "python/sglang/srt/managers/scheduler.py"
PATCHED = ("get_next_batch_to_run", "get_num_allocatable_reqs", "abort_request")
if not OLDEST:
    PATCHED = ("abort_request", "collect_inflight_reqs", "pause_generation", "record_weight_version_change")


def trace_of(monkeypatch, seed, pinned, **options):
    cls = module.Scheduler
    if pinned:
        cls = type("Pinned", (cls,), {name: pin_function(PIN, name, vars(module)) for name in PATCHED})
    world = World(monkeypatch, scheduler_class=cls, **options)
    # The [Scheduler] series changes pauses, too: all of them in v0.5.10rc0, those of chunked requests in v0.5.23.
    random_traffic(world, seed, count=30, pauses=0 if OLDEST or "chunk" in options else 0.1)
    world.script[400] = world.go_on
    world.run(600)
    assert len(world.requests) >= 30 and not world.open_requests
    world.assert_nothing_leaked()
    return world.trace


@pytest.mark.parametrize("overlap", (False, True), ids=("normal", "overlap"))
@pytest.mark.parametrize("options", (dict(), dict(slots=3), dict(chunk=16), dict(tokens=60 * PAGE)), ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_without_hisparse_nothing_changes(monkeypatch, seed, options, overlap):
    """The same batches, in the same order, of the same lengths."""
    given = dict(hisparse=False, overlap=overlap, **options)
    now = trace_of(monkeypatch, seed, False, **given)
    assert now == trace_of(monkeypatch, seed, True, **given)
    assert {kind for kind, *_ in now} == {"extend", "decode"}


@oldest
@pytest.mark.parametrize("overlap", (False, True), ids=("normal", "overlap"))
@pytest.mark.parametrize("seed", range(3))
def test_with_hisparse_the_guard_itself_changes_nothing(monkeypatch, seed, overlap):
    """With room for everybody and no aborts in staging, the flattened condition makes the pin's batches."""

    def calm(pinned):
        cls = module.Scheduler
        if pinned:
            cls = type("Pinned", (cls,), {"get_next_batch_to_run": pin_function(PIN, "get_next_batch_to_run", vars(module))})
        world = World(monkeypatch, overlap=overlap, slots=40, tokens=4096, scheduler_class=cls)
        world.engine.ready = lambda event: event.age > seed
        for step in range(10):
            world.script[step] = lambda n=step: world.add(length=3 + 5 * n, new=2 + n % 4)
        world.run(60)
        assert not world.open_requests
        return world.trace

    assert calm(False) == calm(True)


def test_a_merge_with_hisparse_would_be_seen(monkeypatch):
    """The world does catch what the guard prevents."""

    class Unguarded(module.Scheduler):
        def get_next_batch_to_run(self, **batches):
            last = self.last_batch
            if last and last.forward_mode.is_extend() and not last.is_empty():
                if self.running_batch.is_empty():
                    self.running_batch = last
                else:
                    self.running_batch.merge_batch(last)
            if batches:  # v0.5.23
                batches["running_batch"] = self.running_batch
            return super().get_next_batch_to_run(**batches)

    world = World(monkeypatch, scheduler_class=Unguarded)
    world.engine.ready = lambda event: False
    world.add()
    with pytest.raises(AssertionError, match="r1"):
        world.run(20)
