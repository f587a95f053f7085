# SPDX-License-Identifier: Apache-2.0
"""One server on a CPU with HSA meets hostile requests: each gets its status, and a plain request its tokens afterwards."""

import re
import threading
import time

import pytest
from hostile_requests import CASES, PROMPT, VOCABULARY
from http_server import opened, post, requests_of, send, serving
from tiny_models import build

PLAIN = dict(input_ids=PROMPT + [7] * 400, sampling_params=dict(temperature=0, max_new_tokens=6))
LONG_ANSWER = dict(temperature=0, max_new_tokens=4000, ignore_eos=True)


@pytest.fixture(scope="module")
def url(checkpoints, tmp_path_factory):
    options = dict(
        attention_backend="hsa", hsa_topk=4, hsa_window_size=64, hsa_layers="all", hsa_prefill="sparse",
        dtype="float32", max_total_tokens=16384,
    )  # fmt: skip
    model = str(build("qwen3", checkpoints, vocab_size=VOCABULARY))
    with serving(tmp_path_factory.mktemp("server") / "log", model_path=model, **options) as address:
        yield address


@pytest.fixture(scope="module")
def tokens(url):
    """Of the plain request, before anything hostile."""
    return post(url + "/generate", PLAIN)["output_ids"]


@pytest.fixture(autouse=True)
def afterwards(url, tokens):
    yield
    assert post(url + "/generate", PLAIN)["output_ids"] == tokens


def test_there_are_enough():
    assert len(CASES) >= 150


@pytest.mark.parametrize("name", CASES)
def test_request(url, name):
    path, body, expected = CASES[name]
    status, text = send(url + path, body)
    assert status == expected, text
    assert status == 200 or "Traceback" not in text


@pytest.mark.parametrize(
    "grammar,pattern",
    [
        (dict(regex="[a-z]{3}-[0-9]"), "[a-z]{3}-[0-9]"),
        (dict(json_schema='{"enum": ["yes", "no"]}'), '"(yes|no)"'),
        (dict(ebnf='root ::= "a" | "b" "c"'), "a|bc"),
    ],
    ids=["regex", "json_schema", "ebnf"],
)
def test_a_grammar_is_obeyed(url, grammar, pattern):
    sampling = dict(temperature=0, max_new_tokens=40, **grammar)
    reply = post(url + "/generate", dict(input_ids=PROMPT, sampling_params=sampling))
    assert re.fullmatch(pattern, reply["text"]), reply["text"]


def test_a_refused_stream_says_so(url):
    status, text = send(url + "/generate", dict(input_ids=[5, -3], stream=True, sampling_params=dict(max_new_tokens=4)))
    assert status == 200 and "input_ids must be in [0, 511]" in text and text.endswith("data: [DONE]\n\n")


def wait_until(url, busy):
    """Until the server runs a request, or none."""
    deadline = time.monotonic() + 120
    while bool(requests_of(url)) != busy:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_client_that_hangs_up(url):
    with opened(url + "/generate", dict(input_ids=PROMPT, stream=True, sampling_params=LONG_ANSWER)) as stream:
        assert stream.readline().startswith(b"data: ")
    wait_until(url, busy=False)


def test_an_abort(url):
    found = []
    body = dict(input_ids=PROMPT, rid="to-abort", sampling_params=LONG_ANSWER)
    request = threading.Thread(target=lambda: found.append(post(url + "/generate", body)))
    request.start()
    wait_until(url, busy=True)
    send(url + "/abort_request", dict(rid="to-abort"))
    request.join(120)
    [reply] = found
    assert reply["meta_info"]["finish_reason"]["type"] == "abort"
    wait_until(url, busy=False)
