# SPDX-License-Identifier: Apache-2.0
"""Sampling, stop conditions, text, streams."""

import threading

import pytest
import torch
from tiny_models import prompt_ids

from sglang.mini import SamplingParams
from sglang.mini.sampling import TextStream, distribution, sample

PROMPT = prompt_ids(40, seed=1)


@pytest.mark.parametrize("temperature, top_k, top_p", ((1.0, 0, 1.0), (0.7, 0, 0.9), (1.5, 7, 1.0), (2.0, 20, 0.5)))
def test_distribution_equals_its_definition(temperature, top_k, top_p):
    """Temperature, then the top_k most likely, then the fewest of them that reach top_p of what is left."""
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 3
    weights = (logits.double() / temperature).exp()
    order = weights.argsort(descending=True).tolist()
    kept = order[:top_k] if top_k else order
    total, reached, nucleus = float(weights[kept].sum()), 0.0, []
    for token in kept:
        if reached / total < top_p:
            nucleus.append(token)
            reached += float(weights[token])
    want = torch.zeros(100, dtype=torch.float64)
    want[nucleus] = weights[nucleus] / weights[nucleus].sum()
    got = distribution(logits, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-5)


def test_draws_follow_the_distribution():
    """Chi-squared over 4,000 draws of 6 tokens: 5 degrees of freedom, 25.7 is passed once in 10,000 times."""
    logits, params = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0]), SamplingParams(temperature=1.0)
    generator = torch.Generator().manual_seed(0)
    draws = [sample(logits[None], [params], [generator])[0] for _ in range(4000)]
    counts = torch.bincount(torch.tensor(draws), minlength=6)
    expected = 4000 * logits.softmax(-1)
    assert float(((counts - expected) ** 2 / expected).sum()) < 25.7


@pytest.mark.parametrize("temperature", (1e-45, 1e-6, 1e30))
def test_extreme_temperatures(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    token = sample(logits, [SamplingParams(temperature=temperature)], [torch.Generator()])[0]
    assert token == 1 if temperature < 1 else token in (0, 1, 2)


def test_one_token_to_choose_from_is_greedy(world):
    engine, want = world("qwen3").engine(), world("qwen3").expected(PROMPT, 10)
    for params in (dict(top_k=1), dict(top_p=1e-9)):
        result = engine.generate(PROMPT, SamplingParams(max_tokens=10, temperature=2.0, ignore_eos=True, **params))
        assert result.token_ids == want


def test_seeds(world):
    """A seeded request yields the same tokens alone, in a batch with itself, and after being retracted."""
    w = world("qwen3")

    def params(seed):
        return SamplingParams(max_tokens=30, temperature=1.0, top_k=50, seed=seed, ignore_eos=True)

    engine = w.engine(page_size=16)
    alone = engine.generate(PROMPT, params(1)).token_ids
    batch = engine.generate([PROMPT] * 4, [params(1), params(2), params(None), params(None)])
    assert batch[0].token_ids == alone
    assert len({tuple(r.token_ids) for r in batch}) == 4
    tight = w.engine(page_size=16, token_budget=160, prefix_cache=False)
    assert tight.generate([PROMPT] * 4, [params(3), params(2), params(2), params(1)])[3].token_ids == alone
    assert tight.stats()["retracted"] > 0


def test_end_of_sequence(world):
    w = world("qwen3")
    engine = w.engine()
    want = w.expected(PROMPT, 12)
    engine.scheduler.eos = frozenset([want[5]])
    result = engine.generate(PROMPT, SamplingParams(max_tokens=12))
    cut = want[: want.index(want[5]) + 1]
    assert (result.token_ids, result.finish_reason) == (cut, "stop")
    result = engine.generate(PROMPT, SamplingParams(max_tokens=12, ignore_eos=True))
    assert (result.token_ids, result.finish_reason) == (want, "length")
    result = engine.generate(PROMPT, SamplingParams(max_tokens=12, ignore_eos=True, stop_token_ids=(want[5],)))
    assert (result.token_ids, result.finish_reason) == (cut, "stop")


def test_the_checkpoint_names_its_end_of_sequence(world):
    w = world("qwen3")
    assert w.engine().scheduler.eos == {w.tokenizer.eos_token_id}


def test_stop_strings(world):
    w = world("llama")
    engine = w.engine()
    full = engine.generate("Once upon a time", SamplingParams(max_tokens=40, ignore_eos=True))
    text = full.text
    for begin in range(5, 25, 4):
        stop = text[begin : begin + 3]
        params = SamplingParams(max_tokens=40, ignore_eos=True, stop=("never there", stop))
        pieces = list(engine.stream("Once upon a time", params))
        want = text[: text.index(stop)]
        assert "".join(piece.text for piece in pieces) == want
        assert pieces[-1].finish_reason == "stop" and len(pieces) < 40


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens).decode("utf-8", errors="replace")


@pytest.mark.parametrize("stop", ((), ("zz",), ("naïve €", "€uro")))
def test_text_is_never_taken_back(stop):
    text = "a naïve €ur€o 🙂 end"
    stream = TextStream(Bytes(), [120], stop)
    data = text.encode()
    pieces = [stream.push(token, last=i == len(data) - 1) for i, token in enumerate(data)]
    want = min((text[: text.index(s)] for s in stop if s in text), key=len, default=text)
    assert "".join(pieces) == stream.text == want
    assert "\ufffd" not in want


def test_a_stream_equals_generate(world):
    w = world("qwen3")
    engine = w.engine()
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    prompts = ["Hello there", "", "How are you?"]
    want = engine.generate(prompts, params)
    got = [["", [], None, None] for _ in prompts]
    for delta in engine.stream(prompts, params):
        entry = got[delta.index]
        assert entry[2] is None, "nothing follows the end"
        entry[0] += delta.text
        entry[1] += delta.token_ids
        entry[2:] = delta.finish_reason, delta.error
    assert got == [[r.text, r.token_ids, r.finish_reason, r.error] for r in want]
    assert want[0].text == w.tokenizer.decode(want[0].token_ids, skip_special_tokens=True)


def test_closing_a_stream_cancels_it(world, check_books):
    engine = world("qwen3").engine(page_size=16)
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    stream = engine.stream([PROMPT, PROMPT[:5]], params)
    next(stream)
    assert len(engine.scheduler.running) == 2
    stream.close()
    check_books(engine)
    engine.stream(PROMPT, params)  # never started: nothing to cancel
    check_books(engine)


def test_streams_side_by_side_and_in_threads(world, check_books):
    w = world("qwen3")
    engine = w.engine(page_size=16, chunk_size=32, max_running=3)
    params = SamplingParams(max_tokens=15, ignore_eos=True)
    prompts = [prompt_ids(20 + n, seed=n) for n in range(6)]
    got = [[] for _ in prompts]
    first, second = (engine.stream(prompts[i], params) for i in (0, 1))
    for a, b in zip(first, second):
        got[0] += a.token_ids
        got[1] += b.token_ids

    def read(i):
        for delta in engine.stream(prompts[i], params):
            got[i] += delta.token_ids

    threads = [threading.Thread(target=read, args=(i,)) for i in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.close()
    assert got == [w.expected(p, 15) for p in prompts]
    check_books(engine)
