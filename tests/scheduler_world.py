# SPDX-License-Identifier: Apache-2.0
"""A scheduler without a model, with HiSparse or not: real ``Scheduler`` loops, batches, pools, allocators and coordinator.

Stand-ins are the model (a token tells of its request and position), the copy engine (events that the test lets finish) and
the host memory. Each KV entry holds a mark of (request, position), so a pass can check that what it would read is its own.
"""

import random
from types import SimpleNamespace

import pytest
import scheduler_release as release
import torch
from scheduler_hisparse import HostPages, TorchWithoutPinning
from scheduler_release import HiSparseTokenToKVPoolAllocator

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers import hisparse_coordinator as coordinator_module
from sglang.srt.managers.io_struct import AbortReq, PauseGenerationReqInput
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.test.attention.hsa_release import change

# Parameter of tests in both event loops.
loops = pytest.mark.parametrize("overlap", (False, True), ids=("normal", "overlap"))

PAGE, TOP_K, BUFFER, CONTEXT = 4, 4, 8, 256


class Done(Exception):
    """The script of a run is over."""


class DevicePool:
    """KV of the device: one int64 mark per slot, the same for every layer."""

    layer_num, page_size, kv_cache_dim = 2, PAGE, 1
    start_layer, end_layer, host_capacity_tokens = 0, layer_num, None

    def __init__(self, size):
        self.size = size
        self.kv = torch.full((size + PAGE,), -1, dtype=torch.int64)
        self.kv_buffer = [self.kv.view(-1, 1)] * self.layer_num

    def register_mapping(self, mapping):
        self.full_to_hisparse_device_index_mapping = mapping

    def _translate_loc_to_hisparse_device(self, indices):
        return self.full_to_hisparse_device_index_mapping[indices]

    # v0.5.23
    translate_loc_from_full_to_hisparse_device = _translate_loc_to_hisparse_device

    def translate_loc_from_full_to_compressed(self, indices):
        return indices

    def get_device_pool_infos(self):
        return [SimpleNamespace(buffer_info=self)]


class HostPool(HostPages):
    """KV of the host, with a free list that refuses to take a slot back twice."""

    token_stride_size, page_size = 8, PAGE

    def __init__(self, device_pool=None, host_size=4096, buffer_info=None, **_):
        device_pool = device_pool or buffer_info
        self.size = host_size or 4096
        self.kv = torch.full((self.size,), -1, dtype=torch.int64)
        self.kv_buffer = [self.kv] * device_pool.layer_num
        self.free_slots = list(range(self.size))

    def alloc(self, n):
        if n > len(self.free_slots):
            return None
        taken, self.free_slots = self.free_slots[:n], self.free_slots[n:]
        return torch.tensor(taken, dtype=torch.int64)

    def free(self, indices):
        back = indices.tolist()
        assert not set(back) & set(self.free_slots) and len(set(back)) == len(back), "host slot freed twice"
        self.free_slots += back

    def backup_from_device_all_layer(self, device_pool, host_indices, device_indices, io_backend):
        self.kv[host_indices] = device_pool.kv[device_indices]


class CopyEngine:
    """Stands in for torch.cuda: events are done when the world says so."""

    def __init__(self):
        self.ready = lambda event: True
        outer = self

        class Event:
            def record(self, stream=None):
                self.age = 0

            def wait(self, stream=None):
                pass

            def query(self):
                self.age += 1
                return outer.ready(self)

        class Stream:
            def synchronize(self):
                pass

            def wait_stream(self, other):
                pass

            def __enter__(self):
                return self

            def __exit__(self, *_):
                return False

        self.Event, self.Stream = Event, Stream
        self.stream = lambda stream: stream
        self.current_stream = Stream


def make_coordinator(monkeypatch, req_pool, allocator, engine=None):
    """The real coordinator, on the CPU."""
    engine = engine or CopyEngine()
    monkeypatch.setattr(coordinator_module, "device_module", engine)
    monkeypatch.setattr(coordinator_module, "torch", TorchWithoutPinning())
    monkeypatch.setattr(coordinator_module, "MLATokenToKVPoolHost", HostPool)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 1)
    return coordinator_module.HiSparseCoordinator(
        req_to_token_pool=req_pool,
        token_to_kv_pool_allocator=allocator,
        top_k=TOP_K,
        device_buffer_size=BUFFER,
        device="cpu",
        tp_group=None,
    )


