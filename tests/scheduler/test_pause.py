# SPDX-License-Identifier: Apache-2.0
"""A pause at any moment, with chunked and mixed prefills: every request gets its own tokens, and nothing leaks."""

import pytest
from scheduler_world import World, loops, random_traffic

from sglang.srt.managers.schedule_policy import PrefillAdder

modes = pytest.mark.parametrize("mode", ("in_place", "retract"))


@pytest.fixture
def make(monkeypatch):
    return lambda **options: World(monkeypatch, hisparse=False, **options)


@loops
@modes
@pytest.mark.parametrize("moment", range(2, 10))
def test_a_pause_between_mixed_chunks(make, overlap, mode, moment):
    """After a mixed chunk the running batch is one that never had a row."""
    world = make(overlap=overlap, chunk=8, mixed=True)
    world.add(length=5, new=12)
    world.script = {1: lambda: world.add(length=30, new=3), moment: lambda: (world.pause(mode), world.go_on())}
    world.run(80)
    world.assert_answers()
    assert [len(req.output_ids) for req in world.requests.values()] == [12, 3]
    world.assert_nothing_leaked()


@loops
@modes
def test_a_pause_after_the_running_batch_has_emptied(make, overlap, mode):
    """It keeps the rows of the requests that it had."""
    world = make(overlap=overlap)
    world.add(length=5, new=2)
    world.run(8)
    world.add(length=9, new=4)
    world.script = {world.steps + 1: lambda: (world.pause(mode), world.go_on())}
    world.run(20)
    world.assert_answers()
    world.assert_nothing_leaked()


@loops
def test_a_chunked_request_that_is_in_no_batch_is_retracted(make, overlap):
    """A pause in place keeps it out of the running batch; the next one finds no last batch."""
    world = make(overlap=overlap, chunk=8)
    req = world.add(length=30, new=3)
    world.script = {2: lambda: world.pause("in_place"), 3: lambda: world.pause("retract"), 4: world.go_on}
    world.run(30)
    world.assert_answers()
    assert req.retraction_count == 1 and len(req.output_ids) == 3
    world.assert_nothing_leaked()


@loops
@pytest.mark.parametrize("mixed", (False, True), ids=("", "mixed"))
@pytest.mark.parametrize("seed", range(2))
def test_random_pauses(make, overlap, mixed, seed):
    world = make(overlap=overlap, chunk=16, mixed=mixed)
    random_traffic(world, seed, pauses=0.1)
    world.run(400)
    world.go_on()
    world.run(300)
    world.assert_answers()
    assert len(world.requests) >= 60 and any(req.retraction_count for req in world.requests.values())
    world.assert_nothing_leaked()


@loops
def test_a_chunked_request_that_is_in_no_batch_is_aborted(make, overlap):
    world = make(overlap=overlap, chunk=8)
    req = world.add(length=30, new=3)
    world.script = {2: lambda: world.pause("in_place"), 3: lambda: world.abort(req.rid), 4: world.go_on}
    world.run(30)
    world.assert_answers()
    assert req.finished_reason.to_json()["type"] == "abort" and len(req.output_ids) <= 1
    world.assert_nothing_leaked()


@loops
@pytest.mark.parametrize("first", ("abort", "in_place"))
def test_a_chunked_request_that_is_aborted_is_not_prefilled_again(make, overlap, first):
    """The abort and a pause that retracts come between two steps of the loop, or while a pause holds it."""
    world = make(overlap=overlap, chunk=8)
    req = world.add(length=30, new=3)

    def stop():
        world.abort(req.rid)
        world.pause("retract")

    if first == "in_place":
        world.script = {2: lambda: world.pause("in_place"), 3: stop, 4: world.go_on}
    else:
        world.script = {2: stop, 3: world.go_on}
    world.run(40)
    world.assert_answers()
    assert len(req.output_ids) <= 1
    world.assert_nothing_leaked()


@loops
def test_a_chunked_request_that_is_parked_is_aborted(make, monkeypatch, overlap):
    """It waits a step for room, as for that of a sliding window's pool. An abort and a pause that retracts come meanwhile."""
    world = make(overlap=overlap, chunk=8)
    parked = []

    def add_or_park(adder, req, add=PrefillAdder.add_chunked_req):
        return req if parked else add(adder, req)

    monkeypatch.setattr(PrefillAdder, "add_chunked_req", add_or_park)
    world.add(length=5, new=20)
    world.script = {1: lambda: world.add(length=30, new=3), 3: lambda: parked.append(True)}
    world.script[5] = lambda: (parked.clear(), world.abort("r2"), world.pause("retract"), world.go_on())
    world.run(60)
    world.assert_answers()
    assert [len(req.output_ids) for req in world.requests.values()] in ([20, 0], [20, 1])
    world.assert_nothing_leaked()
