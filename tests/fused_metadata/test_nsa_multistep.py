# SPDX-License-Identifier: Apache-2.0
"""NSA's multi-step draft backend: the fused path against the release's precompute and copies, on real metadata objects.

The backends are NSA's own, with what needs a device left out; capture and replay run their code on CPU tensors.
"""

import dataclasses
import importlib.util
import sys
import types

import pytest
import torch

if importlib.util.find_spec("sglang.jit_kernel.fused_metadata_copy") is None:
    pytest.skip("later releases compute it with a kernel of their own: run it with --release v0.5.10rc0", allow_module_level=True)

from sglang.jit_kernel import fused_metadata_copy  # noqa: E402, after the question whether it is there
from sglang.test.fused_metadata_cases import POISON  # noqa: E402

CONTEXT, DRAFT_TOKENS, TOPK, REQUESTS = 700, 4, 128, 40


@pytest.fixture(scope="module")
def nsa():
    """The module nsa_backend. Without CUDA sgl_kernel cannot be imported, so names stand in that no test calls."""
    name = "sglang.srt.layers.attention.nsa_backend"
    before = set(sys.modules)
    stand_ins = []
    try:
        importlib.import_module("sgl_kernel.flash_attn")
    except ImportError:
        for module in [m for m in sys.modules if m.split(".")[0] == "sgl_kernel"]:
            del sys.modules[module]
        package, flash = types.ModuleType("sgl_kernel"), types.ModuleType("sgl_kernel.flash_attn")
        flash.flash_attn_varlen_func = flash.flash_attn_with_kvcache = None
        stand_ins = {"sgl_kernel": package, "sgl_kernel.flash_attn": flash}
        sys.modules.update(stand_ins)
    yield importlib.import_module(name)
    if stand_ins:  # leave no module behind that was imported beside a stand-in
        for module in set(sys.modules) - before:
            if module.startswith(("sgl_kernel", "sglang.srt.layers.attention.nsa")):
                del sys.modules[module]


def flashmla(nsa, cache_seqlens):
    """Stands for FlashMLA's own schedule: a function of all lengths."""
    total = int(cache_seqlens.sum())
    return nsa.NSAFlashMLAMetadata(
        flashmla_metadata=torch.arange(16, dtype=torch.int32).view(2, 8) + total,
        num_splits=torch.nn.functional.pad(cache_seqlens.cumsum(0).int(), (1, 0)),
    )


def make_multi_step(nsa, steps, page_size, impl, req_to_token):
    multi = object.__new__(nsa.NativeSparseAttnMultiStepBackend)
    multi.topk, multi.speculative_num_steps, multi.attn_backends = 1, steps + 1, []
    for _ in range(steps):
        backend = object.__new__(nsa.NativeSparseAttnBackend)
        backend.device, backend.req_to_token = "cpu", req_to_token
        backend.real_page_size, backend.nsa_index_topk = page_size, TOPK
        backend.max_context_len, backend.speculative_num_draft_tokens = CONTEXT, DRAFT_TOKENS
        backend.nsa_decode_impl = backend.nsa_prefill_impl = impl
        backend.enable_auto_select_prefill_impl, backend.use_mha = False, True
        backend._arange_buf = torch.arange(64, dtype=torch.int32)
        backend._compute_flashmla_metadata = lambda cache_seqlens, seq_len_q: flashmla(nsa, cache_seqlens)
        multi.attn_backends.append(backend)
    return multi


def make_batch(lengths, requests, spare=3):
    """As the draft graph runner has it: buffers with more elements than the graph's batch."""
    pad = [99] * spare
    return types.SimpleNamespace(
        batch_size=len(lengths),
        seq_lens=torch.tensor(lengths + pad),
        seq_lens_cpu=torch.tensor(lengths + [10**6] * spare),
        req_pool_indices=torch.tensor(requests + [0] * spare),
        spec_info=None,
        seq_lens_sum=sum(lengths),
    )


def tensors(metadata):
    found = {}
    for field in dataclasses.fields(metadata):
        value = getattr(metadata, field.name)
        if dataclasses.is_dataclass(value):
            found.update({f"{field.name}.{n}": t for n, t in vars(value).items()})
        elif isinstance(value, torch.Tensor):
            found[field.name] = value
    return found


def no_device(*_):
    raise RuntimeError("there is no device")


