# SPDX-License-Identifier: Apache-2.0
"""Memory is released by an idle scheduler and resumed once; any other call is refused and changes nothing."""

import asyncio
from types import SimpleNamespace

import pytest
from scheduler_release import asks_before_it_loads_weights, control_mixin, make_weight_updater, weight_worker

from sglang.srt.constants import GPU_MEMORY_ALL_TYPES
from sglang.srt.managers import io_struct

KV = ["kv_cache"]


class World:
    """A scheduler without a model; ``calls`` has what its memory saver and its worker were told."""

    def __init__(self, idle=True):
        self.calls = []
        self.updater = make_weight_updater(
            is_fully_idle=lambda **_: idle,
            flush_cache=lambda **_: idle,
            memory_saver_adapter=SimpleNamespace(
                pause=lambda tag: self.calls.append(("pause", tag)),
                resume=lambda tag: self.calls.append(("resume", tag)),
            ),
            tp_worker=weight_worker(self.load),
        )

    def load(self, _=None):
        self.calls.append("load")
        return True, "loaded"

    @property
    def offload_tags(self):
        return self.updater.offload_tags

    def release(self, tags):
        return self.updater.release_memory_occupation(io_struct.ReleaseMemoryOccupationReqInput(tags=tags)).message

    def resume(self, tags):
        return self.updater.resume_memory_occupation(io_struct.ResumeMemoryOccupationReqInput(tags=tags)).message

    def update(self, source, flush_cache):
        named = ("model_path", "names", "dtypes", "shapes", "group_name", "load_format", "weight_version")
        options = dict(flush_cache=flush_cache, torch_empty_cache=True, disable_draft_model=False, selector="all")
        options.update(recapture_cuda_graph=False, serialized_named_tensors=None, **dict.fromkeys(named))
        return getattr(self.updater, f"update_weights_from_{source}")(SimpleNamespace(**options))


@pytest.fixture(autouse=True)
def no_device(monkeypatch):
    monkeypatch.setattr("torch.get_device_module", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr("torch.distributed.barrier", lambda group: None)


sources = pytest.mark.parametrize("source", ("disk", "distributed", "tensor", "ipc"))


@sources
@pytest.mark.skipif(not asks_before_it_loads_weights(), reason="the release loads them first")
def test_new_weights_wait_for_running_requests(source):
    """Before anything is loaded, unless they may keep their KV."""
    world = World(idle=False)
    refused = world.update(source, flush_cache=True)
    assert not refused.success and "Requests are running" in refused.message and not world.calls
    assert world.update(source, flush_cache=False).success and World().update(source, flush_cache=True).success
    assert world.calls == ["load"]


@sources
@pytest.mark.skipif(asks_before_it_loads_weights(), reason="the release asks first")
def test_the_caller_hears_that_running_requests_keep_the_cache(source):
    """The weights are new, and what the old ones left in the cache is flushed later."""
    world = World(idle=False)
    answer = world.update(source, flush_cache=True)
    assert not answer.success and "the cache was not flushed" in answer.message and world.calls == ["load"]
    assert world.update(source, flush_cache=False).success and World().update(source, flush_cache=True).success


def test_released_and_resumed():
    world = World()
    assert world.release(KV) == "" and world.offload_tags == {"kv_cache"}
    assert world.resume(KV + KV) == "" and not world.offload_tags
    assert world.calls == [("pause", "kv_cache"), ("resume", "kv_cache")]


def test_running_requests_keep_their_memory():
    world = World(idle=False)
    assert "Requests are running" in world.release(KV)
    assert not world.offload_tags and not world.calls


@pytest.mark.parametrize("tags", [None, [], KV, ["disk"]])
def test_what_is_not_released_is_not_resumed(tags):
    world = World()
    assert "not released" in world.resume(tags)
    assert not world.calls


def test_released_memory_is_not_released_again():
    world = World()
    world.release(KV)
    for tags in (None, KV):
        assert "released already" in world.release(tags)
    assert world.offload_tags == set(KV) < set(GPU_MEMORY_ALL_TYPES)


def test_unknown_memory_is_named():
    assert "disk" in World().release(["disk", "kv_cache"])


def test_the_caller_gets_the_reason():
    async def communicate(obj):
        return [io_struct.ReleaseMemoryOccupationReqOutput(), io_struct.ReleaseMemoryOccupationReqOutput(message="no")]

    manager = SimpleNamespace(auto_create_handle_loop=lambda: None, release_memory_occupation_communicator=communicate)
    with pytest.raises(ValueError, match="^no$"):
        asyncio.run(control_mixin().release_memory_occupation(manager, None))
