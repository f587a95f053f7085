# SPDX-License-Identifier: Apache-2.0
"""Whatever a caller passes with a request, or does with it: the requests beside it and after it get their tokens."""

import gc
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from tiny_models import prompt_ids

from sglang.mini import MiniEngine, MiniError, SamplingParams
from sglang.mini.sampling import TextStream, sample

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
PROMPT = prompt_ids(20, seed=1)
HUGE = 10**5000  # Python does not print it
NAN, INFINITY = float("nan"), float("inf")

BAD_PARAMETERS = {
    "max_tokens": (1.5, "3", None, True, INFINITY, NAN, -1, torch.tensor(3)),
    "temperature": ("a", None, True, HUGE, INFINITY, NAN, -0.1, [1.0], 1j),
    "top_p": ("a", None, True, NAN, INFINITY, 0, 1.01, -1, Fraction(1, 10**400), [0.5]),
    "top_k": (1.5, "3", None, True, NAN, INFINITY, -1, [3]),
    "seed": (2**64, -(2**63) - 1, HUGE, 1.5, "a", True, NAN, [1]),
    "stop": (7, [3], [b"x"], b"x", None, "", ["a", ""], {"a": 1}, [["a"]], "q" * 4097, ["x"] * 4097, iter("ab")),
    "stop_token_ids": (7, None, "12", b"ab", [1.5], ["a"], [None], [True], [-1], [NAN], {3: 4}, [[3]], torch.tensor([0.5])),
    "ignore_eos": ("no", 1, None),
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_bad_parameters_are_one_line(name):
    for value in BAD_PARAMETERS[name]:
        with pytest.raises(MiniError, match=f"^{name} .* is not valid: use ") as caught:
            SamplingParams(**{name: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def neighbours(engine, w, action):
    """Tokens of a request that runs while ``action`` is done and of one after it equal those of the request alone."""
    beside = engine.submit(PROMPT, GREEDY)
    engine.step()
    result = action()
    rounds = 0
    while engine.step():
        rounds += 1
        assert rounds < 100, "the engine makes no progress"
    after = engine.generate(PROMPT, GREEDY)
    assert beside.result.token_ids == after.token_ids == w.expected(PROMPT, 12)
    return result


UNUSUAL = (
    {"max_tokens": np.int64(4)},
    {"temperature": np.float32(0.7), "top_k": np.int64(3), "top_p": Fraction(1, 2), "seed": np.uint64(2**64 - 1)},
    {"temperature": 1e300, "top_p": 1e-320, "seed": -(2**63)},
    {"temperature": 1e-320, "top_k": 10**30},
    {"temperature": 1, "top_p": 1, "top_k": HUGE},
    {"stop": ["q" * 4096], "stop_token_ids": np.array([511])},
    {"stop": {"a", "b"}, "stop_token_ids": torch.tensor([511])},
    {"stop_token_ids": list(range(1, 4)) * 100000},
)


@pytest.mark.parametrize("options", UNUSUAL, ids=range(len(UNUSUAL)))
def test_unusual_parameters_run(world, check_books, options):
    w = world("qwen3")
    engine = w.engine(page_size=16)
    params = SamplingParams(**{"max_tokens": 4, "ignore_eos": True, **options})
    result = neighbours(engine, w, lambda: engine.generate(prompt_ids(9, seed=3), params))
    assert result.error is None and 1 <= len(result.token_ids) <= 4
    check_books(engine)


WRONG_REQUESTS = (
    (prompt_ids(9), SamplingParams(stop_token_ids=[5, 512]), "stop token id 512 is not in the vocabulary of 512"),
    (prompt_ids(9), SamplingParams(stop_token_ids=[HUGE]), "stop token id <int> is not in the vocabulary"),
    (prompt_ids(9), SamplingParams(max_tokens=10**30), "which with max_tokens 1000"),
    (prompt_ids(9), SamplingParams(max_tokens=HUGE), "which with max_tokens <int>"),
    ([HUGE], None, "token id <int> is not in the vocabulary"),
    ([1] * 10**6, None, "1000000 tokens"),
    (b"abc", None, "contain b'abc'"),
    ({5: 6}, None, "contain {5: 6}"),
    ({5}, None, "contain {5}"),
    ([1.0, 2.0], None, "contain 1.0"),
    ([True], None, "contain True"),
    ([[1]], None, "contain [1]"),
    (iter([1]), None, "contain <list_iterat"),
    (np.array(3), None, "contain 3"),
    ("\ud800", None, "the tokenizer cannot read the prompt (TypeError("),
    (prompt_ids(9), {"max_tokens": 3}, "sampling {'max_tokens': 3} is not valid: use SamplingParams"),
    (prompt_ids(9), {}, "sampling {} is not valid"),
    (prompt_ids(9), SamplingParams, "sampling <class "),
)


def test_wrong_requests_fail_alone(world, check_books):
    w = world("qwen3")
    engine = w.engine(page_size=16, token_budget=1024)
    requests = neighbours(engine, w, lambda: [engine.submit(*request[:2]) for request in WRONG_REQUESTS])
    prompts, sampling = ([request[i] for request in WRONG_REQUESTS] for i in (0, 1))
    results = neighbours(engine, w, lambda: engine.generate([*prompts, PROMPT], [*sampling, GREEDY]))
    assert results.pop().token_ids == w.expected(PROMPT, 12)
    for (_, _, words), request, result in zip(WRONG_REQUESTS, requests, results):
        for found in (request.result, result):
            assert found.finish_reason == "error" and found.token_ids == []
            assert words in found.error and "\n" not in found.error
    check_books(engine)


@pytest.mark.parametrize("prompts", (7, None, b"abc", {"a": 1}, object(), iter([[1]]), [1, "2"], [1, [2]], [True]))
def test_what_is_no_list_of_prompts_is_one_wrong_prompt(world, prompts):
    engine = world("qwen3").engine()
    assert "a prompt is text or a list of token ids" in engine.generate(prompts).error
    (delta,) = engine.stream(prompts)
    assert delta.finish_reason == "error"


def test_arrays_and_tensors_are_prompts(world):
    w = world("qwen3")
    engine = w.engine()
    want = w.expected(PROMPT, 12)
    for one in (np.array(PROMPT), torch.tensor(PROMPT), tuple(PROMPT)):
        assert engine.generate(one, GREEDY).token_ids == want
        assert [result.token_ids for result in engine.generate([one, one], GREEDY)] == [want, want]
        assert engine.submit(one, GREEDY).result.error is None


def test_a_call_that_raises_leaves_nothing_behind(world, check_books):
    class Prompt(list):
        def __iter__(self):
            raise KeyError("a caller's own code")

    w = world("qwen3")
    engine = w.engine(page_size=16)

    def call():
        with pytest.raises(KeyError):
            engine.generate([prompt_ids(9), Prompt([1])], GREEDY)
        assert len(engine.scheduler.running) == 1 and not engine.scheduler.waiting

    neighbours(engine, w, call)
    check_books(engine)


class Tokenizer:
    """One letter per token, but none for 511, as of vocabularies that are padded."""

    eos_token_id = 1

    def decode(self, tokens, skip_special_tokens):
        return "".join(None if token == 511 else "x" for token in tokens)


def test_a_tokenizer_that_cannot_decode_a_token(world, check_books):
    w = world("qwen3")
    engine = MiniEngine(w.model, Tokenizer(), page_size=16)
    result = neighbours(engine, w, lambda: engine.generate([5, 511], GREEDY))
    assert result.finish_reason == "error" and "the tokenizer cannot decode its tokens: TypeError(" in result.error
    check_books(engine)


def test_a_stream_that_is_collected_as_garbage_in_the_middle_of_a_round(world, check_books):
    class Owner:
        pass

    w = world("qwen3")
    engine = w.engine(page_size=16)
    forward, batches = engine.scheduler.forward, []

    def collecting(batch):
        logits = forward(batch)
        batches.append(len(batch))
        gc.collect()
        return logits

    def forget():
        owner = Owner()
        owner.stream, owner.itself = engine.stream(prompt_ids(30, seed=2), GREEDY), owner
        next(owner.stream)
        engine.scheduler.forward = collecting

    gc.disable()
    try:
        neighbours(engine, w, forget)
    finally:
        gc.enable()
    assert batches[:2] == [2, 1], "it ran in the round in which it was collected, and in no other"
    check_books(engine)


def test_a_caller_may_take_tokens_out_of_the_result(world, check_books):
    w = world("qwen3")
    engine = w.engine(page_size=16, token_budget=64)
    request = engine.submit(PROMPT, GREEDY)
    taken = []
    for _ in range(12):
        engine.step()
        taken += request.result.token_ids
        request.result.token_ids.clear()
    assert request.result.finish_reason == "length" and taken == w.expected(PROMPT, 12)
    check_books(engine)


def test_a_request_of_another_engine_is_not_cancelled(world, check_books):
    w = world("qwen3")
    engine, other = w.engine(page_size=16), w.engine(page_size=16)
    request = engine.submit(PROMPT, GREEDY)
    engine.step()
    with pytest.raises(MiniError, match="of another engine"):
        other.cancel(request)
    while engine.step():
        pass
    other.cancel(request)  # it is finished: nothing to do
    engine.cancel(request)
    assert (request.result.finish_reason, request.result.token_ids) == ("length", w.expected(PROMPT, 12))
    check_books(engine)


def test_cancelling_from_many_threads(world, check_books):
    w = world("qwen3")
    engine = w.engine(page_size=16, max_running=3)

    def come_and_go(seed):
        for n in range(5):
            stream = engine.stream(prompt_ids(20 + n, seed=seed), GREEDY)
            for _ in range(n):
                next(stream)
            stream.close()

    def call():
        threads = [threading.Thread(target=come_and_go, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    neighbours(engine, w, call)
    check_books(engine)


def test_a_temperature_beyond_float32_keeps_impossible_tokens_out():
    logits = torch.tensor([[1.0, -INFINITY, 2.0]])
    generator = torch.Generator().manual_seed(0)
    tokens = {sample(logits, [SamplingParams(temperature=1e300)], [generator])[0] for _ in range(50)}
    assert tokens == {0, 2}


def test_a_long_stop_string_costs_nothing_until_it_begins(monkeypatch):
    """Work per token goes with the text that is held back, not with the stop strings."""

    class Counted(str):
        cut = 0

        def __getitem__(self, place):
            Counted.cut += 1
            return super().__getitem__(place)

    stream = TextStream(Tokenizer(), [7], [Counted("q" * 4000)])
    assert "".join(stream.push(token, last=token == 99) for token in range(100)) == "x" * 100
    assert Counted.cut <= 100
