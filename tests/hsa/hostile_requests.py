# SPDX-License-Identifier: Apache-2.0
"""Requests that servers of this kind have been reported to die of, and their neighbours, with the status each must get.

``CASES`` maps a name to (path, body, status). A body that is bytes is sent as it is. VOCABULARY is the model's; a prompt of
``LONG`` tokens does not fit into the pool of the server that the tests start.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

VOCABULARY = 512
LONG = 40_000
PROMPT = [100 + i % 300 for i in range(90)]
HUGE = 1 << 70
# Whether sampling parameters are a struct, as in v0.5.17: null asks for the default, and a repetition penalty of zero, by
# which logits would be divided, is refused.
STRUCT = hasattr(SamplingParams, "__struct_fields__")
# Whether a chat with a picture is refused where the model has no eyes, as in v0.5.17, instead of read without it.
REFUSES_PICTURES = hasattr(OpenAIServingChat, "_validate_media_content")
# Whether /generate compares bodies with a schema, as in v0.5.23, for which true is no token id.
SCHEMATA = importlib.util.find_spec("sglang.srt.entrypoints.api_contract") is not None
# Whether a request may bring tensors that replace embeddings, as in v0.5.17.
OVERRIDES = hasattr(GenerateReqInput, "positional_embed_overrides")
SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


def generate(status: int, params: dict | None = None, **body: Any):
    """A POST to /generate of PROMPT and four greedy tokens, changed."""
    sampling = {"temperature": 0, "max_new_tokens": 4, **(params or {})}
    return "/generate", {"input_ids": PROMPT, "sampling_params": sampling, **body}, status


def chat(status: int, **body: Any):
    messages = [{"role": "user", "content": "one two three"}]
    return "/v1/chat/completions", {"model": "m", "messages": messages, "temperature": 0, "max_tokens": 4, **body}, status


def complete(status: int, **body: Any):
    return "/v1/completions", {"model": "m", "prompt": "one two", "temperature": 0, "max_tokens": 4, **body}, status


PROMPTS = {
    "a prompt without tokens": generate(400, input_ids=[]),
    "an empty prompt beside another": generate(400, input_ids=[[], PROMPT]),
    "two empty prompts": generate(400, input_ids=[[], []]),
    "a batch without prompts": generate(400, input_ids=[[]]),
    "an empty text": generate(400, input_ids=None, text=""),
    "a text and ids": generate(200, text="one"),
    "neither text nor ids": generate(400, input_ids=None),
    "an id past the vocabulary": generate(400, input_ids=[5, 100_000]),
    "the id that ends the vocabulary": generate(400, input_ids=[5, VOCABULARY]),
    "the last id": generate(200, input_ids=[5, VOCABULARY - 1]),
    "a negative id": generate(400, input_ids=[5, -3]),
    "an id past 64 bits": generate(400, input_ids=[5, HUGE]),
    "a bad id beside a good prompt": generate(400, input_ids=[PROMPT, [5, 100_000]]),
    "an id that is text": generate(400, input_ids=[5, "x"]),
    "an id that is a fraction": generate(400, input_ids=[5, 1.5]),
    "an id that is true": generate(400 if SCHEMATA else 200, input_ids=[5, True]),
    "an id that is nothing": generate(400, input_ids=[5, None]),
    "ids nested too deep": generate(400, input_ids=[[[5]]]),
    "ids that are a number": generate(400, input_ids=5),
    "a prompt longer than the pool": generate(400, input_ids=[100] * LONG),
    "a long prompt beside a short one": generate(400, input_ids=[PROMPT, [100] * LONG]),
    "a text that is a number": generate(400, input_ids=None, text=7),
    "an emoji, a null byte and a lone surrogate": generate(200, input_ids=None, text="a\U0001f600\x00b"),
    "embeddings as a prompt": generate(400, input_ids=None, input_embeds=[[0.0] * 64] * 4),
    "an object instead of tensors": generate(400 if OVERRIDES else 200, positional_embed_overrides={"a": 1}),
    "an image for a model without eyes": generate(200, input_ids=None, text="one", image_data="http://127.0.0.1:9/x.png"),
    "one token": generate(200, input_ids=[5]),
    "exactly one page": generate(200, input_ids=[100] * 64),
}

LENGTHS = {
    "no new tokens": generate(200, {"max_new_tokens": 0}),
    "one new token": generate(200, {"max_new_tokens": 1}),
    "fewer than no new tokens": generate(400, {"max_new_tokens": -1}),
    "more new tokens than the context": generate(400, {"max_new_tokens": 10**9}),
    "new tokens past 64 bits": generate(400, {"max_new_tokens": HUGE}),
    "new tokens in text": generate(400, {"max_new_tokens": "4"}),
    "half a new token": generate(400, {"max_new_tokens": 1.5}),
    "more tokens at least than at most": generate(400, {"min_new_tokens": 9}),
    "at least a negative number of tokens": generate(400, {"min_new_tokens": -1}),
    "at least a token in text": generate(400, {"min_new_tokens": "1"}),
}

SAMPLING = {
    "a negative temperature": generate(400, {"temperature": -1}),
    "a temperature in text": generate(400, {"temperature": "hot"}),
    "an infinite temperature": generate(400, {"temperature": 1e400}),
    "no temperature": generate(200 if STRUCT else 400, {"temperature": None}),
    "a share of none": generate(400, {"top_p": 0}),
    "a share above one": generate(400, {"top_p": 1.5}),
    "a share in text": generate(400, {"top_p": "1"}),
    "the best zero": generate(400, {"top_k": 0, "temperature": 1}),
    "the best minus two": generate(400, {"top_k": -2, "temperature": 1}),
    "the best one and a half": generate(400, {"top_k": 1.5, "temperature": 1}),
    "the best past 64 bits": generate(400, {"top_k": HUGE, "temperature": 1}),
    "the best of more than there are": generate(200, {"top_k": 100_000, "temperature": 1}),
    "a least share above one": generate(400, {"min_p": 2}),
    "a least share in text": generate(400, {"min_p": "x"}),
    "a frequency penalty of three": generate(400, {"frequency_penalty": 3}),
    "a presence penalty in text": generate(400, {"presence_penalty": "x"}),
    "a repetition penalty of zero": generate(400 if STRUCT else 200, {"repetition_penalty": 0}),
    "a negative repetition penalty": generate(400, {"repetition_penalty": -1}),
    "penalties within bounds": generate(200, {"repetition_penalty": 1.5, "frequency_penalty": 1, "presence_penalty": 1}),
    "a bias past the vocabulary": generate(400, {"logit_bias": {"100000": 1.0}}),
    "a bias of a negative id": generate(400, {"logit_bias": {"-1": 1.0}}),
    "a bias of a word": generate(400, {"logit_bias": {"x": 1.0}}),
    "a bias in text": generate(400, {"logit_bias": {"5": "x"}}),
    "a bias that is a list": generate(400, {"logit_bias": [5]}),
    "a bias": generate(200, {"logit_bias": {"5": 1.0}}),
    "no copies": generate(400, {"n": 0}),
    "a negative number of copies": generate(400, {"n": -1}),
    "copies in text": generate(400, {"n": "2"}),
    "two copies": generate(200, {"n": 2}),
    "beams in text": generate(400, {"beam_width": "x"}),
    "a beam and a half": generate(400, {"beam_width": 1.5}),
    "a seed past 64 bits": generate(400, {"sampling_seed": HUGE, "temperature": 1}),
    "a seed in text": generate(400, {"sampling_seed": "x", "temperature": 1}),
    "a parameter that nobody knows": generate(400, {"no_such_parameter": 1}),
    "special tokens in text": generate(400, {"skip_special_tokens": "x"}),
    "spaces that are a list": generate(400, {"spaces_between_special_tokens": [1]}),
    "an end that is ignored in text": generate(400, {"ignore_eos": "x"}),
    "a stop that is trimmed three times": generate(400, {"no_stop_trim": 3}),
    "parameters that say they were checked": generate(400, {"is_normalized": True, "logit_bias": {"5": "x"}}),
    "parameters that are text": generate(400, sampling_params="x"),
    "parameters for one of two": generate(400, input_ids=[PROMPT, PROMPT], sampling_params=[{"max_new_tokens": 1}]),
    "no parameters for one": generate(400, sampling_params=[]),
    "parameters for two of one": generate(400, sampling_params=[{"max_new_tokens": 1}] * 2),
    "custom parameters that are text": generate(400, {"custom_params": "x"}),
}

STOPS = {
    "a stop id past the vocabulary": generate(400, {"stop_token_ids": [99_999_999], "min_new_tokens": 2}),
    "a negative stop id": generate(400, {"stop_token_ids": [-1], "min_new_tokens": 2}),
    "a stop id in text": generate(400, {"stop_token_ids": ["x"]}),
    "a stop id past 64 bits": generate(400, {"stop_token_ids": [HUGE]}),
    "stop ids that are a number": generate(400, {"stop_token_ids": 7}),
    "a stop id": generate(200, {"stop_token_ids": [7]}),
    "a stop that is a number": generate(400, {"stop": 3}),
    "stops that are numbers": generate(400, {"stop": [3]}),
    "an empty stop": generate(200, {"stop": ""}),
    "an empty stop beside another": generate(200, {"stop": ["x", ""]}),
    "a stop": generate(200, {"stop": ["x"]}),
    "an open bracket as a stop pattern": generate(400, {"stop_regex": "["}),
    "a stop pattern that is a number": generate(400, {"stop_regex": 3}),
    "a stop pattern": generate(200, {"stop_regex": "[a-z]+"}),
}

PROBABILITIES = {
    "a million best log-probabilities": generate(400, return_logprob=True, top_logprobs_num=1_000_000),
    "a negative number of log-probabilities": generate(400, return_logprob=True, top_logprobs_num=-1),
    "log-probabilities in text": generate(400, return_logprob=True, top_logprobs_num="x"),
    "the log-probability of an id past the vocabulary": generate(400, return_logprob=True, token_ids_logprob=[10_000_000]),
    "the log-probability of a negative id": generate(400, return_logprob=True, token_ids_logprob=[-7]),
    "the log-probability of a word": generate(400, return_logprob=True, token_ids_logprob=["x"]),
    "log-probabilities from before the start": generate(400, return_logprob=True, logprob_start_len=-5),
    "log-probabilities from past the end": generate(400, return_logprob=True, logprob_start_len=100_000),
    "log-probabilities from a word on": generate(400, return_logprob=True, logprob_start_len="x"),
    "log-probabilities of all": generate(200, return_logprob=True, logprob_start_len=0, top_logprobs_num=3),
    "log-probabilities of chosen ids": generate(200, return_logprob=True, token_ids_logprob=[1, 2]),
    "as many log-probabilities as tokens": generate(200, return_logprob=True, top_logprobs_num=VOCABULARY),
    "log-probabilities for one of two": generate(400, input_ids=[PROMPT, PROMPT], return_logprob=[True]),
    "ids of log-probabilities nested too deep": generate(400, return_logprob=True, token_ids_logprob=[[1]]),
    "log-probabilities for two of one": generate(400, return_logprob=[True, True]),
}

GRAMMARS = {
    "a pattern": generate(200, {"regex": "[a-z]+"}),
    "a schema": generate(200, {"json_schema": SCHEMA}),
    "a grammar": generate(200, {"ebnf": 'root ::= "a" | "b"'}),
    "an open bracket as a pattern": generate(400, {"regex": "["}),
    "a pattern that is a number": generate(400, {"regex": 3}),
    "a schema that is no JSON": generate(400, {"json_schema": "{"}),
    "a schema that is a number": generate(400, {"json_schema": 3}),
    "a schema of an unknown type": generate(400, {"json_schema": '{"type": "nothing"}'}),
    "a grammar without a root": generate(400, {"ebnf": "x"}),
    "a pattern and a schema": generate(400, {"regex": "a", "json_schema": "{}"}),
    "a structural tag that is none": generate(400, {"structural_tag": "x"}),
    "a schema in a chat": chat(
        200, response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    ),
    "an object in a chat": chat(200, response_format={"type": "json_object"}),
    "a format that nobody knows": chat(400, response_format={"type": "poem"}),
}

OPENAI = {
    "a chat without messages": chat(400, messages=[]),
    "a chat of numbers": chat(400, messages=[1]),
    "a role that nobody knows": chat(400, messages=[{"role": "nobody", "content": "x"}]),
    "a message without content": chat(400, messages=[{"role": "user"}]),
    "a picture in a chat": chat(
        400 if REFUSES_PICTURES else 200,
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x"}}]}],
    ),
    "a bias of a word in a chat": chat(400, logit_bias={"x": 1}),
    "a bias past the vocabulary in a chat": chat(400, logit_bias={"100000": 1}),
    "log-probabilities in a chat": chat(200, logprobs=True, top_logprobs=3),
    "a million log-probabilities in a chat": chat(400, logprobs=True, top_logprobs=1_000_000),
    "a negative number of tokens in a chat": chat(400, max_tokens=-1),
    "no copies in a chat": chat(400, n=0),
    "a tool that is none": chat(400, tools=[{"type": "function"}]),
    "a chat": chat(200),
    "an empty completion": complete(400, prompt=""),
    "no prompt in a batch of completions": complete(400, prompt=[]),
    "ids past the vocabulary in a completion": complete(400, prompt=[100_000]),
    "an echo with log-probabilities": complete(200, echo=True, logprobs=2),
    "a million log-probabilities of a completion": complete(400, logprobs=1_000_000),
    "a suffix": complete(200, suffix="x"),
    "a completion": complete(200),
}

OTHERS = {
    "no JSON": ("/generate", b"{", 400),
    "a list": ("/generate", [], 400),
    "not UTF-8": ("/generate", b'{"text": "\xff"}', 400),
    "an adapter that is not there": generate(400, lora_path="nowhere"),
    "a session that is not there": generate(400, session_params={"id": "nothing"}),
    "a session that is a number": generate(400, session_params=3),
    "a request id that is a number": generate(400, rid=3),
    "a request id of a refused request": generate(400, input_ids=[-1], rid="refused"),
    "the same request id again": generate(200, rid="refused"),
    "request ids of a refused batch": generate(400, input_ids=[PROMPT, [-1]], rid=["refused", "too"]),
    "the same request ids again": generate(200, input_ids=[PROMPT, PROMPT], rid=["refused", "too"]),
    "a request id for one of two": generate(400, input_ids=[PROMPT, PROMPT], rid=["x"]),
    "two equal request ids": generate(400, input_ids=[PROMPT, PROMPT], rid=["a", "a"]),
    "hidden states that were not asked for at start": generate(400, return_hidden_states=True),
    "a logit processor that was not asked for at start": generate(400, custom_logit_processor="x"),
    "a priority in text": generate(400, priority="x"),
    "a stream in words": generate(400, stream="perhaps"),
    "an embedding": ("/encode", {"input_ids": PROMPT}, 400),
    "an embedding in OpenAI's words": ("/v1/embeddings", {"model": "m", "input": "x"}, 400),
    "a score past the vocabulary": (
        "/v1/score", {"model": "m", "query": [5], "items": [[6]], "label_token_ids": [100_000]}, 400
    ),
    "a score of a negative id": ("/v1/score", {"model": "m", "query": [5], "items": [[6]], "label_token_ids": [-1]}, 400),
    "a score": ("/v1/score", {"model": "m", "query": [5], "items": [[6]], "label_token_ids": [7]}, 200),
    "weights that are not there": ("/update_weights_from_disk", {"model_path": "/nonexistent"}, 400),
    "an abort of nothing": ("/abort_request", {"rid": "nothing"}, 200),
    "a session of no length": ("/open_session", {"capacity_of_str_len": -1}, 200),
    "a session that closes unopened": ("/close_session", {"session_id": "nothing"}, 200),
    "an empty cache": ("/flush_cache", {}, 200),
    "memory that is not released": ("/resume_memory_occupation", {}, 400),
    "memory of an unknown kind": ("/release_memory_occupation", {"tags": ["disk"]}, 400),
    "memory of a kind that is a number": ("/release_memory_occupation", {"tags": 7}, 400),
}  # fmt: skip

CASES = {**PROMPTS, **LENGTHS, **SAMPLING, **STOPS, **PROBABILITIES, **GRAMMARS, **OPENAI, **OTHERS}
