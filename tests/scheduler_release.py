# SPDX-License-Identifier: Apache-2.0
"""What the tests of the scheduler need that differs between SGLang releases, chosen by what is present."""

from array import array
from types import SimpleNamespace

from sglang.srt.managers import schedule_batch

try:  # v0.5.17
    from sglang.srt.managers.scheduler_components.new_token_ratio_tracker import NewTokenRatioTracker
except ModuleNotFoundError:  # in v0.5.10rc0 the scheduler is one class with mixins
    NewTokenRatioTracker = None

try:  # v0.5.17
    from sglang.srt.mem_cache.allocator.hisparse import HiSparseTokenToKVPoolAllocator
except ModuleNotFoundError:  # v0.5.10rc0
    from sglang.srt.mem_cache.hisparse_memory_pool import HiSparseTokenToKVPoolAllocator  # noqa: F401


def token_ids(ids):
    """Token ids as a request holds them."""
    return array("q", ids) if hasattr(schedule_batch, "array") else list(ids)


def extend_length(req):
    """Tokens of a request that the batch which was made last computes."""
    length = getattr(req, "extend_input_len", None)
    return req.extend_range.length if length is None else length


def consume_inputs(batch):
    """What a forward pass takes from a batch, before it is merged with others."""
    batch.prefill_input_ids_cpu = batch.mix_running_indices = None


def nothing(*_, **__):
    pass


def equip(scheduler, send, receive):
    """Give a scheduler without a model the parts that later releases made of its mixins. ``send`` takes what it answers."""
    if NewTokenRatioTracker is None:
        return
    reports = SimpleNamespace(
        num_retracted_reqs=0, num_generated_tokens=0, forward_ct_decode=0, last_gen_throughput=0.0,
        enable_metrics=False, current_scheduler_metrics_enabled=False,
        report_prefill_stats=nothing, report_decode_stats=nothing, log_batch_result_stats=nothing,
        update_device_timer=nothing,
    )  # fmt: skip
    values = dict(
        ps=SimpleNamespace(pp_size=1, tp_size=1, dp_size=1), draft_worker=None, model_worker=None,
        tp_worker=SimpleNamespace(model_runner=SimpleNamespace(prefill_aware_swa=False)),
        decode_offload_manager=None, metrics_collector=None, min_free_slots_delayer=None, lora_drainer=None,
        enable_fpm=False, enable_overlap_mlx=False, enable_unified_memory=False, abort_on_priority_when_disabled=False,
        return_health_check_ipcs=[], metrics_reporter=reports,
        new_token_ratio_tracker=NewTokenRatioTracker(init=0.1, min=0.05, decay=0.001, current=0.1),
        ipc_channels=SimpleNamespace(send_to_tokenizer=SimpleNamespace(send_output=send)),
        output_streamer=SimpleNamespace(stream_output=nothing),
        request_receiver=SimpleNamespace(recv_requests=receive),
        kv_events_publisher=SimpleNamespace(publish_kv_events=nothing),
        load_inquirer=SimpleNamespace(_get_num_pending_tokens=lambda chunk_deduct=0: 0),
        dp_attn_adapter=SimpleNamespace(maybe_prepare_mlp_sync_batch=lambda batch, need_sync=None: batch),
        ngram_embedding_manager=SimpleNamespace(prepare_for_forward=lambda batch, chunked_req=None: batch),
        publish_load_snapshot=nothing, on_idle=nothing, _record_step_counters=nothing, _apply_war_barrier=nothing,
    )  # fmt: skip
    for name, value in values.items():
        setattr(scheduler, name, value)
    scheduler.model_config._resolved_model_impl, scheduler.model_config.think_end_ids = "sglang", None
    scheduler.init_batch_result_processor()


def bare_manager(send=nothing, **server_args):
    """A TokenizerManager without processes; ``send`` takes what it sends to the scheduler, and returns an awaitable."""
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    async def send_later(sent):
        await send(sent)

    manager = object.__new__(TokenizerManager)
    manager.server_args = SimpleNamespace(weight_version="1", **server_args)
    manager.rid_to_state, manager.enable_metrics = {}, False
    manager.send_to_scheduler = SimpleNamespace(send_pyobj=send)
    # v0.5.17
    manager._dispatch_to_scheduler, manager._async_dispatch_to_scheduler = send, send_later
    manager._config_updates, manager.weight_version = [], "1"
    manager.child_rid_to_logical_rid, manager.logical_rid_to_child_rids = {}, {}
    manager.incremental_streaming_output = server_args.get("incremental_streaming_output", False)
    return manager


def control_mixin():
    """The part of the TokenizerManager that asks all schedulers for something."""
    try:  # v0.5.17
        from sglang.srt.managers.tokenizer_control_mixin import TokenizerControlMixin as mixin
    except ModuleNotFoundError:  # v0.5.10rc0
        from sglang.srt.managers.tokenizer_communicator_mixin import TokenizerCommunicatorMixin as mixin
    return mixin


def make_weight_updater(**parts):
    """The part of a scheduler that takes new weights, and releases and resumes memory."""
    parts = {**dict.fromkeys(("tp_worker", "draft_worker", "tp_cpu_group", "memory_saver_adapter")), **parts}
    try:  # v0.5.17
        from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager
    except ModuleNotFoundError:  # v0.5.10rc0
        from sglang.srt.managers.scheduler_update_weights_mixin import SchedulerUpdateWeightsMixin

        updater = SchedulerUpdateWeightsMixin()
        vars(updater).update(parts, offload_tags=set())
        return updater
    return SchedulerWeightUpdaterManager(**parts)
