# SPDX-License-Identifier: Apache-2.0
"""The coordinator's state: staging, buffers that grow, backups, release; and the dtypes of sequence lengths."""

from types import SimpleNamespace

import pytest
import scheduler_release as release
import torch
from hisparse_release import OLDEST, all_lengths, as_prefilled, grow, oldest, prompt, staged
from scheduler_world import BUFFER, PAGE, TOP_K, CopyEngine, make_coordinator, make_pools

from sglang.srt.managers import hisparse_coordinator as module
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams

PADDED = BUFFER + PAGE


@pytest.fixture
def pools():
    return make_pools(slots=4)


@pytest.fixture
def engine():
    return CopyEngine()


@pytest.fixture
def coordinator(monkeypatch, pools, engine):
    return make_coordinator(monkeypatch, pools[0], pools[1], engine)


def prefilled(pools, length, rid="r1"):
    """A request whose prompt of that length is on the device, marked 0, 1, 2, ..."""
    req_pool, allocator, device = pools
    req = Req(rid, "", prompt(length), SamplingParams(max_new_tokens=8), vocab_size=100)
    (slot,) = req_pool.alloc([req])
    one = torch.tensor([length])
    locs = allocator.alloc_extend(
        torch.tensor([0]), torch.tensor([0]), one, one, torch.tensor([-1]), extend_num_tokens=length
    )
    req_pool.req_to_token[slot, :length] = locs.to(torch.int32)
    as_prefilled(req, length)
    device.kv[allocator.full_to_hisparse_device_index_mapping[locs]] = torch.arange(length)
    return req


def stage(coordinator, req):
    coordinator.admit_request_into_staging(req)
    assert coordinator.collect_ready_reqs() == [req]


def free_of(pools, coordinator):
    allocator = pools[1]
    return (
        allocator.logical_attn_allocator.available_size(),
        allocator.hisparse_attn_allocator.available_size(),
        len(coordinator.mem_pool_host.free_slots),
    )


def test_the_flag_has_its_own_name():
    req = Req("r", "", [1], SamplingParams(), vocab_size=10)
    assert req.hisparse_staging is False and not hasattr(req, "staging")


