# SPDX-License-Identifier: Apache-2.0
"""The judge of engines that round in other ways: it lets rounding pass, and neither a wrong page nor a wrong head."""

import numpy as np
import pytest

from sglang.test.attention.hsa_fixtures import random_prompts, write_random_model
from sglang.test.attention.hsa_rounding import (
    Float32Model,
    assert_same_pages,
    assert_same_rounding,
)

NEW = 30
NOISE = 1e-3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Float32Model(write_random_model(tmp_path_factory.mktemp("model") / "qwen3"))


@pytest.fixture(scope="module")
def prompts():
    return random_prompts((20, 30, 40, 50))


def answers(model, prompts, noise, unread=0):
    """Random answers with the log-probabilities of an engine that rounds, and does not read the first tokens of a prompt."""
    rng = np.random.default_rng(int(noise * 1e6))
    outputs = []
    for prompt, tokens in zip(prompts, random_prompts([NEW] * len(prompts))):
        logprobs = model.logprobs([*prompt[unread:], *tokens])[-NEW:]
        logprobs = logprobs + noise * rng.normal(size=NEW)
        entries = [(x, token, None) for x, token in zip(logprobs, tokens)]
        meta_info = dict(output_token_logprobs=entries)
        outputs.append(dict(output_ids=tokens, meta_info=meta_info))
    return outputs


def test_rounding_passes(model, prompts):
    one, other = (answers(model, prompts, noise) for noise in (NOISE, 1.5 * NOISE))
    rounding = model.errors(prompts, one)
    assert rounding.shape == (len(prompts) * NEW,)
    assert_same_rounding(model.errors(prompts, other), rounding)
    assert_same_pages(other, one, rounding)


def test_a_prompt_that_is_not_read_whole_fails(model, prompts):
    one, other = answers(model, prompts, NOISE), answers(model, prompts, NOISE, 10)
    rounding = model.errors(prompts, one)
    with pytest.raises(AssertionError):
        assert_same_rounding(model.errors(prompts, other), rounding)
    with pytest.raises(AssertionError):
        assert_same_pages(other, one, rounding)


def test_texts_that_part_at_once_fail(model, prompts):
    one = answers(model, prompts, NOISE)
    other = [dict(a, output_ids=[t + 1 for t in a["output_ids"]]) for a in one]
    with pytest.raises(AssertionError):
        assert_same_pages(other, one, model.errors(prompts, one))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