def make_pools(slots=8, tokens=512, hisparse=True):
    """(request pool, allocator, device pool)"""
    device_pool = DevicePool(tokens)
    req_pool = ReqToTokenPool(slots, CONTEXT, "cpu", enable_memory_saver=False)
    common = dict(page_size=PAGE, dtype=torch.bfloat16, device="cpu", kvcache=device_pool, need_sort=False)
    if hisparse:
        allocator = HiSparseTokenToKVPoolAllocator(tokens, host_to_device_ratio=2, **common)
        allocator.get_kvcache = lambda: device_pool
    else:
        allocator = PagedTokenToKVPoolAllocator(tokens, **common)
    return req_pool, allocator, device_pool


class World:
    """One scheduler. ``script`` maps a step of the loop to a function that is called where requests are received."""

    def __init__(
        self,
        monkeypatch,
        hisparse=True,
        overlap=False,
        slots=8,
        tokens=512,
        chunk=-1,
        mixed=False,
        scheduler_class=Scheduler,
    ):
        args = ServerArgs(model_path="dummy", device="cpu", disable_radix_cache=True, page_size=PAGE)
        change(
            args,
            chunked_prefill_size=chunk,
            enable_hisparse=hisparse,
            page_size=PAGE,
            enable_mixed_chunk=mixed,
            attention_backend="torch_native",  # page tables are written by torch, not by Triton
            pp_max_micro_batch_size=slots,
        )
        release.publish(args)
        self.engine = CopyEngine()
        self.req_pool, self.allocator, self.device_pool = make_pools(slots, tokens, hisparse)
        self.coordinator = (
            make_coordinator(monkeypatch, self.req_pool, self.allocator, self.engine) if hisparse else None
        )
        self.sent, self.trace, self.script, self.steps = [], [], {}, 0  # script: step -> what the client does then
        self.requests, self.weights = {}, 0  # KV that other weights wrote has other marks
        self.scheduler = self._scheduler(scheduler_class, args, hisparse, overlap, slots)

    def _scheduler(self, scheduler_class, args, hisparse, overlap, slots):
        s = object.__new__(scheduler_class)
        cache = release.cache_of_nothing(
            req_to_token_pool=self.req_pool, token_to_kv_pool_allocator=self.allocator, page_size=PAGE
        )
        model_config = SimpleNamespace(
            vocab_size=100, is_encoder_decoder=False, is_matryoshka=False, hidden_size=8, is_multimodal=False
        )
        idle = SimpleNamespace(
            any_staging_reqs=lambda: False, has_waiting_grammars=lambda: False, abort_requests=lambda r: None
        )
        idle.grammar_queue = []
        values = dict(
            server_args=args, enable_hisparse=hisparse, hisparse_coordinator=self.coordinator, device="cpu",
            req_to_token_pool=self.req_pool, token_to_kv_pool_allocator=self.allocator, tree_cache=cache,
            model_config=model_config, enable_overlap=overlap, spec_algorithm=SpeculativeAlgorithm.NONE,
            page_size=PAGE, max_running_requests=slots, max_prefill_tokens=4096, max_prefill_bs=0, max_req_len=CONTEXT,
            new_token_ratio=0.1, init_new_token_ratio=0.1, min_new_token_ratio=0.05, new_token_ratio_decay=0.001,
            dllm_config=None, dllm_manager=idle, grammar_manager=idle, require_mlp_sync=False, pp_size=1, tp_size=1,
            enable_hierarchical_cache=False, enable_hicache_storage=False, enable_priority_preemption=False,
            enable_priority_scheduling=False, schedule_low_priority_values_first=False, enable_lora=False,
            priority_scheduling_preemption_threshold=0, truncation_align_size=None, prefill_delayer=None,
            disaggregation_mode=DisaggregationMode.NULL, is_hybrid_swa=False, is_hybrid_ssm=False, is_generation=True,
            enable_metrics=False, enable_trace=False, max_queued_requests=None, forward_sleep_time=None,
            num_generated_tokens=0, forward_ct_decode=0, offload_tags=set(),
            send_to_tokenizer=SimpleNamespace(send_output=lambda out, req=None: self.sent.append(out)),
            policy=SchedulePolicy("fcfs", cache, False, False, False),
            # What only reports, or needs a GPU.
            stream_output=lambda *a, **k: None, report_decode_stats=lambda *a, **k: None,
            report_prefill_stats=lambda *a, **k: None, log_batch_result_stats=lambda *a, **k: None,
            log_prefill_stats=lambda *a, **k: None, _maybe_clear_mm_inputs=lambda batch: None,
            maybe_collect_routed_experts=lambda req: None, cancel_bubble_timer=lambda: None,
            maybe_prepare_mlp_sync_batch=lambda batch, **k: batch, launch_batch_sample_if_needed=lambda *a: None,
            _maybe_prepare_ngram_embedding=lambda batch: batch, self_check_during_idle=lambda: None,
            run_batch=self.run_batch, recv_requests=self.receive, process_input_requests=lambda calls: None,
        )
        for name, value in values.items():
            setattr(s, name, value)
        s.result_queue = []
        release.equip(s, values["send_to_tokenizer"].send_output, self.receive)
        s.init_running_status()
        s.init_chunked_prefill()
        return s

    # -- the model

    def mark(self, req, position):
        return self.weights * 10**6 + int(req.rid[1:]) * 1000 + position

    @staticmethod
    def token(req, length):
        """What the model answers to the first ``length`` tokens of a request."""
        return (31 * int(req.rid[1:]) + 7 * length) % 97

    def device_locs(self, out_cache_loc):
        """Where the forward pass writes, as HiSparseNSATokenToKVPool.set_kv_buffer finds it."""
        if self.coordinator is None:
            return out_cache_loc
        return self.device_pool.full_to_hisparse_device_index_mapping[out_cache_loc]

    def run_batch(self, batch, *_):
        decode = batch.forward_mode.is_decode()
        rids = [r.rid for r in batch.reqs]
        self.trace.append(("decode" if decode else "extend", tuple(rids), tuple(batch.seq_lens.tolist())))
        assert len(set(rids)) == len(rids), f"a request runs twice in one batch: {rids}"
        rows = [release.row(r) for r in batch.reqs]
        assert batch.req_pool_indices.tolist() == rows and len(batch.seq_lens) == len(rows), f"strange rows: {rids}"
        if self.coordinator is None:
            self.check_kv(batch)
        elif decode:
            self.check_decode(batch)
        if decode:
            positions = [(r, n - 1) for r, n in zip(batch.reqs, batch.seq_lens.tolist())]
        else:
            assert [p + n for p, n in zip(batch.prefix_lens, batch.extend_lens)] == batch.seq_lens.tolist()
            lengths = zip(batch.reqs, batch.seq_lens.tolist(), release.extend_lengths(batch))
            positions = [(r, p) for r, n, new in lengths for p in range(n - new, n)]
        locs = self.device_locs(batch.out_cache_loc)
        assert len(locs) == len(positions) and len(set(locs.tolist())) == len(positions)
        assert locs.min() > 0, "a token is written to the padding slot"
        self.device_pool.kv[locs] = torch.tensor([self.mark(r, p) for r, p in positions])
        tokens = torch.tensor([self.token(r, n) for r, n in zip(batch.reqs, batch.seq_lens.tolist())])
        batch.output_ids = tokens
        release.consume_inputs(batch)
        return GenerationBatchResult(
            logits_output=None,
            next_token_ids=tokens,
            can_run_cuda_graph=False,
            extend_input_len_per_req=[1] * len(batch.reqs) if decode else release.extend_lengths(batch),
            extend_logprob_start_len_per_req=[0] * len(batch.reqs),
        )

    def check_kv(self, batch):
        """What stands before the new tokens of each request is there and its own."""
        decode = batch.forward_mode.is_decode()
        computed = [1] * len(batch.reqs) if decode else release.extend_lengths(batch)
        for req, length, new in zip(batch.reqs, batch.seq_lens.tolist(), computed):
            before = length - new
            have = self.device_pool.kv[self.req_pool.req_to_token[release.row(req), :before].long()]
            expected = torch.tensor([self.mark(req, p) for p in range(before)], dtype=torch.int64)
            assert torch.equal(have, expected), (req.rid, length, have, expected)

    def check_decode(self, batch):
        """All that attention may select for these requests is there and theirs."""
        c = self.coordinator
        for req, length, slot in zip(batch.reqs, batch.seq_lens.tolist(), batch.req_pool_indices.tolist()):
            assert not req.hisparse_staging and req not in [act.req for act in c.ack_staging_queue], req.rid
            assert c.req_device_buffer_size[slot] > 0, f"{req.rid} decodes without a device buffer"
            expected = torch.tensor([self.mark(req, p) for p in range(length - 1)])
            if length <= BUFFER:
                have = self.device_pool.kv[c.req_to_device_buffer[slot, : length - 1]]
            else:
                assert (c.req_to_host_pool[slot, : length - 1] >= 0).all(), f"{req.rid} lacks a backup"
                have = c.mem_pool_host.kv[c.req_to_host_pool[slot, : length - 1]]
            assert torch.equal(have, expected), (req.rid, length, have, expected)

    # -- the client

    def add(self, length=6, new=3, **options):
        """A request in the queue; ``options`` are those of Req."""
        sampling = SamplingParams(max_new_tokens=new)
        sampling.normalize(None)
        req = Req(f"r{len(self.requests) + 1}", "", release.token_ids([1] * length), sampling, vocab_size=100, **options)
        req.tokenizer = None
        self.requests[req.rid] = req
        self.scheduler._add_request_to_queue(req)
        return req

    def abort(self, rid="", abort_all=False):
        self.scheduler.abort_request(AbortReq(rid=rid, abort_all=abort_all))

    def pause(self, mode):
        self.scheduler.pause_generation(PauseGenerationReqInput(mode=mode))

    def go_on(self):
        self.scheduler._engine_paused = False

    def receive(self):
        step, self.steps = self.steps, self.steps + 1
        if step == self.limit:
            raise Done
        if step in self.script:
            self.script[step]()
        return []

    def run(self, steps):
        """That many more turns of the real event loop."""
        self.limit = self.steps + steps
        loop = self.scheduler.event_loop_overlap if self.scheduler.enable_overlap else self.scheduler.event_loop_normal
        last = self.scheduler.last_batch
        assert last is None or not self.scheduler.enable_overlap or last.is_empty(), "a run must end between batches"
        try:
            loop()
        except Done:
            pass
        return self

    @property
    def open_requests(self):
        return [
            r.rid for r in self.requests.values()
            if not r.finished() and r.rid not in {getattr(out, "rid", None) for out in self.sent}
        ]

    def assert_answers(self):
        """All requests have ended, each with its own tokens from the first."""
        assert not self.open_requests
        for req in self.requests.values():
            length = len(req.origin_input_ids)
            assert list(req.output_ids) == [self.token(req, length + i) for i in range(len(req.output_ids))], req.rid

    def assert_nothing_leaked(self):
        a = self.allocator
        assert len(set(self.req_pool.free_slots)) == len(self.req_pool.free_slots) == self.req_pool.size
        if self.coordinator is None:
            assert a.available_size() == a.size
            return
        c = self.coordinator
        assert a.logical_attn_allocator.available_size() == a.logical_attn_allocator.size
        assert a.hisparse_attn_allocator.available_size() == a.hisparse_attn_allocator.size
        assert len(c.mem_pool_host.free_slots) == c.mem_pool_host.size
        assert not c.ack_staging_queue and not any(c._skip_first_backup)
        assert (c.req_to_host_pool == -1).all() and (c.req_device_buffer_size == 0).all()
        assert (a.full_to_hisparse_device_index_mapping[:-1] == 0).all()


def random_traffic(world, seed, count=60, steps=400, pauses=0.0):
    """Requests of many lengths, aborts at any moment, copies of any duration; ``pauses``: how likely one is in a step."""
    rng = random.Random(seed)
    world.engine.ready = lambda event: rng.random() < 0.4

    def turn():
        if len(world.requests) < count and rng.random() < 0.5:
            for _ in range(rng.randint(1, 4)):
                world.add(length=rng.choice((1, 3, 4, 5, 7, 8, 9, 12, 13, 30, 63)), new=rng.choice((1, 1, 2, 5, 20)))
        if world.open_requests and rng.random() < 0.15:
            world.abort(rng.choice(world.open_requests))
        if pauses and rng.random() < 0.5:
            world.go_on()
        if rng.random() < pauses:
            world.pause(rng.choice(("in_place", "retract")))

    world.script = {step: turn for step in range(steps)}
