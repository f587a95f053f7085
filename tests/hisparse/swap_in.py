# SPDX-License-Identifier: Apache-2.0
"""The swap-in of HiSparse as plain Python, and inputs for it. Shared by the GPU tests and the benchmark.

A request owns ``buffer`` slots on the device plus one for its newest token. Given the top-k tokens of a step, those in a slot
are hits; each miss, in the order of the top-k, takes the least recently used slot without a hit and is copied from the host.
Afterwards the order of use is: all slots without a hit, in their old order, then the hits in theirs. In v0.5.23 the slots that
were taken come after those that were not.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from hisparse_release import OLDEST

PAGE = 64


@dataclass
class State:
    """Arguments of the kernel, by the names of ``load_cache_to_device_buffer_mla``."""

    device_buffer_tokens: torch.Tensor  # [slots of requests, buffer + PAGE] int32, -1 is none
    host_cache_locs: torch.Tensor  # [slots of requests, context] int64
    device_buffer_locs: torch.Tensor  # [slots of requests, buffer + PAGE] int32
    host_cache: torch.Tensor  # [host tokens, item bytes] uint8, pinned
    device_buffer: torch.Tensor  # [device tokens, item bytes] uint8
    req_pool_indices: torch.Tensor  # [bs] int64
    seq_lens: torch.Tensor  # [bs] int32 or int64
    lru_slots: torch.Tensor  # [slots of requests, buffer] int16

    def copy(self, device):
        """A copy on that device; the host's memory is shared, it is only read."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return State(**{n: v if n == "host_cache" else v.to(device, copy=True) for n, v in values.items()})


def make_state(seq_lens, buffer, dtype, *, item_bytes=64, context=None, host_tokens=5000, seed=0):
    """Requests right after staging, on the CPU: the first tokens fill the buffer in order, in shuffled locations."""
    rng = np.random.default_rng(seed)
    bs, context = len(seq_lens), context or max(seq_lens) + 8
    pool = bs + 3
    rows = rng.permutation(pool)[:bs]
    locs = rng.permutation(np.arange(1, pool * (buffer + PAGE) + 1)).astype(np.int32).reshape(pool, buffer + PAGE)
    host_locs = rng.integers(0, host_tokens, (pool, context))
    tokens = np.full((pool, buffer + PAGE), -1, dtype=np.int32)
    tokens[:, :buffer] = np.arange(buffer)
    host = rng.integers(0, 256, (host_tokens, item_bytes), dtype=np.uint8)
    kv = rng.integers(0, 256, (pool * (buffer + PAGE) + 1, item_bytes), dtype=np.uint8)
    for row, length in zip(rows, seq_lens):
        held = min(length, buffer)
        kv[locs[row, :held]] = host[host_locs[row, :held]]
    host = torch.from_numpy(host)
    return State(
        device_buffer_tokens=torch.from_numpy(tokens),
        host_cache_locs=torch.from_numpy(host_locs),
        device_buffer_locs=torch.from_numpy(locs),
        host_cache=host.pin_memory() if torch.cuda.is_available() else host,
        device_buffer=torch.from_numpy(kv),
        req_pool_indices=torch.from_numpy(rows.astype(np.int64)),
        seq_lens=torch.tensor(seq_lens, dtype=dtype),
        lru_slots=torch.arange(buffer, dtype=torch.int16).repeat(pool, 1),
    )


def draw_top_k(seq_lens, top_k, rng, previous=None, keep=0.9):
    """Distinct tokens per request, -1 beyond a short request's end; a share ``keep`` of the last step's comes again."""
    out = np.full((len(seq_lens), top_k), -1, dtype=np.int32)
    for i, length in enumerate(seq_lens):
        n = min(length, top_k)
        old = np.empty(0, dtype=np.int32)
        if previous is not None:
            old = previous[i][(previous[i] >= 0) & (previous[i] < length)]
            old = rng.permutation(old)[: int(n * keep)]
        rest = rng.permutation(length).astype(np.int32)
        rest = rest[~np.isin(rest, old)][: n - len(old)]
        out[i, :n] = rng.permutation(np.concatenate([old, rest]))
    return out


