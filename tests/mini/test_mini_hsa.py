# SPDX-License-Identifier: Apache-2.0
"""Backend hsa: dense attention with every page selected, the brute force with few."""

import dataclasses

import pytest
import torch
from hf_oracle import greedy
from tiny_models import prompt_ids

from sglang.mini import MiniError, SamplingParams
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.test.attention.hsa_oracle import Options

NEW = 10
DEFAULTS = dict(kind=HSAConfig.chunk_repr, strategy=HSAConfig.selection_strategy, sink_pages=HSAConfig.sink_pages)
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)
EVERY = HSAConfig(topk=1000, window_size=40, layers="all")


@pytest.mark.parametrize("shape", ("qwen3", "gemma2"))
@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"chunk_repr": "landmark", "selection_strategy": "softmax_head", "sink_pages": 0},
        {"chunk_repr": "mean_std", "selection_strategy": "head", "enable_swa_fusion": False, "layers": "1"},
    ),
    ids=("defaults", "landmark", "mean_std"),
)
def test_with_every_page_it_is_dense(world, shape, changes, check_books):
    w = world(shape)
    hsa = dataclasses.replace(EVERY, **changes)
    engine = w.engine(backend="hsa", page_size=16, chunk_size=100, hsa=hsa)
    prompts = [prompt_ids(n, seed=n) for n in (1, 15, 16, 17, 350)]
    for _ in range(2):  # with prefix hits
        results = engine.generate(prompts, GREEDY)
        assert [r.token_ids for r in results] == [w.expected(p, NEW) for p in prompts]
    counts = engine.stats()["hsa"]
    assert counts["rows_sparse"] >= 350 and 0 < counts["pages_selected"] == counts["pages_candidate"]
    check_books(engine)


@pytest.mark.parametrize("shape", ("qwen3", "gemma2"))
def test_with_few_pages_it_is_the_brute_force(world, shape, check_books):
    """Two pages of up to 21: alone, in a batch, in chunks, from the prefix cache, after eviction.

    The answer is long enough that pages which decode has filled are candidates.
    """
    w = world(shape)
    prompt, new = prompt_ids(290, seed=9), 60
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    want = greedy(w.path, prompt, new, Options(page_size=16, window_size=8, topk=2, **DEFAULTS))
    assert want != w.expected(prompt, new), "selection has to matter for this prompt"
    hsa = HSAConfig(topk=2, window_size=8, layers="all")
    engine = w.engine(backend="hsa", page_size=16, chunk_size=90, token_budget=700, hsa=hsa)
    others = [prompt_ids(n, seed=n) for n in (50, 161)]
    assert engine.generate([others[0], prompt, others[1]], params)[1].token_ids == want
    again = engine.generate(prompt, params)
    assert again.token_ids == want and again.cached_tokens == 288
    # Pages that decode filled serve a prompt, too.
    half = engine.generate(prompt + want[:40], params)
    assert half.token_ids[:20] == want[40:] and half.cached_tokens == 320
    for seed in range(3):  # its pages go to others and come back
        engine.generate(prompt_ids(600, seed=100 + seed), GREEDY)
    afresh = engine.generate(prompt, params)
    assert afresh.token_ids == want and afresh.cached_tokens == 0
    whole = w.engine(backend="hsa", page_size=16, prefix_cache=False, hsa=hsa)
    assert whole.generate(prompt, params).token_ids == want
    counts = engine.stats()["hsa"]
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    check_books(engine)


def test_page_sizes(world):
    w = world("qwen3")
    assert w.engine(backend="hsa").stats()["page_size"] == 64
    assert w.engine(backend="hsa", hsa=HSAConfig(page_size=32)).stats()["page_size"] == 32
    assert w.engine(backend="hsa", page_size=128).backend.config.page_size == 128
    with pytest.raises(MiniError, match="--page-size 512 is not valid with HSA: use one of 16, 32, 64, 128"):
        w.engine(backend="hsa", page_size=512)


@pytest.mark.parametrize(
    "shape, hsa, words",
    (
        ("qwen3", dict(chunk_repr="prior"), "use slow_keys, mean_std, mean, landmark"),
        ("qwen3", dict(strict=True), "options of SGLang's runtime"),
        ("qwen3", dict(prefill="dense"), "options of SGLang's runtime"),
        ("qwen3", dict(layers="0,7"), "the model has layers 0-1"),
        ("mistral", {}, "leaves no layer for HSA"),
    ),
)
def test_options_that_are_refused(world, shape, hsa, words):
    with pytest.raises(MiniError, match=words):
        world(shape).engine(backend="hsa", hsa=HSAConfig(**hsa))


def test_options_without_the_backend_are_refused(world):
    with pytest.raises(MiniError, match="use backend hsa"):
        world("qwen3").engine(backend="torch", hsa=HSAConfig())


def test_kernels_equal_the_references(child, world):
    """The Triton kernels under the interpreter, which must be on before Triton is imported."""
    if torch.cuda.is_available():
        pytest.skip("test_on_the_gpu runs the kernels themselves")
    output = child([__file__, world("qwen3").path], TRITON_INTERPRET="1")
    assert output.split() == ["equal"] * 3


def _main(path):
    from sglang.mini import MiniEngine
    from sglang.mini.hsa_kernels import HSAKernels

    for options in (
        dict(topk=2),
        dict(topk=1000),
        dict(topk=2, selection_strategy="softmax_head", weight_mode="score", chunk_repr="mean"),
    ):
        hsa = HSAConfig(window_size=20, layers="all", **options)
        engine = MiniEngine(path, backend="hsa", page_size=16, hsa=hsa)
        prompts = [prompt_ids(n, seed=n) for n in (1, 16, 120)]
        params = SamplingParams(max_tokens=2, ignore_eos=True)
        want = [r.token_ids for r in engine.generate(prompts, params)]
        backend, before = engine.backend, engine.stats()["hsa"]["rows_sparse"]
        backend.kernels = HSAKernels(backend.config, backend.counters)
        got = [r.token_ids for r in engine.generate(prompts, params)]
        assert engine.stats()["hsa"]["rows_sparse"] > before and backend.kernels.begun and backend.kernels.decode
        print("equal" if got == want else f"{got} {want}")


if __name__ == "__main__":
    import sys

    _main(sys.argv[1])
