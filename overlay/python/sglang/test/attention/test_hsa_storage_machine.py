# SPDX-License-Identifier: Apache-2.0
"""Random histories of a serving system: no stale read, no missing candidate, no leak, no double free.

``python test_hsa_storage_machine.py --steps 1000000 --seed 1`` makes a longer run than the test does and ends in one
line of JSON.
"""

import argparse
import json
import logging
import time

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sglang.srt.layers.attention.hsa import config
from sglang.test.attention.hsa_storage_request import PAGE
from sglang.test.attention.hsa_storage_world import CONTEXT, World

STEPS = 40_000  # in the suite; by hand a million
STEPS_PER_HISTORY = 200
HISTORIES = 50  # between looks at the number of steps

index = st.integers(0, 5)
token = st.integers(0, 2)
chunk = st.integers(1, 3 * PAGE)
prompt = dict(
    i=index, cut=st.integers(0, 40), suffix=st.lists(token, min_size=1, max_size=10)
)
occupied = precondition(lambda self: bool(self.world.requests))
running = precondition(lambda self: any(not r.left for r in self.world.requests))
prefilling = precondition(lambda self: any(r.left for r in self.world.requests))


def rarely(turns):
    """Otherwise the rules that are always possible would crowd out those that compute something."""
    return precondition(lambda self: self.turn % turns == 0)


