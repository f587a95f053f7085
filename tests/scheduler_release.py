# SPDX-License-Identifier: Apache-2.0
"""What the tests of the scheduler need that differs between SGLang releases, chosen by what is present."""

from array import array
from types import SimpleNamespace
from unittest import mock

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers import schedule_batch
from sglang.srt.mem_cache.cache_init_params import CacheInitParams

try:  # v0.5.17
    from sglang.srt.managers.scheduler_components.new_token_ratio_tracker import NewTokenRatioTracker
except ModuleNotFoundError:  # in v0.5.10rc0 the scheduler is one class with mixins
    NewTokenRatioTracker = None

try:
    from sglang.srt.mem_cache.chunk_cache import ChunkCache
except ModuleNotFoundError:  # in v0.5.23 it is a radix cache that keeps nothing
    ChunkCache = None

try:  # v0.5.17
    from sglang.srt.mem_cache.allocator.hisparse import HiSparseTokenToKVPoolAllocator
except ModuleNotFoundError:  # v0.5.10rc0
    from sglang.srt.mem_cache.hisparse_memory_pool import HiSparseTokenToKVPoolAllocator  # noqa: F401


def token_ids(ids):
    """Token ids as a request holds them."""
    return array("q", ids) if hasattr(schedule_batch, "array") else list(ids)


def publish(args):
    """Make these arguments those of this process, a scheduler of one rank."""
    try:
        from sglang.srt.runtime_context import SpawnRanks, publish
    except ImportError:  # v0.5.17
        from sglang.srt.server_args import set_global_server_args_for_scheduler

        set_global_server_args_for_scheduler(args)
    else:
        publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0))


def cache_of_nothing(**params):
    """The cache of a server without a radix cache."""
    if ChunkCache is not None:
        return ChunkCache(CacheInitParams(disable=True, **params))
    from sglang.srt.mem_cache.unified_cache.components import ComponentType
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    return UnifiedRadixCache(CacheInitParams(disable=True, tree_components=(ComponentType.FULL,), **params))


def row(req):
    """A request's row of the page table."""
    return req.req_pool_idx if hasattr(req, "req_pool_idx") else req.kv.req_pool_idx  # v0.5.23


def extend_lengths(batch):
    """Tokens of each request that a batch computes which is no decode step."""
    if hasattr(batch.reqs[0], "extend_end"):  # in v0.5.23 the requests know it only of their prompts
        return batch.extend_lens
    if hasattr(batch.reqs[0], "extend_range"):
        return [req.extend_range.length for req in batch.reqs]
    return [req.extend_input_len for req in batch.reqs]


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
        update_device_timer=nothing, record_scheduler_active=nothing, record_scheduler_idle=nothing,
    )  # fmt: skip
    values = dict(
        ps=SimpleNamespace(pp_size=1, tp_size=1, dp_size=1), draft_worker=None, model_worker=None,
        tp_worker=SimpleNamespace(model_runner=SimpleNamespace(prefill_aware_swa=False, attn_backend=None)),
        decode_offload_manager=None, metrics_collector=None, min_free_slots_delayer=None, lora_drainer=None,
        enable_fpm=False, enable_overlap_mlx=False, enable_unified_memory=False, abort_on_priority_when_disabled=False,
        return_health_check_ipcs=[], metrics_reporter=reports,
        new_token_ratio_tracker=NewTokenRatioTracker(init=0.1, min=0.05, decay=0.001, current=0.1),
        ipc_channels=SimpleNamespace(send_to_tokenizer=SimpleNamespace(send_output=send)),
        output_streamer=SimpleNamespace(stream_output=nothing),
        request_receiver=SimpleNamespace(recv_requests=receive),
        kv_events_publisher=SimpleNamespace(publish_kv_events=nothing),
        load_inquirer=SimpleNamespace(_get_num_pending_tokens=lambda chunk_deduct=0: 0, get_loads=nothing),
        dp_attn_adapter=SimpleNamespace(
            maybe_prepare_mlp_sync_batch=lambda batch, need_sync=None: batch, maybe_convert_decode_to_extend=lambda batch: batch
        ),
        ngram_embedding_manager=SimpleNamespace(prepare_for_forward=lambda batch, chunked_req=None: batch),
        publish_load_snapshot=nothing, on_idle=nothing, _record_step_counters=nothing, _apply_war_barrier=nothing,
    )  # fmt: skip
    if hasattr(scheduler, "init_beam_coordinator"):  # v0.5.23
        future_map = scheduler.spec_algorithm.create_future_map(
            scheduler.device, scheduler.req_to_token_pool, needs_cpu_seq_lens=True, needs_confidence_relay=False
        )
        values.update(
            future_map=future_map, enable_lmcache=False, external_corpus_manager=None, enable_session_radix_cache=False,
            processed_tokens_counter=0, ingest_requests=receive, mm_receiver=None, enable_unified_cache_external_linker=False, enable_pdmux=False, scheduler_stage_metrics=None, dynamic_chunk_sizer=None,
            _pause_started_at=None, _pause_intervals=[], rust_server=None,
            load_publisher=SimpleNamespace(publish_load_stat=nothing),
        )
    for name, value in values.items():
        setattr(scheduler, name, value)
    config = scheduler.model_config
    config._resolved_model_impl, config.think_end_ids, config.self_opened_think_start_ids = "sglang", None, None
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
    # v0.5.23
    manager.config_value, manager.enable_lora = {"weight_version": "1"}.get, False
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


def weight_worker(load):
    """A worker that calls ``load`` when it gets new weights."""
    runner = SimpleNamespace(
        weight_updater=SimpleNamespace(
            receive_weights_from_distributed=nothing, load_weights_from_distributed=load,
            update_weights_from_disk=lambda *_, **__: load(), update_weights_from_ipc=load,
            update_weights_from_tensor=lambda **_: load(), begin_weight_update=nothing,
        )
    )  # fmt: skip
    return SimpleNamespace(
        model_runner=runner, weight_update_runners=lambda: [("target", runner)], deserialize_own_rank=nothing,  # v0.5.23
        **{f"update_weights_from_{source}": load for source in ("disk", "distributed", "tensor", "ipc")},
    )  # fmt: skip


def asks_before_it_loads_weights():
    """Whether running requests keep new weights from being loaded. In v0.5.23 they keep the cache from being flushed."""
    try:
        from sglang.srt.managers.scheduler_components.weight_updater import _WeightUpdateSession  # noqa: F401
    except ImportError:
        return True
    return False


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
    group = parts.pop("tp_cpu_group")
    with mock.patch(f"{SchedulerWeightUpdaterManager.__module__}.get_parallel", create=True) as parallel:
        parallel.return_value.tp_group.cpu_group = group
        if asks_before_it_loads_weights():
            return SchedulerWeightUpdaterManager(tp_cpu_group=group, **parts)
        scheduler = SimpleNamespace(
            record_weight_version_change=nothing, disaggregation_mode=DisaggregationMode.NULL, _engine_paused=False
        )
        updater = SchedulerWeightUpdaterManager(scheduler=scheduler, **parts)
        updater.begin_weight_update(SimpleNamespace(selector="all"))
    return updater
