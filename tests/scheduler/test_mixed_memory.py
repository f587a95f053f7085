# SPDX-License-Identifier: Apache-2.0
"""Mixed chunks in a pool that is too small for all: requests wait or are retracted, and the server goes on."""

import pytest
from scheduler_world import PAGE, World, loops, random_traffic


@loops
@pytest.mark.parametrize("running,prompt,pages,chunk", [(2, 80, 30, 8), (4, 120, 44, 16)], ids=("decode", "chunk"))
def test_answers_that_grow_beside_a_chunked_prompt(monkeypatch, overlap, running, prompt, pages, chunk):
    """All together do not fit: without room the first ends the decode step of a mixed chunk, the second a later chunk."""
    world = World(monkeypatch, hisparse=False, overlap=overlap, chunk=chunk, mixed=True, tokens=pages * PAGE)
    for _ in range(running):
        world.add(length=4, new=20)
    world.script = {3: lambda: world.add(length=prompt, new=3)}
    world.run(300)
    world.assert_answers()
    assert any(kind == "extend" and len(rids) == running + 1 for kind, rids, _ in world.trace), "no chunk was mixed"
    assert [len(req.output_ids) for req in world.requests.values()] == [20] * running + [3]
    world.assert_nothing_leaked()


@loops
def test_random_traffic(monkeypatch, overlap):
    world = World(monkeypatch, hisparse=False, overlap=overlap, chunk=16, mixed=True, tokens=24 * PAGE)
    random_traffic(world, seed=3)
    world.run(900)
    world.assert_answers()
    assert len(world.requests) >= 60
    world.assert_nothing_leaked()
