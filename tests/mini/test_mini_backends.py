# SPDX-License-Identifier: Apache-2.0
"""The attention backends: which one runs, and what it computes on shuffled pages full of NaN."""

import copy
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from flash_stand_in import flash_attn_with_kvcache, own_parameters, real_parameters
from tiny_models import prompt_ids

from sglang.mini import MiniEngine, MiniError, SamplingParams, SglKernelAttentionBackend
from sglang.mini import flash_attention
from sglang.mini.backend import make_backend as make
from sglang.mini.kv_cache import CacheState, LayerSpec, PagedKVCache

GREEDY = SamplingParams(max_tokens=10, ignore_eos=True)
ROTARY = torch.nn.Module()
ROTARY.inv_freq = torch.tensor([1.0, 0.1, 0.01, 0.001])
SPEC = LayerSpec(layer=0, num_heads=4, num_kv_heads=2, head_dim=8, scaling=0.3, rotary=ROTARY)


def make_backend(name=None, specs=(SPEC, replace(SPEC, layer=1)), **options):
    return make(name, specs=specs, device="cpu", dtype=torch.float32, **options)


@pytest.fixture
def stand_in(monkeypatch):
    """sgl_kernel as it would be on a GPU that it runs on."""
    module = SimpleNamespace(flash_attn_with_kvcache=flash_attn_with_kvcache)
    monkeypatch.setattr(flash_attention, "load_flash_attn", lambda: module)
    monkeypatch.setattr(flash_attention, "flash_obstacle", lambda *_: None)


def test_default_environment_and_argument(monkeypatch):
    monkeypatch.delenv("ATTN_BACKEND", raising=False)
    assert make_backend().name == "torch" and make_backend().available()
    monkeypatch.setenv("ATTN_BACKEND", "hsa")
    assert make_backend().name == "hsa"
    assert make_backend("torch").name == "torch"
    with pytest.raises(MiniError, match="slow_keys needs a rotary embedding, and none was found for layer 1"):
        make_backend("hsa", specs=[SPEC, replace(SPEC, layer=1, rotary=None)])
    monkeypatch.setenv("ATTN_BACKEND", "flash")
    with pytest.raises(MiniError, match="ATTN_BACKEND 'flash' is not known: use torch, sgl_kernel, hsa"):
        make_backend()


def test_environment_reaches_the_engine(world, monkeypatch):
    monkeypatch.setenv("ATTN_BACKEND", "hsa")
    stats = world("qwen3").engine().stats()
    assert stats["backend"] == "hsa" and stats["page_size"] == 64


def test_a_missing_kernel_falls_back_with_one_log_line(world, caplog):
    with caplog.at_level(logging.INFO):
        engine = world("qwen3").engine(backend="sgl_kernel")
    (record,) = [r for r in caplog.records if r.name.startswith("sglang.mini")]
    assert "sgl_kernel" in record.message and "CUDA" in record.message and "using torch" in record.message
    assert (engine.backend.requested, engine.backend.name) == ("sgl_kernel", "torch")
    assert isinstance(engine.backend, SglKernelAttentionBackend) and not engine.backend.available()
    prompt = prompt_ids(70)
    assert engine.generate(prompt, GREEDY).token_ids == world("qwen3").expected(prompt, 10)


@pytest.mark.parametrize(
    "device, dtype, head_dim, words",
    (
        ("cuda", torch.float32, 64, "float16 or bfloat16"),
        ("cuda", torch.bfloat16, 512, "head_dim"),
        ("cuda", torch.bfloat16, 64, "cannot be imported"),
    ),
)
def test_reasons(device, dtype, head_dim, words, caplog, monkeypatch):
    """What stands in the way is looked for before anything is put on the device."""

    def fail():
        raise ImportError("libcuda.so.1: no such file\nmore")

    monkeypatch.setattr("sglang.mini.flash_attention.load_flash_attn", fail)
    spec = LayerSpec(0, 4, 2, head_dim, 1.0)
    backend = SglKernelAttentionBackend(specs=[spec], device=device, dtype=dtype)
    assert words in backend.reason and "\n" not in backend.reason and not backend.available()
    assert backend.name == "torch" and len(caplog.records) == 1


