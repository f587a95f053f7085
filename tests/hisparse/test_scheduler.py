# SPDX-License-Identifier: Apache-2.0
"""HiSparse in the real scheduler: from prefill to decode through staging, alone and under load."""

import pytest
from hisparse_release import decodes_past_the_end, retracts_when_paused
from scheduler_world import BUFFER, PAGE, World, loops, random_traffic


@pytest.fixture
def make(monkeypatch):
    return lambda **options: World(monkeypatch, **options)


def never(event):
    return False


def always(event):
    return True


@loops
def test_a_request_decodes_only_after_staging(make, overlap):
    world = make(overlap=overlap)
    world.engine.ready = lambda event: event.age > 3
    req = world.add(length=BUFFER + 5, new=4)
    world.run(30)
    assert world.trace[0] == ("extend", ("r1",), (BUFFER + 5,))
    # One decode step per remaining token; the overlap loop may launch one more before it sees the end.
    assert [kind for kind, *_ in world.trace[1:]] == ["decode"] * (3 + decodes_past_the_end(world))
    assert req.finished() and len(req.output_ids) == 4
    world.assert_nothing_leaked()


@loops
def test_the_last_batch_stays_out_while_staging_lasts(make, overlap):
    world = make(overlap=overlap)
    world.engine.ready = never
    req = world.add()
    world.run(6)
    assert req.hisparse_staging and world.scheduler.running_batch.is_empty()
    assert [kind for kind, *_ in world.trace] == ["extend"]
    world.engine.ready = always
    world.run(10)
    assert req.finished() and not req.hisparse_staging
    world.assert_nothing_leaked()


@loops
def test_staged_requests_join_a_running_batch(make, overlap):
    world = make(overlap=overlap)
    world.add(length=20, new=12)
    world.script = {4: lambda: world.add(length=5, new=6), 5: lambda: world.add(length=30, new=2)}
    world.run(40)
    assert not world.open_requests
    assert any(len(rids) == 3 for kind, rids, _ in world.trace if kind == "decode")
    world.assert_nothing_leaked()


@loops
def test_chunked_prefill_stages_once_at_its_end(make, overlap):
    world = make(overlap=overlap, chunk=8)
    req = world.add(length=30, new=3)
    world.run(30)
    assert [lengths for kind, _, lengths in world.trace if kind == "extend"] == [(8,), (16,), (24,), (30,)]
    assert req.finished()
    world.assert_nothing_leaked()


@loops
def test_one_slot_serves_a_chunked_request(make, overlap):
    """It holds the only slot, and must not wait for another."""
    world = make(overlap=overlap, chunk=8, slots=1)
    world.add(length=30, new=3), world.add(length=30, new=3)
    world.run(60)
    assert not world.open_requests
    world.assert_nothing_leaked()


@loops
@pytest.mark.parametrize("moment", range(12))
def test_abort_at_any_moment(make, overlap, moment):
    """Waiting, in prefill, in staging (steps 2 to 6), decoding, or over."""
    world = make(overlap=overlap)
    world.engine.ready = lambda event: event.age > 5
    req, other = world.add(length=13, new=40), world.add(length=6, new=2)
    world.script = {moment: lambda: world.abort(req.rid)}
    world.run(40)
    assert not world.open_requests
    assert len(req.output_ids) < 40 and len(other.output_ids) >= 2
    world.assert_nothing_leaked()


@loops
def test_abort_all_reaches_staging(make, overlap):
    world = make(overlap=overlap)
    world.engine.ready = lambda event: event.age > 4
    for length in (3, 9, 40):
        world.add(length=length, new=50)
    world.script = {4: lambda: world.abort(abort_all=True)}
    world.run(20)
    assert not world.open_requests and all(len(r.output_ids) <= 3 for r in world.requests.values())
    world.assert_nothing_leaked()


@loops
def test_a_request_that_ends_with_its_prefill_is_never_staged(make, overlap):
    world = make(overlap=overlap)
    world.engine.ready = never
    req = world.add(new=1)
    world.run(6)
    assert req.finished() and not req.hisparse_staging
    world.assert_nothing_leaked()


@loops
def test_the_queue_goes_on_when_all_end_with_their_prefill(make, overlap):
    """More of them than slots: nobody enters the running batch, which alone used to reopen the queue."""
    world = make(overlap=overlap, slots=2)
    for _ in range(9):
        world.add(new=1)
    world.run(40)
    assert not world.open_requests
    world.assert_nothing_leaked()


