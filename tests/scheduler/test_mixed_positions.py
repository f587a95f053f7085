# SPDX-License-Identifier: Apache-2.0
"""The decode rows of a mixed chunk stand at their own positions, whether or not their last tokens have arrived."""

from scheduler_world import World, loops


@loops
def test_a_mixed_chunk_after_a_prefill_that_was_not_mixed(monkeypatch, overlap):
    """A prompt of embeddings runs alone. The tokens of the step before it have arrived when the next prompt is mixed in."""
    world = World(monkeypatch, hisparse=False, overlap=overlap, chunk=8, mixed=True)
    world.add(length=5, new=12)
    world.script = {
        3: lambda: world.add(length=4, new=5, input_embeds=[[0.0] * 8] * 4),
        4: lambda: world.add(length=6, new=3),
    }
    world.run(40)
    world.assert_answers()
    assert [(kind, rids) for kind, rids, _ in world.trace[3:5]] == [("extend", ("r2",)), ("extend", ("r3", "r1", "r2"))]
    assert [len(req.output_ids) for req in world.requests.values()] == [12, 5, 3]
    world.assert_nothing_leaked()