class StorageMachine(RuleBasedStateMachine):
    """One history; the world compares itself with its dictionary after every pass."""

    steps = 0  # of all histories

    def __init__(self):
        super().__init__()
        self.world = World()
        self.turn = 1
        self.known = [[0] * PAGE]  # sequences seen lately, to share prefixes with
        self.waiting = []  # prompts of retracted requests

    def pick(self, i, *, left=None):
        some = [r for r in self.world.requests if left is None or bool(r.left) == left]
        return some[i % len(some)]

    def remember(self, req):
        self.known = [req.origin_input_ids[:], *self.known[:5]]

    def finish_pass(self, req=None):
        """The scheduler after a forward pass."""
        if req is not None and req in self.world.requests:
            self.world.tree.keep(req, chunked=bool(req.left))
        self.world.poison()

    @invariant()
    def accounting(self):
        StorageMachine.steps += 1
        self.turn += 1
        self.world.check_accounting()

    def teardown(self):
        self.world.drain()

    # Requests

    @precondition(lambda self: bool(self.world.free_rows))
    @rule(**prompt)
    def admit(self, i, cut, suffix):
        """A prompt that shares a prefix, of any length, with an earlier sequence."""
        self.world.admit(self.known[i % len(self.known)][:cut] + suffix)

    @precondition(lambda self: bool(self.waiting))
    @rule()
    def resume(self):
        if self.world.admit(self.waiting[0]):
            self.waiting.pop(0)

    @prefilling
    @rule(i=index, size=chunk, mixed=st.booleans())
    def extend(self, i, size, mixed):
        """A chunk that ends anywhere."""
        req = self.pick(i, left=True)
        batch = self.world.extend(req, size, mixed)
        if batch is None:
            self.retract(i)
            return
        self.world.forward(batch)
        self.finish_pass(req)

    @running
    @rule(t=token, repeat=st.integers(1, PAGE))
    def decode(self, t, repeat):
        for _ in range(repeat):
            batch = self.world.decode(t)
            if batch is None:
                self.retract(0)
                return
            self.world.forward(batch)

    @occupied
    @rarely(2)
    @rule(i=index, insert=st.booleans())
    def end(self, i, insert):
        """Finish or cancel, in any phase."""
        req = self.pick(i)
        self.remember(req)
        self.world.release(req, insert)
        self.world.poison()

    @occupied
    @rarely(3)
    @rule(i=index)
    def retract(self, i):
        req = self.pick(i)
        self.waiting = [req.origin_input_ids, *self.waiting[:2]]
        self.world.release(req, insert=False)
        self.world.poison()

    @running
    @rule(i=index, t=token)
    def fork(self, i, t):
        req = self.pick(i, left=False)
        self.world.tree.keep(req)
        self.world.poison()
        self.world.admit([*req.origin_input_ids, t])

    @running
    @rule(
        i=index,
        accepted=st.lists(token, max_size=2 * PAGE),
        rejected=st.integers(1, 2 * PAGE),
    )
    def draft(self, i, accepted, rejected):
        self.world.draft(self.pick(i, left=False), len(accepted) + rejected, accepted)

    # A batch in flight while the scheduler goes on

    @occupied
    @rule(
        size=chunk,
        stash=st.booleans(),
        ended=st.lists(st.tuples(index, st.booleans()), max_size=2),
        **prompt,
    )
    def overlap(self, size, stash, ended, i, cut, suffix):
        """A built batch runs after requests in it have ended and their pages went to the next batch."""
        chunked = next((r for r in self.world.requests if r.left), None)
        if chunked is not None:
            late = self.world.extend(chunked, size, mixed=True)
        else:
            late = self.world.decode(0)
        if late is None:
            return
        if stash and chunked is not None:
            self.world.tree.keep(chunked, chunked=True)
        for j, insert in ended:
            in_flight = [r for r, _ in late.requests if r in self.world.requests]
            if in_flight:
                req = in_flight[j % len(in_flight)]
                self.remember(req)
                if req is chunked and not req.left:
                    self.world.release(req, insert=False)
                else:
                    self.world.release_in_flight(req, insert)
        new = self.world.admit(self.known[i % len(self.known)][:cut] + suffix)
        following = self.world.extend(new, size, mixed=False) if new else None
        self.world.forward(late)
        if following is not None:
            self.world.forward(following)
        self.finish_pass(chunked)
        self.finish_pass(new if following is not None else None)

    # Storage

    @rarely(3)
    @rule(tokens=st.integers(1, 40))
    def evict(self, tokens):
        self.world.tree.evict(tokens)
        self.world.poison()

    @running
    @rule(i=index)
    def offload(self, i):
        req = self.pick(i, left=False)
        if not self.world.offload(req):
            self.waiting = [req.origin_input_ids, *self.waiting[:2]]
            self.world.forget(req)

    @rarely(5)
    @rule(i=index)
    def back_up(self, i):
        self.world.back_up(self.known[i % len(self.known)])

    @precondition(lambda self: bool(self.world.host))
    @rarely(3)
    @rule(i=index, t=token)
    def load_back(self, i, t):
        """A request for a prefix that was evicted and is still in the host tier."""
        prefix = list(self.world.host)[i % len(self.world.host)]
        self.world.tree.evict(CONTEXT)
        self.world.poison()
        self.world.load_back(prefix)
        self.world.admit([*prefix, t])

    @rarely(31)
    @rule(new_weights=st.booleans())
    def flush(self, new_weights):
        self.world.flush(new_weights)


def run(steps, seed, **settings):
    """Run histories until ``steps`` steps were made; returns how many were."""
    StorageMachine.steps = 0
    settings = hypothesis.settings(
        max_examples=HISTORIES,
        stateful_step_count=STEPS_PER_HISTORY,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        **settings,
    )
    while StorageMachine.steps < steps:
        run_state_machine_as_test(
            hypothesis.seed(seed)(StorageMachine), settings=settings
        )
        seed += 1
    return StorageMachine.steps


@pytest.fixture(autouse=True)
def tiny_pages_on_a_cpu(monkeypatch):
    monkeypatch.setattr(config, "PAGE_SIZES", (PAGE,))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    logging.getLogger("sglang.srt.mem_cache").setLevel(logging.WARNING)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_random_histories():
    assert run(STEPS, seed=20260401) >= STEPS


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    config.PAGE_SIZES = (PAGE,)
    torch.cuda.synchronize = lambda: None
    torch.set_num_threads(1)
    begin = time.monotonic()
    steps = run(args.steps, args.seed)
    print(
        json.dumps(
            dict(
                steps=steps,
                seed=args.seed,
                seconds=round(time.monotonic() - begin),
                failures=0,
            )
        )
    )


if __name__ == "__main__":
    main()