@pytest.mark.parametrize("length", (1, PAGE, BUFFER - 1, BUFFER, BUFFER + 1, PADDED, 30))
def test_staging_copies_the_prompt_and_keeps_a_bounded_buffer(pools, coordinator, length):
    req = prefilled(pools, length)
    coordinator.admit_request_into_staging(req)
    assert req.hisparse_staging and coordinator.has_ongoing_staging() and staged(coordinator) == [req]
    assert coordinator.collect_ready_reqs() == [req]
    assert not req.hisparse_staging and not coordinator.has_ongoing_staging() and staged(coordinator) == []

    slot = release.row(req)
    host = coordinator.req_to_host_pool[slot, :length]
    assert torch.equal(coordinator.mem_pool_host.kv[host], torch.arange(length))
    held = int(coordinator.req_device_buffer_size[slot])
    assert held == (PADDED if length > BUFFER - PAGE else -(-length // PAGE) * PAGE)
    kept = coordinator.req_to_device_buffer[slot, : min(length, held)]
    assert torch.equal(pools[2].kv[kept][:BUFFER], torch.arange(min(length, held))[:BUFFER])
    assert (coordinator.req_device_buffer_token_locs[:, slot, :held] == coordinator.req_to_device_buffer[slot, :held]).all()


def test_requests_become_ready_in_order(pools, coordinator, engine):
    """A later copy that is done early waits for those before it, on every rank alike."""
    reqs = [prefilled(pools, 5, f"r{i}") for i in range(3)]
    for req in reqs:
        coordinator.admit_request_into_staging(req)
    events = [act.finish_event for act in coordinator.ack_staging_queue]
    done = {events[0], events[2]}
    engine.ready = lambda event: event in done
    assert coordinator.collect_ready_reqs() == reqs[:1]
    assert [r.hisparse_staging for r in reqs] == [False, True, True]
    done.add(events[1])
    assert coordinator.collect_ready_reqs() == reqs[1:]


@pytest.mark.parametrize("staged", (False, True))
@pytest.mark.parametrize("length", (3, BUFFER, 30))
def test_everything_comes_back(pools, coordinator, engine, length, staged):
    """Retracted in staging or when decoding, a request leaves nothing behind, and its neighbour keeps its own."""
    neighbour = prefilled(pools, 9, "n")
    stage(coordinator, neighbour)
    before = free_of(pools, coordinator)
    state = [t.clone() for t in (coordinator.req_to_device_buffer, coordinator.req_to_host_pool, coordinator.lru_slots)]
    req = prefilled(pools, length)
    if staged:
        engine.ready = lambda event: False
        coordinator.admit_request_into_staging(req)
        assert coordinator.collect_ready_reqs() == []
    else:
        stage(coordinator, req)
        coordinator.lru_slots[:, release.row(req)] = coordinator.lru_slots[:, release.row(req)].flip(-1)
    coordinator.retract_req(req)
    pools[1].free(pools[0].req_to_token[release.row(req), :length].long())
    assert free_of(pools, coordinator) == before and not req.hisparse_staging
    after = (coordinator.req_to_device_buffer, coordinator.req_to_host_pool, coordinator.lru_slots)
    assert all(torch.equal(a, b) for a, b in zip(state, after))
    assert coordinator.ack_staging_queue == [] and coordinator._skip_first_backup[release.row(req)] is False


def test_retracting_a_request_that_never_left_prefill_touches_nothing(pools, coordinator):
    """Its KV is still mapped, and is freed with the request."""
    before = free_of(pools, coordinator)
    req = prefilled(pools, 9)
    coordinator.retract_req(req)
    pools[1].free(pools[0].req_to_token[release.row(req), :9].long())
    assert free_of(pools, coordinator) == before


def test_a_full_host_is_an_error_that_says_so(pools, coordinator):
    coordinator.mem_pool_host.free_slots = coordinator.mem_pool_host.free_slots[:3]
    failed = "host mem pool alloc failed for " + ("9 tokens" if OLDEST else "3 pages")
    with pytest.raises(RuntimeError, match=failed):
        coordinator.admit_request_into_staging(prefilled(pools, 9))


# -- dtypes of sequence lengths

DTYPES = (torch.int32, torch.int64)
LENGTHS = "seq_lens" if OLDEST else "compressed_seq_lens"
OTHERS = (torch.int16, torch.uint8, torch.float32, torch.bool)


@pytest.fixture
def calls(monkeypatch):
    """What reaches the kernel."""
    seen = []
    monkeypatch.setattr(module, "load_cache_to_device_buffer_mla", lambda **given: seen.append(given))
    return seen


def swap_in(coordinator, **change):
    given = dict(
        req_pool_indices=torch.tensor([1, 0]),
        **{LENGTHS: torch.tensor([20, 5])},
        top_k_result=torch.zeros(2, TOP_K, dtype=torch.int32),
        layer_id=1,
    )
    return coordinator.swap_in_selected_pages(**{**given, **change})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths_reach_the_kernel_as_they_are(coordinator, calls, dtype):
    lengths = torch.tensor([20, 5], dtype=dtype)
    out = swap_in(coordinator, **{LENGTHS: lengths})
    assert calls[0]["seq_lens"] is lengths
    assert out.shape == (2, TOP_K) and out.dtype == torch.int32 and (out == -1).all()


@oldest
@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_other_lengths_are_refused_by_name(coordinator, calls, dtype):
    with pytest.raises(ValueError, match=f"seq_lens dtype {dtype} is not int32 or int64"):
        swap_in(coordinator, seq_lens=torch.tensor([20, 5]).to(dtype))
    assert not calls


@oldest
@pytest.mark.parametrize("name, value", (
    ("req_pool_indices", torch.tensor([1, 0], dtype=torch.int32)),
    ("top_k_result", torch.zeros(2, TOP_K, dtype=torch.int64)),
))  # fmt: skip
def test_the_other_arguments_keep_their_dtypes(coordinator, calls, name, value):
    with pytest.raises(ValueError, match=name):
        swap_in(coordinator, **{name: value})


@pytest.mark.parametrize("device_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cpu_dtype", DTYPES, ids=str)
def test_decode_steps_with_every_pair_of_dtypes(pools, coordinator, device_dtype, cpu_dtype):
    """From a buffer that grows page by page to one that is full: backups and the newest token's slot are right."""
    reqs = [prefilled(pools, n, f"r{n}") for n in (2, BUFFER, 17)]
    for req in reqs:
        coordinator.admit_request_into_staging(req)
    coordinator.collect_ready_reqs()
    rows = torch.tensor([release.row(r) for r in reqs])
    lengths = torch.tensor([2, BUFFER, 17])
    for _ in range(2 * BUFFER):
        last = pools[0].req_to_token[rows, lengths - 1].long()
        lengths = lengths + 1
        out = pools[1].alloc_decode(lengths, lengths, last)
        pools[0].req_to_token[rows, lengths - 1] = out.to(torch.int32)
        for req in reqs:
            grow(req)
        on_cpu = all_lengths(lengths.to(cpu_dtype), rows)
        coordinator.map_last_loc_to_buffer(lengths.to(device_dtype), out, rows, *on_cpu)
        written = pools[1].full_to_hisparse_device_index_mapping[out]
        assert (written > 0).all() and len(set(written.tolist())) == len(reqs)
        pools[2].kv[written] = lengths - 1
        for row, n in zip(rows.tolist(), lengths.tolist()):
            saved = coordinator.req_to_host_pool[row, : n - 1]
            assert torch.equal(coordinator.mem_pool_host.kv[saved], torch.arange(n - 1))
    if OLDEST:
        front = coordinator.get_front_topk_tokens(rows, torch.tensor([2, BUFFER, 17], dtype=device_dtype))
        assert ((front == -1).sum(1) == torch.tensor([TOP_K - 2, 0, 0])).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_naive_loader_takes_both(pools, coordinator, dtype):
    req = prefilled(pools, 20)
    stage(coordinator, req)
    loads = []
    coordinator.mem_pool_host.load_to_device_per_layer = lambda pool, host, device, layer, io_backend: loads.append(
        coordinator.mem_pool_host.kv[host].tolist()
    )
    rows, lengths = torch.tensor([release.row(req)]), torch.tensor([20], dtype=dtype)
    out = coordinator.naive_load_topk(rows, lengths, torch.tensor([[19, 3, 15, 0]], dtype=torch.int32), layer_id=0)
    assert loads == [[3, 15, 0]]
    assert out[0, 0] == coordinator.req_to_device_buffer[release.row(req), BUFFER]


def test_the_wrapper_wants_a_buffer_of_top_k():
    nothing = SimpleNamespace()
    with pytest.raises(AssertionError, match=r"hot_buffer_size \(4\) must be >= num_top_k \(8\)"):
        module.load_cache_to_device_buffer_mla(*[nothing] * 10, item_size_bytes=8, num_top_k=8, hot_buffer_size=4)
