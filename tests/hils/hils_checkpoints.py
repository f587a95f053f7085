# SPDX-License-Identifier: Apache-2.0
"""Tiny HiLS checkpoints with random weights, and what the reference's own modules compute of them in float32 on a CPU.

``expected.json`` names the revision of the reference. Each case is a prompt, its log-probabilities, the pages that its last
token selects in each HSA layer, and the greedy tokens with their log-probabilities and gaps to the second best.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "checkpoints"
NAMES = sorted(path.name for path in FOLDER.iterdir())
LOGPROB = 1e-4  # float32 on both sides
CLEAR_GAP = 1e-3  # between the best token and the next


def cases(name):
    return json.loads((FOLDER / name / "expected.json").read_text())["cases"]


def engine_arguments(name, **more):
    own = dict(model_path=str(FOLDER / name), attention_backend="hsa", skip_tokenizer_init=True, max_total_tokens=20000)
    return {**own, **more}


def request(some_cases):
    """One batch of all prompts, as long as the longest answer."""
    new = max(len(case["tokens"]) for case in some_cases)
    return dict(
        prompts=[case["prompt"] for case in some_cases], max_new_tokens=new, logprobs=True, prompt_logprobs=True
    )


def check_answers(some_cases, result):
    """The reference's log-probabilities of prompts and of answers, and its tokens up to one that is not clear.

    Returns (tokens of answers that were compared, largest difference).
    """
    compared, largest = 0, 0.0
    for i, case in enumerate(some_cases):
        ours = result["prompt_logprobs"][i][1:]  # the first token has none
        assert len(ours) == len(case["prompt_logprobs"])
        of_prompt = max_difference(ours, case["prompt_logprobs"])
        assert of_prompt < LOGPROB
        clear, of_answer = check_answer(case, result["tokens"][i], result["logprobs"][i])
        compared, largest = compared + clear, max(largest, of_prompt, of_answer)
    return compared, largest


def check_answer(case, tokens, logprobs):
    unclear = next((j for j, gap in enumerate(case["gaps"]) if gap <= CLEAR_GAP), len(case["tokens"]))
    assert tokens[:unclear] == case["tokens"][:unclear], len(case["prompt"])
    difference = max_difference(logprobs[:unclear], case["logprobs"][:unclear])
    assert difference < LOGPROB
    return unclear, difference


def max_difference(ours, theirs):
    return max((abs(a - b) for a, b in zip(ours, theirs)), default=0.0)