@loops
def test_prefill_never_takes_more_slots_than_there_are(make, overlap):
    """Staged requests hold slots; copies that take long used to let prefill run out of them."""
    world = make(overlap=overlap, slots=4)
    world.engine.ready = lambda event: event.age > 6
    for step in range(0, 12):
        world.script[step] = lambda: world.add(length=9, new=5)
    world.run(100)
    assert not world.open_requests and len(world.requests) == 12
    world.assert_nothing_leaked()


@loops
def test_retraction_returns_memory_and_the_request_comes_back(make, overlap):
    """Two requests grow until one page is short. The younger is retracted, prefilled again and staged again."""
    world = make(overlap=overlap, tokens=30 * PAGE)
    world.add(length=6, new=60)
    world.script = {5: lambda: world.add(length=6, new=60)}
    retracted = []
    release = world.coordinator.retract_req
    world.coordinator.retract_req = lambda req: (retracted.append(req.rid), release(req))
    # The device's buffers are bounded; what growing exhausts is the logical memory. Leave 25 pages of its 60.
    world.allocator.logical_attn_allocator.free_pages = world.allocator.logical_attn_allocator.free_pages[:25]
    world.run(400)
    assert retracted and not world.open_requests
    assert [len(r.output_ids) for r in world.requests.values()] == [60, 60]
    assert sum(kind == "extend" for kind, *_ in world.trace) == 2 + len(retracted)
    world.allocator.logical_attn_allocator.clear()
    world.assert_nothing_leaked()


@loops
def test_the_last_request_is_released_when_it_alone_is_too_large(make, overlap):
    world = make(overlap=overlap)
    req = world.add(length=6, new=100)

    def shrink():
        world.allocator.logical_attn_allocator.free_pages = world.allocator.logical_attn_allocator.free_pages[:2]

    world.script = {5: shrink}
    world.run(60)
    assert not world.open_requests and len(req.output_ids) < 100
    world.allocator.logical_attn_allocator.clear()
    world.assert_nothing_leaked()


@loops
def test_not_idle_while_staging(make, overlap):
    """A flush would clear the pools under staged requests."""
    world = make(overlap=overlap)
    assert world.scheduler.is_fully_idle()
    world.engine.ready = never
    world.add()
    world.run(8)
    assert not world.scheduler.is_fully_idle()
    world.engine.ready = always
    world.run(12)
    assert world.scheduler.is_fully_idle()


@loops
@pytest.mark.parametrize("mode", ("in_place", "retract"))
@pytest.mark.parametrize("moment", range(1, 9))
def test_pause_and_continue(make, overlap, mode, moment):
    world = make(overlap=overlap, chunk=16)
    world.engine.ready = lambda event: event.age > 2
    reqs = [world.add(length=5, new=5), world.add(length=40, new=5)]
    world.script = {moment: lambda: (world.pause(mode), world.go_on())}
    world.run(60)
    world.assert_answers()
    assert all(len(r.output_ids) == 5 for r in reqs)
    world.assert_nothing_leaked()


@loops
@pytest.mark.parametrize("moment", range(1, 10))
def test_a_pause_that_retracts_leaves_no_kv_of_old_weights(make, overlap, moment):
    """At most moments one request decodes, one has just been prefilled, and others have been staged for some steps."""
    world = make(overlap=overlap)
    world.engine.ready = lambda event: event.age > 3
    for step in range(0, 8, 2):
        world.script[step] = lambda n=step: world.add(length=5 + 6 * n, new=8)

    def renew_weights():
        world.pause("retract")
        assert retracts_when_paused(world)
        world.weights += 1
        world.go_on()

    world.script[moment] = lambda add=world.script.get(moment): (add and add(), renew_weights())
    world.run(80)
    world.assert_answers()
    assert [len(r.output_ids) for r in world.requests.values()] == [8] * 4
    world.assert_nothing_leaked()


@loops
@pytest.mark.parametrize("seed", range(6))
def test_random_traffic_with_pauses(make, overlap, seed):
    world = make(overlap=overlap, chunk=16)
    random_traffic(world, seed, pauses=0.1)
    world.run(400)
    world.engine.ready, world.script = always, {}
    world.go_on()
    world.run(1000)
    assert len(world.requests) >= 60
    world.assert_answers()
    world.assert_nothing_leaked()


@loops
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", (dict(), dict(slots=3), dict(chunk=16), dict(tokens=40 * PAGE)), ids=str)
def test_random_traffic(make, overlap, seed, options):
    """60 requests, aborts at any moment, copies of any duration: all end, nobody reads a stranger's KV, nothing leaks."""
    world = make(overlap=overlap, **options)
    random_traffic(world, seed)
    world.run(400)
    world.engine.ready = always
    world.run(1000)
    assert len(world.requests) >= 60 and not world.open_requests
    world.assert_nothing_leaked()
