# SPDX-License-Identifier: Apache-2.0
"""Memory is released by an idle scheduler and resumed once; any other call is refused and changes nothing."""

import asyncio
from types import SimpleNamespace

import pytest

from sglang.srt.constants import GPU_MEMORY_ALL_TYPES
from sglang.srt.managers import io_struct
from sglang.srt.managers.scheduler_update_weights_mixin import SchedulerUpdateWeightsMixin
from sglang.srt.managers.tokenizer_communicator_mixin import TokenizerCommunicatorMixin

KV = ["kv_cache"]


class World(SchedulerUpdateWeightsMixin):
    """A scheduler without a model; ``calls`` has what its memory saver was told."""

    def __init__(self, idle=True):
        self.idle, self.offload_tags, self.calls = idle, set(), []
        self.memory_saver_adapter = SimpleNamespace(
            pause=lambda tag: self.calls.append(("pause", tag)), resume=lambda tag: self.calls.append(("resume", tag))
        )

    def is_fully_idle(self):
        return self.idle

    def flush_cache(self):
        return self.idle

    def release(self, tags):
        return self.release_memory_occupation(io_struct.ReleaseMemoryOccupationReqInput(tags=tags)).message

    def resume(self, tags):
        return self.resume_memory_occupation(io_struct.ResumeMemoryOccupationReqInput(tags=tags)).message


@pytest.fixture(autouse=True)
def no_device(monkeypatch):
    monkeypatch.setattr("torch.get_device_module", lambda: SimpleNamespace(synchronize=lambda: None))


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
        asyncio.run(TokenizerCommunicatorMixin.release_memory_occupation(manager, None))