def swap_in_oracle(state, top_k_tokens, top_k, buffer, real_reqs=None):
    """What the kernel does to a ``State`` on the CPU, in place. Returns the locations, [bs, top_k] int32, -1 is untouched."""
    rows, lengths = state.req_pool_indices.tolist(), state.seq_lens.tolist()
    tokens, locs = state.device_buffer_tokens.numpy(), state.device_buffer_locs.numpy()
    lru, host_locs = state.lru_slots.numpy(), state.host_cache_locs.numpy()
    host, kv = state.host_cache.numpy(), state.device_buffer.numpy()
    out = np.full((len(rows), top_k), -1, dtype=np.int32)
    for i, (row, length) in enumerate(zip(rows, lengths)):
        if real_reqs is not None and i >= real_reqs:
            break
        wanted = top_k_tokens[i]
        if length <= buffer:
            n = min(length, top_k)
            out[i, :n] = np.where(wanted[:n] >= 0, locs[row, wanted[:n]], -1)
            continue
        slot_of = {}
        order = lru[row].tolist()
        selected = set(wanted.tolist()) - {length - 1}
        hit_slots = []
        free = []
        for slot in order:
            token = int(tokens[row, slot])
            if token >= 0 and token in selected:
                slot_of[token] = slot
                hit_slots.append(slot)
            else:
                free.append(slot)
        misses = 0
        for k, token in enumerate(wanted.tolist()):
            if token == length - 1:
                out[i, k] = locs[row, buffer]
                continue
            if token not in slot_of:
                slot = free[misses]
                misses += 1
                slot_of[token] = slot
                tokens[row, slot] = token
                kv[locs[row, slot]] = host[host_locs[row, token]]
            out[i, k] = locs[row, slot_of[token]]
        taken = 0 if OLDEST else misses
        lru[row] = np.array(free[taken:] + free[:taken] + hit_slots, dtype=np.int16)
    return torch.from_numpy(out)


def ops():
    """The release's module of the wrapper, and what compiles it."""
    if OLDEST:
        from sglang.jit_kernel import hisparse, utils
    else:
        from sglang.kernels.jit import utils
        from sglang.kernels.ops.kvcache import hisparse
    return hisparse, utils


def compile_kernel(top_k, buffer, *, item_bytes=64, block_size=1024, source=None):
    """The module of one pair of sizes; ``source`` is the path of another hisparse.cuh, e.g. the unpatched one."""
    hisparse, utils = ops()
    if source is None:
        return hisparse._jit_sparse_module(item_bytes, block_size, top_k, buffer, is_mla=True)
    # In v0.5.23: no page layout of DeepSeek V4, tokens instead of blocks, no plan of misses, copies.
    more = () if OLDEST else (False, 1, False, False, False)
    args = utils.make_cpp_args(block_size, top_k, buffer, True, *more)
    return utils.load_jit(
        "sparse_cache_other",
        *args,
        cuda_files=[str(source)],
        cuda_wrappers=[("load_cache_to_device_buffer", f"load_cache_to_device_buffer<{args}>")],
    )


def call(module, state, top_k_tokens, out, real_reqs):
    """One call; ``out`` is [bs, top_k] int32 and ``real_reqs`` [1] int32, both on the device."""
    empty = torch.empty(0)
    plan = () if OLDEST else (empty, empty, empty)
    module.load_cache_to_device_buffer(
        top_k_tokens, state.device_buffer_tokens, state.host_cache_locs, state.device_buffer_locs, state.host_cache, empty,
        state.device_buffer, empty, out, state.req_pool_indices, state.seq_lens, state.lru_slots, real_reqs, 1,
        state.host_cache.shape[1], *plan,
    )  # fmt: skip
    return out


def lengths_for(top_k, buffer, bs):
    """Around each bound of the kernel, and long ones."""
    edges = [1, top_k - 1, top_k, top_k + 1, buffer - 1, buffer, buffer + 1, buffer + 2, buffer + 777, 2 * buffer + 63]
    return [max(1, edges[i % len(edges)]) for i in range(bs)]


def run_steps(module, cpu, top_k, buffer, seed, steps=3, real_reqs=None, others=(), device="cuda"):
    """Steps of decoding; after each, all state equals the oracle's. ``others``: (module, state) that must agree bit for bit."""
    gpu, rng, previous = cpu.copy(device), np.random.default_rng(seed), None
    bs, lengths = len(cpu.seq_lens), cpu.seq_lens.tolist()
    real = torch.tensor([bs if real_reqs is None else real_reqs], dtype=torch.int32, device=device)
    for _ in range(steps):
        previous = draw_top_k(lengths, top_k, rng, previous, keep=0.7)
        chosen = torch.from_numpy(previous).to(device, copy=True)
        out = call(module, gpu, chosen, torch.full_like(chosen, -1), real)
        expected = swap_in_oracle(cpu, previous, top_k, buffer, real_reqs)
        assert torch.equal(out.cpu(), expected)
        for name in ("device_buffer_tokens", "lru_slots", "device_buffer"):
            assert torch.equal(getattr(gpu, name).cpu(), getattr(cpu, name)), name
        for other, state in others:
            again = call(other, state, chosen, torch.full_like(chosen, -1), real)
            assert torch.equal(again, out)
            for name in ("device_buffer_tokens", "lru_slots", "device_buffer"):
                assert torch.equal(getattr(gpu, name), getattr(state, name)), name
