# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the mini engine's tests: models by type, their expected tokens, and the books of the cache."""

import copy
import functools
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import build

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "hsa"), str(TESTS.parent)]  # hf_oracle, benchmarks


class World:
    """One tiny checkpoint: transformers' own model as the oracle, and copies for engines."""

    def __init__(self, shape, root, **config):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.path = build(shape, root, **config)
        # Eager, since SDPA ignores soft caps.
        self.oracle = AutoModelForCausalLM.from_pretrained(
            self.path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)

    @functools.cached_property
    def model(self):
        return copy.deepcopy(self.oracle)

    def engine(self, **options):
        from sglang.mini import MiniEngine

        return MiniEngine(self.model, self.tokenizer, **options)

    def expected(self, prompt, tokens):
        """Greedy tokens of model.generate; the end of sequence does not stop it."""
        return list(self._expected(tuple(prompt), tokens))

    @functools.lru_cache(maxsize=None)  # noqa: B019, worlds live as long as the session
    def _expected(self, prompt, tokens):
        ids = torch.tensor([prompt])
        out = self.oracle.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=-1,
            pad_token_id=0,
        )
        return tuple(out[0, len(prompt) :].tolist())


@pytest.fixture(scope="session")
def world(checkpoints):
    """``world(shape)``: built once per session."""
    return functools.lru_cache(maxsize=None)(lambda shape, **config: World(shape, checkpoints, **config))


@pytest.fixture(scope="session")
def check_books():
    """``check_books(engine)``: no request is left, and every page is either free or in the prefix cache, once."""

    def check(engine):
        scheduler, kv = engine.scheduler, engine.kv
        assert not scheduler.running and not scheduler.waiting
        cached = engine.prefix.pages()
        free = list(kv._free)
        assert sorted(cached + free) == list(range(kv.num_pages))
        assert [kv.refs[page] for page in cached] == [1] * len(cached)
        assert [kv.refs[page] for page in free] == [0] * len(free)
        assert sorted(kv.free_rows) == list(range(len(kv.req_to_token)))

    return check