def make_state(spec, spans, page_size, seed=0):
    """A cache of NaN whose requests lie on shuffled pages; earlier keys are written. Returns (state, q, k, v, past)."""
    generator = torch.Generator().manual_seed(seed)
    kv = PagedKVCache(
        1, spec.num_kv_heads, spec.head_dim, token_budget=40 * page_size, page_size=page_size, max_requests=len(spans),
        max_tokens=10 * page_size, device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    for cache in (kv.k_cache[0], kv.v_cache[0]):
        cache.fill_(float("nan"))
    order = torch.randperm(40, generator=generator).tolist()
    past, new = [], []
    for row, (first, end) in enumerate(spans):
        pages = [order.pop() for _ in range(kv.pages_for(end))]
        kv.map_pages(row, pages)
        k, v = torch.randn(2, end, spec.num_kv_heads, spec.head_dim, generator=generator)
        where = kv.req_to_token[row, :first].long()
        assert where.tolist() == [pages[i // page_size] * page_size + i % page_size for i in range(first)]
        kv.write(0, where, k[:first], v[:first])
        past.append((k, v))
        new.append((k[first:], v[first:]))
    state = CacheState(kv, (spec,), list(range(len(spans))), spans).at(0)
    rows = sum(end - first for first, end in spans)
    q = torch.randn(rows, spec.num_heads, spec.head_dim, generator=generator)
    return state, q, *(torch.cat(x) for x in zip(*new)), past


def brute_force(q, past, spans, spec):
    """One query and head at a time, in float64."""
    out, row = torch.zeros(q.shape, dtype=torch.float64), 0
    for (k, v), (first, end) in zip(past, spans):
        for position in range(first, end):
            lowest = max(0, position - spec.window + 1) if spec.window else 0
            for head in range(spec.num_heads):
                g = head // (spec.num_heads // spec.num_kv_heads)
                keys, values = (x[lowest : position + 1, g].double() for x in (k, v))
                logits = keys @ q[row, head].double() * spec.scaling
                if spec.softcap:
                    logits = spec.softcap * torch.tanh(logits / spec.softcap)
                out[row, head] = logits.softmax(-1) @ values
            row += 1
    return out


@pytest.mark.parametrize("window, softcap", ((0, 0.0), (17, 0.0), (16, 0.7), (0, 0.7)))
@pytest.mark.parametrize("name, kernel", (("torch", False), ("sgl_kernel", True), ("sgl_kernel", False)))
def test_prefill_and_decode_equal_brute_force(name, kernel, window, softcap, request):
    """Without its kernel sgl_kernel falls back to torch."""
    if kernel:
        request.getfixturevalue("stand_in")
    spec = LayerSpec(0, 4, 2, 8, 0.3, window, softcap)
    backend = make_backend(name, specs=(spec,))
    assert (backend.requested, backend.available()) == (name, name == "torch" or kernel)
    spans = [(0, 1), (0, 33), (15, 17), (64, 79), (31, 80)]
    state, q, k, v, past = make_state(spec, spans, 16)
    positions = torch.cat([torch.arange(*span) for span in spans])
    out = backend.prefill((q, k, v), state, positions)
    torch.testing.assert_close(out.double(), brute_force(q, past, spans, spec), rtol=0, atol=2e-6)

    spans = [(0, 1), (15, 16), (16, 17), (32, 33), (78, 79)]
    state, q, k, v, past = make_state(spec, spans, 16, seed=1)
    state.decode = True  # also of a request without a past, which the engine prefills
    out = backend.decode((q, k, v), state)
    torch.testing.assert_close(out.double(), brute_force(q, past, spans, spec), rtol=0, atol=2e-6)


def test_the_stand_in_has_the_signature_of_sgl_kernel():
    real = real_parameters()
    if real is None:
        pytest.skip("sgl_kernel is not installed")
    # Later releases take more than it does.
    own = own_parameters()
    assert own == [parameter for parameter in real if parameter in own]


@pytest.mark.parametrize("shape", ("qwen3", "gemma2", "mistral"))
def test_engine_on_the_stand_in(world, shape, check_books, stand_in, caplog):
    """The whole engine through FlashAttention's interface: prefill in chunks, decode, prefix hits."""
    engine = world(shape).engine(backend="sgl_kernel", page_size=16, chunk_size=100)
    assert engine.backend.available() and engine.stats()["backend"] == "sgl_kernel" and not caplog.records
    prompts = [prompt_ids(n, seed=n) for n in (1, 31, 32, 400)]
    expected = [world(shape).expected(p, 10) for p in prompts]
    for _ in range(2):
        assert [r.token_ids for r in engine.generate(prompts, GREEDY)] == expected
    check_books(engine)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ("torch", "sgl_kernel", "hsa"))
@pytest.mark.parametrize("shape", ("qwen3", "gemma2"))
def test_on_the_gpu(world, backend, shape):
    """bf16 on the device: every token is, in the float32 oracle's eyes, the best or a near-tie."""
    w = world(shape, head_dim=64)
    options = {}
    if backend == "hsa":
        from sglang.srt.layers.attention.hsa.config import HSAConfig

        options["hsa"] = HSAConfig(topk=1000, window_size=64)
    model = copy.deepcopy(w.oracle).to("cuda", torch.bfloat16)
    engine = MiniEngine(model, w.tokenizer, backend=backend, page_size=64, chunk_size=300, **options)
    if not engine.backend.available():
        assert backend == "sgl_kernel"
        pytest.skip(engine.backend.reason)
    prompts = [prompt_ids(n, seed=n) for n in (1, 63, 64, 65, 1000)]
    for _ in range(2):
        for prompt, result in zip(prompts, engine.generate(prompts, GREEDY)):
            assert result.error is None
            ids = torch.tensor([prompt + result.token_ids])
            with torch.inference_mode():
                logits = w.oracle(ids).logits[0, len(prompt) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]
            assert ((logits.amax(-1) - chosen) / logits.abs().amax(-1)).max() < 0.1
    if backend == "hsa":
        counts = engine.stats()["hsa"]
        assert 0 < counts["pages_selected"] == counts["pages_candidate"]
