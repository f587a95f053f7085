# SPDX-License-Identifier: Apache-2.0
"""Benches on tiny models, and texts for them."""

import random

import pytest
from tiny_models import build


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """File of a text of some 500 tokens of the tiny tokenizers."""
    pick = random.Random(0)
    text = " ".join(pick.choice(("stone", "river", "lamp", "seven", "quiet", "door")) for _ in range(120))
    file = tmp_path_factory.mktemp("texts") / "words.txt"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def make_bench(checkpoints, words):
    """``make_bench(shape, strategy=, tokens=, layers_named=)`` -> (bench, tokenizer): window 32, pages of 16."""
    from sglang.hsa_calibrate.loading import load_model, read_text
    from sglang.hsa_calibrate.measure import Bench
    from sglang.hsa_calibrate.probe import kept_channels, probe
    from sglang.srt.layers.attention.hsa.config import HSAConfig

    def make(shape, strategy="head", tokens=331, layers_named="all"):
        model, tokenizer = load_model(str(build(shape, checkpoints)), "cpu", None)
        layers = probe(model)
        config = HSAConfig(
            topk=2, page_size=16, window_size=32, selection_strategy=strategy, layers=layers_named,
            chunk_repr="mean_std" if strategy == "softmax_head" else "slow_keys",
        )  # fmt: skip
        texts = [read_text(str(words), tokenizer).cut(tokens)]
        assert len(texts[0].ids) == tokens
        return Bench(model, layers, texts, config, kept_channels(model, layers), 32), tokenizer

    return make