def replayed(nsa, monkeypatch, fused, steps, page_size, impl, batches):
    """Every tensor of every step's metadata after each replay, from memory that was poisoned after the capture."""
    generator = torch.Generator().manual_seed(5)
    req_to_token = torch.randint(0, 1 << 20, (REQUESTS, CONTEXT + DRAFT_TOKENS), generator=generator, dtype=torch.int32)
    monkeypatch.setattr(nsa, "_USE_FUSED_METADATA_COPY", fused)
    monkeypatch.setattr(nsa, "can_use_fused_metadata_precompute_and_broadcast", lambda: True)
    # For three steps and more the release tries a kernel first, whatever its switch says, and then copies one by one.
    monkeypatch.setattr(fused_metadata_copy, "_jit_fused_metadata_copy_multi_module", no_device)
    multi = make_multi_step(nsa, steps, page_size, impl, req_to_token)
    multi.init_cuda_graph_state(8, 8 * DRAFT_TOKENS)
    assert multi.fuse_draft_metadata == fused
    calls = []
    original = multi.attn_backends[0]._precompute_replay_metadata
    multi.attn_backends[0]._precompute_replay_metadata = lambda **k: calls.append(1) or original(**k)

    bs = batches[0].batch_size
    capture = make_batch([1] * bs, [0] * bs, spare=0)
    multi.init_forward_metadata_capture_cuda_graph(capture)
    captured = [backend.decode_cuda_graph_metadata[bs] for backend in multi.attn_backends]
    for backend in multi.attn_backends:
        backend.forward_metadata = None
    # What a decode replay leaves alone: element 0 of the sums, the queries' sums, the slots past the batch's longest.
    for metadata in captured:
        for name, tensor in tensors(metadata).items():
            if "cu_seqlens" in name:
                tensor[1:] = tensor[1:] if "cu_seqlens_q" in name else POISON
            else:
                tensor.fill_(POISON)
    states = []
    for batch in batches:
        multi.init_forward_metadata_replay_cuda_graph(batch, bs)
        for backend, metadata in zip(multi.attn_backends, captured):
            assert backend.decode_cuda_graph_metadata[bs] is metadata, "the graph reads the captured tensors"
            assert not backend.use_mha, "set_nsa_prefill_impl was not called"
        if fused:
            assert all(b.forward_metadata is m for b, m in zip(multi.attn_backends, captured))
        states.append([{n: t.clone() for n, t in tensors(m).items()} for m in captured])
    assert len(calls) == (0 if fused else len(batches))
    return states


BATCHES = {
    "one": [make_batch([CONTEXT], [7]), make_batch([1], [3]), make_batch([65], [7])],
    "five": [
        make_batch([1, 64, 65, 300, 129], [4, 0, 39, 1, 2]),
        make_batch([699, 2, 128, 127, 1], [39, 3, 5, 1, 0]),
        make_batch([2, 3, 4, 5, 6], [8, 9, 10, 11, 0]),
    ],
}


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("impl", ("flashmla_sparse", "flashmla_kv"))
@pytest.mark.parametrize("page_size", (1, 64))
@pytest.mark.parametrize("steps", (1, 2, 3, 5, 8))
def test_equals_precompute_and_copies(nsa, monkeypatch, steps, page_size, impl, batches):
    arguments = (steps, page_size, impl, BATCHES[batches])
    today = replayed(nsa, monkeypatch, False, *arguments)
    fused = replayed(nsa, monkeypatch, True, *arguments)
    for before, after in zip(today, fused, strict=True):
        assert len(after) == steps
        for one, other in zip(before, after, strict=True):
            assert one.keys() == other.keys() and len(one) >= 9
            for name in one:
                assert torch.equal(one[name], other[name]), name
    # Not everything can be the poison of both.
    assert (fused[-1][-1]["nsa_cu_seqlens_k"] >= 0).all() and (fused[-1][-1]["page_table_1"] >= 0).any()


@pytest.mark.parametrize("switch", ("SGLANG_NSA_ENABLE_MTP_PRECOMPUTE_METADATA", "SGLANG_USE_FUSED_METADATA_COPY", "build"))
def test_each_condition_of_the_release_turns_it_off(nsa, monkeypatch, switch):
    monkeypatch.setattr(nsa, "_USE_FUSED_METADATA_COPY", switch != "SGLANG_USE_FUSED_METADATA_COPY")
    monkeypatch.setattr(nsa, "can_use_fused_metadata_precompute_and_broadcast", lambda: switch != "build")
    multi = make_multi_step(nsa, 2, 64, "flashmla_sparse", torch.zeros(2, 8, dtype=torch.int32))
    with nsa.envs.SGLANG_NSA_ENABLE_MTP_PRECOMPUTE_METADATA.override(switch != "SGLANG_NSA_ENABLE_MTP_PRECOMPUTE_METADATA"):
        multi.init_cuda_graph_state(2, 2)
    assert multi.fuse_draft_metadata is False


def test_a_wrong_argument_is_refused_and_not_papered_over(nsa, monkeypatch):
    """No fallback on an error: today's path would print it and go on."""
    from sglang.srt.layers.attention.nsa.nsa_mtp_fused import replay_draft_metadata

    monkeypatch.setattr(nsa, "can_use_fused_metadata_precompute_and_broadcast", lambda: True)
    multi = make_multi_step(nsa, 2, 64, "flashmla_sparse", torch.zeros(2, CONTEXT, dtype=torch.int32))
    multi.init_cuda_graph_state(2, 2)
    multi.init_forward_metadata_capture_cuda_graph(make_batch([1, 1], [0, 0], spare=0))
    batch = make_batch([CONTEXT + 1, 1], [0, 1])
    with pytest.raises(ValueError, match="max_len must be an int from 0 to 700, got 701"):
        replay_draft_metadata(multi.attn_backends, batch, 2)
