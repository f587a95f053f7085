# SPDX-License-Identifier: Apache-2.0
"""Samples: deterministic, as long as asked with any tokenizer, facts where they should be, grades exact."""

import hashlib
import random
import re
from collections import Counter

import pytest
import vocabulary
from tiny_models import build

from benchmarks.retrieval import lexicon, samples, tasks

DEPTHS = (0.1, 0.5, 0.9)


def words(text):
    return len(text.split())


@pytest.fixture(scope="module")
def counters(tmp_path_factory):
    """Three tokenizers: of words, of bytes and letter pairs, and the checkpoint's own."""
    from transformers import AutoTokenizer

    byte_level = AutoTokenizer.from_pretrained(build("qwen3", tmp_path_factory.mktemp("tiny")))
    own = vocabulary.build()
    return {
        "words": words,
        "bytes": lambda text: len(byte_level(text)["input_ids"]),
        "own": lambda text: len(own(text)["input_ids"]),
    }


@pytest.mark.parametrize("task", tasks.TASKS)
def test_same_arguments_same_sample(task):
    first, second = (samples.make(task, 700, 0.5, 3, words) for _ in range(2))
    assert first == second
    others = [samples.make(task, 700, 0.5, 4, words), samples.make(task, 700, 0.3, 3, words)]
    assert len({s.prompt for s in [first, *others]}) == 3
    assert first.answers != others[0].answers


def test_samples_are_the_same_everywhere():
    """Not only within one process: the hash of one sample of each task was written down."""
    digest = hashlib.sha256()
    for task in tasks.TASKS:
        digest.update(samples.make(task, 900, 0.3, 7, words).prompt.encode())
    assert digest.hexdigest()[:16] == "29978cca5898fbfa"


@pytest.mark.parametrize("tokenizer, length", [("words", 640), ("own", 1000), ("own", 4096), ("bytes", 4500)])
@pytest.mark.parametrize("task", tasks.TASKS)
def test_length_is_kept(counters, tokenizer, length, task):
    count = counters[tokenizer]
    sample = samples.make(task, length, 0.5, 0, count)
    assert sample.tokens == count(sample.prompt)
    room = length - samples.NEW_TOKENS - sample.tokens
    longest = max(count(tasks.filler(random.Random(i))) for i in range(50))
    assert 0 <= room <= 1.2 * longest, "one more sentence would have fitted"


def test_too_short_a_length_is_refused():
    with pytest.raises(ValueError, match="frequent needs at least 1.. tokens with this tokenizer, length is 100"):
        samples.make("frequent", 100, 0.5, 0, words)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_needle_lies_at_its_depth(depth):
    prompt = samples.make("multikey", 3000, depth, 0, words).prompt
    name = re.search(r"pass key of (\w+)\?", prompt)[1]
    text = prompt[: prompt.index("\n\nQuestion")]
    assert abs(text.index(f"The pass key of {name} is") / len(text) - depth) < 0.05


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("task", ["multivalue", "multiquery", "variables", "common", "frequent"])
def test_all_asked_facts_lie_around_the_depth(task, depth):
    problem = tasks.TASKS[task](random.Random(0), 4096, depth)
    asked = [f for f in problem.facts if any(a in f.sentence for a in problem.answers)]
    assert len(asked) >= tasks.VALUES
    assert all(abs(f.place - depth) <= tasks.BAND + 1e-9 for f in asked)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_text_alone_has_the_answer(task, seed):
    """A reader of the text that knows the rules finds what the sample says."""
    sample = samples.make(task, 900, 0.5, seed, words)
    text, question = sample.prompt.split("\n\nQuestion: ")
    if task in ("common", "frequent"):
        counts = Counter(w for line in re.findall(r"List: ([\w ]+)\.", text) for w in line.split())
        ranked = counts.most_common()
        asked = len(sample.answers)
        assert ranked[asked - 1][1] > ranked[asked][1], "a tie has no answer"
        found = {word for word, _ in ranked[:asked]}
    elif task == "variables":
        found, copies = {re.search(r"does (\d+) fill", question)[1]}, re.findall(
            r"Here (\w+) fills (\w+)\.", text
        )
        for _ in copies:
            found |= {b for a, b in copies if a in found}
        found = {v for v in found if not v.isdigit()}
    else:
        names = re.search(r"pass keys? of ([\w, ]+)\?", question)[1].split(", ")
        found = {v for n, v in re.findall(r"pass key of (\w+) is (\d{6})\.", text) if n in names}
    assert found == set(sample.answers)
    assert len(set(sample.answers)) == len(sample.answers)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_grader_accepts_only_the_answer(task):
    sample = samples.make(task, 900, 0.5, 1, words)

    def graded(text):
        return tasks.grade(sample.answers, sample.pattern, text)

    count = len(sample.answers)
    assert graded(sample.reply) == tasks.Grade(True, 1.0, count)
    assert graded(f" Surely{sample.reply}\n000000 and more of later lines") == tasks.Grade(True, 1.0, count)
    assert graded(" " + ", ".join(reversed(sample.answers)) + ".").exact, "the order does not count"
    for refusal in ("", " \n", "I cannot help with that."):
        assert graded(refusal) == tasks.Grade(False, 0.0, 0)
    other = {tasks.NUMBER: "123456", tasks.NAME: lexicon.NAMES, tasks.WORD: lexicon.COUNTED}[sample.pattern]
    wrong = other if isinstance(other, str) else next(w for w in other if w not in sample.answers)
    assert wrong not in sample.answers
    one_wrong = [wrong, *sample.answers[1:]]
    assert graded(" " + ", ".join(one_wrong)) == tasks.Grade(False, (count - 1) / count, count)
    assert graded(f"{sample.reply[:-1]}, {wrong}.") == tasks.Grade(False, 1.0, count + 1), "one item too many"
    if count > 1:
        assert graded(" " + ", ".join(sample.answers[1:])) == tasks.Grade(False, (count - 1) / count, count - 1)
    first = sample.answers[0]
    assert not graded(
        sample.reply.replace(first, first + "7" if first.isdigit() else first + "s")
    ).exact, "a prefix is not it"


def test_word_lists_are_apart():
    groups = [
        set(lexicon.NAMES),
        set(lexicon.COUNTED),
        {*lexicon.ADJECTIVES, *lexicon.NOUNS, *lexicon.VERBS, *lexicon.PLACES},
    ]
    assert [len(g) for g in groups[:2]] == [400, 64]
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_own_tokenizer_is_exact_on_any_text():
    tokenizer = vocabulary.build()
    pick = random.Random(1)
    strange = "héllo — 12\t🙂 x  y\n\n ▁ 1234567 <|end"
    for text in [strange, "".join(map(chr, range(32, 1000))), tasks.filler(pick) + tasks.key_fact("mite", "572008")]:
        expected = text.replace("▁", " ")  # the one character that stands for a space
        assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(" 572008")) == ["▁572", "008"]
    for word in (*lexicon.NAMES, *lexicon.COUNTED, *lexicon.NOUNS):
        assert len(tokenizer.encode(" " + word)) == 1
