# SPDX-License-Identifier: Apache-2.0
"""Sliding windows of HiLS checkpoints in a pool of their own, which holds a small part of the tokens."""

import inspect

import pytest
import torch
from hils_checkpoints import FOLDER, cases, check_answer, check_answers, engine_arguments, request

from sglang.srt.configs.model_config import ModelConfig, is_hybrid_swa_model
from sglang.srt.layers.attention.hsa.server_args import WINDOW_TOKENS_RATIO
from sglang.srt.mem_cache.hsa_pool_setup import repr_bytes_per_page

pytestmark = pytest.mark.skipif(
    len(inspect.signature(is_hybrid_swa_model).parameters) < 2,
    reason="the release knows such models by their class alone: until 0.5.15",
)


@pytest.mark.parametrize("name,chunk", [("olmo_c16", 30), ("olmo_c16", -1), ("olmo_c64", 63)])
def test_windows_are_exact_while_pages_leave_them(run_engine, name, chunk):
    """Slots that are evicted hold NaN, and pages of both pools have other numbers. # trap 23, trap 24, trap 47, trap 48"""
    some_cases = cases(name)
    engine = engine_arguments(name, chunked_prefill_size=chunk, swa_full_tokens_ratio=0.1, max_total_tokens=16380)
    batch = request(some_cases)
    cached = {**batch, "prompt_logprobs": False}  # what gives those of its prompt computes all of it
    requests = [request([case]) for case in some_cases[-2:]] + [batch, cached]
    results, info = run_engine(engine, requests, info=True, client="window_pool_child.py")
    for case, one in zip(some_cases[-2:], results):
        check_answers([case], one)
    *_, batch, cached = results
    check_answers(some_cases, batch)
    assert max(cached["cached"]) > 0
    for i, case in enumerate(some_cases):
        check_answer(case, cached["tokens"][i], cached["logprobs"][i])
    assert info["hsa_counters"]["reprs_missing"] == 0


def test_the_pool_keeps_more_than_three_and_a_half_times_the_tokens(run_engine):
    """Of the 7B's layers, 8 with HSA of 32, by what a token of either pool costs; the same memory in one pool beside it."""
    keys_and_values = 2 * 32 * 128 * 2  # bytes of a token in a layer
    reprs = repr_bytes_per_page(8, 32, 128, 63, "prior", torch.bfloat16, 1) / 63
    one_pool = 32 * keys_and_values + reprs
    apart = 8 * keys_and_values + reprs + 24 * keys_and_values * WINDOW_TOKENS_RATIO
    assert one_pool / apart > 3.5
    arguments = engine_arguments("olmo_c16", max_total_tokens=16380 * 8)
    [apart], info = run_engine(arguments, [request(cases("olmo_c16")[:1])], info=True)
    [one], whole = run_engine(
        {**arguments, "disable_hybrid_swa_memory": True}, [request(cases("olmo_c16")[:1])], info=True
    )
    assert apart["tokens"] == one["tokens"]
    # Two of four layers slide: half the memory, and what their small pool takes.
    assert 0.5 < info["memory_usage"]["kvcache"] / whole["memory_usage"]["kvcache"] < 0.6


def test_layers_are_those_of_the_configuration():
    model = ModelConfig(str(FOLDER / "olmo_c16"))
    assert model.is_hybrid_swa
    assert model.swa_attention_layer_ids == [0, 2] and model.full_attention_layer_ids == [1, 3]
    assert not ModelConfig(str(FOLDER / "qwen_c16")).is_hybrid_swa
