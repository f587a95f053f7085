# SPDX-License-Identifier: Apache-2.0
"""What a client hears of a request that is aborted in the waiting queue, where a retracted one has a part of its answer."""

import asyncio
from types import SimpleNamespace

import pytest
from scheduler_release import bare_manager

from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.tokenizer_manager import ReqState
from sglang.srt.observability.req_time_stats import APIServerReqTimeStats


def abort(stream, incremental, generated, heard):
    """(the last event, the manager) of a request with ``generated`` tokens, of which the client has heard so many."""
    manager = bare_manager(incremental_streaming_output=incremental)
    state = ReqState([], False, asyncio.Event(), SimpleNamespace(stream=stream), APIServerReqTimeStats())
    state.text, state.output_ids, state.last_output_offset = "said", list(generated), heard if incremental and stream else 0
    manager.rid_to_state = {"a": state}
    manager._handle_abort_req(AbortReq(rid="a"))
    [event] = state.out_list
    assert state.finished and event["meta_info"]["finish_reason"]["type"] == "abort"
    assert event["meta_info"]["completion_tokens"] == len(generated)
    return event, manager


@pytest.mark.parametrize("generated", ([], [5, 8, 13]), ids=("nothing", "a part"))
@pytest.mark.parametrize("stream,incremental", [(False, False), (False, True), (True, False)])
def test_the_last_event_holds_all_tokens(stream, incremental, generated):
    assert abort(stream, incremental, generated, len(generated))[0]["output_ids"] == generated


def test_the_last_increment_repeats_none():
    assert abort(True, True, [5, 8, 13], heard=3)[0]["output_ids"] == []
    assert abort(True, True, [5, 8, 13], heard=2)[0]["output_ids"] == [13]


@pytest.mark.skipif(not hasattr(ReqState, "append_text"), reason="every event of the release holds all of the text")
def test_the_last_increment_repeats_no_text():
    assert abort(True, True, [5, 8, 13], heard=3)[0]["text"] == ""
    assert abort(True, False, [5, 8, 13], heard=3)[0]["text"] == "said"


def test_the_request_is_forgotten():
    """Its id is free, nobody waits for it when the server drains, and word of its end may come again."""
    _, manager = abort(False, False, [], 0)
    assert not manager.rid_to_state
    manager._handle_abort_req(AbortReq(rid="a"))
