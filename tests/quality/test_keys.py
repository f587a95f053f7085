# SPDX-License-Identifier: Apache-2.0
"""Pass keys: where they are planted, how answers are graded, and the documents around them."""

import pytest
from benchmarks.quality import arms, documents, keys, measure

DOCUMENTS = [[1000 * n + i for i in range(900)] * 10 for n in range(1, 9)]


def encode(text):
    """One token per character, none of which is a token of a document."""
    return [ord(character) % 256 for character in text]


@pytest.mark.parametrize("length", [1000, 4096, 7500])
def test_keys_lie_outside_of_window_and_first_page(length):
    made = keys.single(DOCUMENTS, encode, 1, length, 40)
    asked = len(keys.QUESTION)
    for i, question in enumerate(made):
        assert len(question.ids) == length and question.ids[0] == 1
        planted = "".join(map(chr, question.ids[question.begin : question.end]))
        assert planted == keys.KEY.format(key=question.key)
        # The first token of the question sees the fewest positions back, the last new one the most recent window.
        assert keys.PAGE <= question.begin and question.end <= length - asked - keys.WINDOW
        assert question.ids[question.end] // 1000 == i % 8 + 1  # the documents in turn
    assert len({question.key for question in made}) > 35


def test_the_body_around_a_key_is_the_document():
    for question in keys.single(DOCUMENTS, encode, 1, 4096, 8):
        body = question.ids[1 : question.begin] + question.ids[question.end : -len(keys.QUESTION)]
        document = DOCUMENTS[question.ids[1] // 1000 - 1]
        assert body == document[: len(body)]


def test_depths_are_spread_and_follow_the_seed():
    begins = [question.begin for question in keys.single(DOCUMENTS, encode, 1, 7500, 40)]
    assert min(begins) < 1500 and max(begins) > 5000 and len(set(begins)) > 35
    assert begins == [question.begin for question in keys.single(DOCUMENTS, encode, 1, 7500, 40)]
    assert begins != [question.begin for question in keys.single(DOCUMENTS, encode, 1, 7500, 40, seed=12)]


@pytest.mark.parametrize("count", [1, 2, 6])
def test_shared_prompts_differ_in_the_question_alone(count):
    prefix, made = keys.shared(DOCUMENTS[0], encode, 1, 3000, count)
    assert len(made) == count
    for question, name in zip(made, keys.SUBJECTS):
        assert question.ids[: len(prefix)] == prefix and 2900 < len(question.ids) <= 3000
        planted = "".join(map(chr, question.ids[question.begin : question.end]))
        assert planted == keys.NAMED_KEY.format(name=name, key=question.key)
        assert "".join(map(chr, question.ids[len(prefix) :])) == keys.NAMED_QUESTION.format(name=name)
        assert keys.PAGE <= question.begin and question.end <= len(prefix) - keys.WINDOW


@pytest.mark.parametrize(
    "text, right",
    [
        (" 12345", True), ("12345. Remember", True), ("\n12345\n", True), (" 12345 6", True),
        (" 123456", False), (" 1234", False), (" 54321", False), ("", False), (" is 12345", False), (" 1 2345", False),
    ],
)  # fmt: skip
def test_grading(text, right):
    assert keys.grade("12345", text) is right


def test_contexts_ask_the_same_of_every_arm():
    [full] = measure.contexts(DOCUMENTS, encode, 1, [4096], 40, shared=False)
    assert [len(text) for text in full.texts] == [4096] * 8 and len(full.questions) == 40
    [small] = measure.contexts(DOCUMENTS, encode, 1, [3000], 6, shared=True)
    assert len(small.texts) == 1 and len(small.questions) == 6


def test_documents_are_prose_and_long_enough():
    whole = documents.text()
    assert whole == documents.text()
    lines = whole.split("\n")
    assert not [line for line in lines if " ::= " in line or line and not line.strip("*=-")]
    parts = documents.cut(whole)
    assert len(parts) == 8 and "\n\n".join(parts) == whole
    assert min(map(len, parts)) > 8000 * 3  # a token is about four characters
    assert not set(parts[0].split("\n\n")) & set(parts[1].split("\n\n"))
    with pytest.raises(documents.DocumentError, match="shortest document has .* tokens, 1000000 are needed"):
        documents.tokenized(str.split, 1000000)


def test_arms_of_the_command_line():
    arm = arms.parse("kind=mean,budget=16,layers=0,2,8-29")
    assert arm.arguments("torch_native", True) == [
        "--attention-backend", "hsa", "--hsa-prefill", "sparse", "--hsa-chunk-repr", "mean", "--hsa-topk", "16", "--hsa-layers", "0,2,8-29"
    ]  # fmt: skip
    assert arms.parse("strategy=head").arguments("fa3", False)[4:6] == ["--hsa-dense-backend", "fa3"]
    for wrong in ("mean", "kind=", "window=3", "budget=many", "budget=0", "kind=mean,kind=mean", "3"):
        with pytest.raises(arms.ArmError):
            arms.parse(wrong)


def test_half_the_budget_is_half_the_default():
    dense, default, half, *_ = arms.full(arms.default_budget(), [])
    assert dense.role == arms.DENSE and default.options == ()
    assert 2 * int(dict(half.options)["budget"]) == arms.default_budget()
