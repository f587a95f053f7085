# SPDX-License-Identifier: Apache-2.0
"""Models that read images: the tokens of transformers and of the oracle, for prompts with and without images."""

import pytest
from hf_oracle import attend_as_oracle
from tiny_models import greedy_tokens
from tiny_vision import IMAGE, build, hf_greedy, inputs, load, words, write_image

from sglang.srt.layers.attention.hsa.compat import graphs_hold_metadata
from sglang.test.attention.hsa_oracle import Options

NEW = 32
PAGE = 64
# A chunk ends inside an image, and so does a page.
HSA = dict(
    attention_backend="hsa", hsa_layers="all", hsa_prefill="sparse", hsa_strict=True, chunked_prefill_size=100
)  # fmt: skip
EVERY_PAGE = dict(HSA, hsa_topk=10**6)
SPARSE = dict(HSA, hsa_topk=2, hsa_window_size=128)
ORACLE = Options(topk=2, window_size=128, kind="slow_keys", strategy="head")
OTHERS = ("qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl")

pytestmark = pytest.mark.skipif(not graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier")
every_shape = pytest.mark.parametrize("shape", ["qwen3_vl", *(pytest.param(s, marks=pytest.mark.slow) for s in OTHERS)])


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """(text, images): the first two differ by their image alone, the third has both, the others none."""
    folder = tmp_path_factory.mktemp("images")
    first, second = (write_image(folder / f"{seed}.png", 224, 448, seed) for seed in (1, 2))
    text = words(200, seed=1) + IMAGE + words(400, seed=2)
    both = words(90, seed=3) + IMAGE + words(300, seed=4) + IMAGE + words(20, seed=5)
    return [(text, [first]), (text, [second]), (both, [second, first]), (words(700, seed=6), []), (words(5, seed=7), [])]


def requests(prompts):
    """The first image, the second, and the first again, each alone; then all prompts in a batch."""
    alone = [batch([prompt]) for prompt in (prompts[0], prompts[1], prompts[0])]
    return [*alone, batch(prompts)]


def batch(prompts):
    texts, images = zip(*prompts)
    return dict(texts=texts, images=[names or None for names in images], max_new_tokens=NEW)


def assert_answers(results, expected, ids):
    """The tokens, and that a prefix is cached as far as the images agree."""
    first, other, again, together = results
    assert [r["tokens"][0] for r in (first, other, again)] == [expected[0], expected[1], expected[0]]
    assert together["tokens"] == expected
    assert expected[0] != expected[1], "the image has to matter"
    token = max(ids, key=ids.count)
    image = range(ids.index(token), len(ids) - ids[::-1].index(token))
    assert len(image) > PAGE
    assert first["cached"] == [0]
    assert other["cached"] == [image.start // PAGE * PAGE]
    assert again["cached"] == [(len(ids) - 1) // PAGE * PAGE] and again["cached"][0] > image.stop


@every_shape
def test_every_page_is_what_transformers_computes(run_engine, checkpoints, prompts, shape):
    path = build(shape, checkpoints)
    results, info = run_engine(
        dict(model_path=str(path), **EVERY_PAGE), requests(prompts), info=True, client="vision_child.py"
    )
    expected = [hf_greedy(path, *prompt, NEW) for prompt in prompts]
    assert_answers(results, expected, inputs(path, *prompts[0])[0])
    counts = info["hsa_counters"]
    assert counts["pages_selected"] == counts["pages_candidate"] > 0 == counts["reprs_healed"]


@every_shape
def test_few_pages_equal_the_brute_force_model(run_engine, checkpoints, prompts, shape):
    path = build(shape, checkpoints)
    results, info = run_engine(
        dict(model_path=str(path), **SPARSE), requests(prompts), info=True, client="vision_child.py"
    )
    expected = [oracle_greedy(path, *prompt) for prompt in prompts]
    for want, prompt in zip(expected[:4], prompts):
        assert want != hf_greedy(path, *prompt, NEW), "selection has to matter for each long prompt"
    assert_answers(results, expected, inputs(path, *prompts[0])[0])
    counts = info["hsa_counters"]
    assert 0 < counts["pages_selected"] < counts["pages_candidate"] and counts["reprs_healed"] == 0


def oracle_greedy(path, text, images):
    model = load(path)  # anew: transformers' model remembers how many positions the last images took
    attend_as_oracle(model, ORACLE)
    ids, given = inputs(path, text, images)
    return greedy_tokens(model, ids, NEW, **given)
