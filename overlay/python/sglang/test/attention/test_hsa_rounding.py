# SPDX-License-Identifier: Apache-2.0
"""The judge of engines that round in other ways: it lets rounding pass, and no token that was not read.

Also the checkpoint that several ranks of one KV head are compared with.
"""

import numpy as np
import pytest

from sglang.test.attention.hsa_fixtures import (
    random_prompts,
    repeat_kv_heads,
    write_random_model,
)
from sglang.test.attention.hsa_rounding import (
    Float32Model,
    assert_other_pages,
    assert_same_pages,
    assert_same_rounding,
    distances,
)

NEW, FIRST = 30, 200
NOISE = 1e-3
# Pages are left out of the last alone.
LENGTHS = (20, 30, 40, 50, 300)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Float32Model(write_random_model(tmp_path_factory.mktemp("model") / "qwen3"))


@pytest.fixture(scope="module")
def prompts():
    return random_prompts(LENGTHS)


def answers(model, prompts, noise, unread=0, part=NEW):
    """Answers of an engine that rounds, and does not read ``unread`` tokens in the middle of a long prompt.

    A long prompt's text parts from the others after ``part`` tokens.
    """
    rng = np.random.default_rng(int(noise * 1e6))
    outputs = []
    for prompt, tokens in zip(prompts, random_prompts([NEW] * len(prompts))):
        if len(prompt) > FIRST:
            tokens = tokens[:part] + [t + 1 for t in tokens[part:]]
        ids = [*prompt, *tokens]
        found = model.logprobs(ids)
        if unread and len(prompt) > FIRST:
            others = model.logprobs(ids[:50] + ids[50 + unread :])
            found = np.concatenate([found[: -len(others[50:])], others[50:]])
        found = found + noise * rng.normal(size=len(found))
        entries = [(x, token, None) for x, token in zip(found, ids[1:])]
        meta_info = dict(
            input_token_logprobs=[(None, ids[0], None), *entries[:-NEW]],
            output_token_logprobs=entries[-NEW:],
        )
        outputs.append(dict(output_ids=tokens, meta_info=meta_info))
    return outputs


def judge(model, prompts, other):
    """Against an engine that differs by a few tokens."""
    one = answers(model, prompts, NOISE)
    fewer = answers(model, prompts, NOISE, unread=16)
    moved, few = (distances(prompts, x, one, FIRST) for x in (other, fewer))
    assert_same_pages(moved, few)


@pytest.mark.parametrize("part", [NEW, 0])
def test_rounding_passes(model, prompts, part):
    other = answers(model, prompts, 1.1 * NOISE, part=part)
    rounding = model.errors(prompts, answers(model, prompts, NOISE))
    assert rounding.shape == (sum(LENGTHS) + len(LENGTHS) * (NEW - 1),)
    assert_same_rounding(model.errors(prompts, other), rounding)
    judge(model, prompts, other)


def test_more_rounding_fails(model, prompts):
    rounding = model.errors(prompts, answers(model, prompts, NOISE))
    with pytest.raises(AssertionError):
        assert_same_rounding(
            model.errors(prompts, answers(model, prompts, 1.5 * NOISE)), rounding
        )


@pytest.mark.parametrize("part", [NEW, 0])
def test_tokens_that_one_prompt_does_not_read_fail(model, prompts, part):
    """Whether its text parts or not, and however many short prompts agree."""
    other = answers(model, prompts, NOISE, unread=16, part=part)
    rounding = model.errors(prompts, answers(model, prompts, NOISE))
    with pytest.raises(AssertionError):
        assert_same_rounding(model.errors(prompts, other), rounding)
    with pytest.raises(AssertionError):
        judge(model, prompts, other)


def test_too_few_tokens_fail(model, prompts):
    one, other = (answers(model, prompts, NOISE, unread) for unread in (0, 16))
    some = distances(prompts, other, one, FIRST + 100)
    with pytest.raises(AssertionError):
        assert_same_pages(0 * some, some)


def test_rounding_is_not_other_pages(model, prompts):
    one, other, few = (
        answers(model, prompts, noise, unread)
        for noise, unread in ((NOISE, 0), (1.1 * NOISE, 0), (NOISE, 16))
    )
    moved, page = (distances(prompts, x, one, FIRST) for x in (other, few))
    assert_other_pages(page, page)
    with pytest.raises(AssertionError):
        assert_other_pages(moved, page)


def test_repeated_kv_heads_are_the_same_model(tmp_path):
    """Which a head in another place would not be."""
    path = write_random_model(tmp_path / "one")
    repeated = repeat_kv_heads(path, tmp_path / "repeated", 2)
    models = Float32Model(path), Float32Model(repeated)
    assert [m.model.config.num_key_value_heads for m in models] == [2, 4]
    [prompt] = random_prompts([100])
    one, other = (model.logprobs(prompt) for model in models)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
