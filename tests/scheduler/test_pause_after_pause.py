# SPDX-License-Identifier: Apache-2.0
"""A pause that aborts, after one that keeps requests in place: the requests end, and the server can go on."""

import asyncio
from types import SimpleNamespace

from scheduler_release import bare_manager

from sglang.srt.managers.io_struct import AbortReq, ContinueGenerationReqInput, PauseGenerationReqInput


class PausedScheduler:
    """Holds one request. Paused, it runs nothing; else the request ends if it is aborted."""

    paused, aborted, running = False, False, True

    def send(self, sent):
        if isinstance(sent, PauseGenerationReqInput):
            self.paused = True
        elif isinstance(sent, ContinueGenerationReqInput):
            self.paused = False
        elif isinstance(sent, AbortReq) and sent.abort_all:
            self.aborted = True
        self.running = self.running and not (self.aborted and not self.paused)
        sending = asyncio.get_running_loop().create_future()
        sending.set_result(None)
        return sending

    async def is_locked(self):
        return self.running


def test_a_pause_that_aborts_ends_requests_that_are_paused_in_place():
    async def run():
        scheduler = PausedScheduler()
        manager = bare_manager(scheduler.send)
        manager.is_pause, manager.is_pause_cond = False, asyncio.Condition()
        manager.model_update_lock = SimpleNamespace(is_locked=scheduler.is_locked)
        await manager.pause_generation(PauseGenerationReqInput(mode="in_place"))
        assert scheduler.paused and scheduler.running
        await asyncio.wait_for(manager.pause_generation(PauseGenerationReqInput(mode="abort")), timeout=3)
        assert not scheduler.running and manager.is_pause
        await asyncio.wait_for(manager.continue_generation(ContinueGenerationReqInput()), timeout=3)
        assert not manager.is_pause

    asyncio.run(run())
