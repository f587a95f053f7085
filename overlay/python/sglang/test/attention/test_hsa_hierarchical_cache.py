# SPDX-License-Identifier: Apache-2.0
"""Hierarchical cache with HSA on a CUDA device: pages that return from the host are healed, tokens stay the same."""

import time

import numpy as np
import pytest
import torch

import sglang as sgl
from sglang.test.attention.hsa_fixtures import write_random_model
from sglang.test.attention.hsa_release import graphs_up_to

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)


def generate(model_path, prompts, **engine):
    """Tokens and cached counts of three rounds over the prompts, and the counters."""
    with sgl.Engine(
        model_path=model_path,
        dtype="float16",
        skip_tokenizer_init=True,
        attention_backend="hsa",
        hsa_dense_backend="triton",
        hsa_prefill="sparse",
        hsa_layers="all",
        hsa_topk=2,
        hsa_window_size=128,
        max_running_requests=4,
        **graphs_up_to(4),
        mem_fraction_static=0.3,
        sampling_backend="pytorch",
        grammar_backend="none",
        log_level="error",
        **engine,
    ) as llm:
        tokens, from_host = [], 0
        for _ in range(3):
            for prompt in prompts:
                out = llm.generate(
                    input_ids=prompt,
                    sampling_params=dict(
                        temperature=0, ignore_eos=True, max_new_tokens=40
                    ),
                )
                tokens.append(out["output_ids"])
                details = out["meta_info"].get("cached_tokens_details") or {}
                from_host += details.get("host", 0)
                time.sleep(0.3)  # write-through to the host goes on in the background
        state = llm.get_server_info()["internal_states"][0]
    return tokens, from_host, state["hsa_counters"]


@pytest.mark.parametrize("io_backend", ["kernel", "direct"])
def test_pages_from_the_host_are_healed(tmp_path, io_backend):
    """The device holds a third of the prompts; every later round loads the rest back."""
    model_path = write_random_model(tmp_path / "qwen3", head_dim=64)
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 512, 512).tolist()
    prompts = [shared + rng.integers(0, 512, 900 + 64 * i).tolist() for i in range(6)]
    expected, _, counts = generate(model_path, prompts, max_total_tokens=32768)
    assert counts["reprs_healed"] == 0
    tokens, from_host, counts = generate(
        model_path,
        prompts,
        max_total_tokens=3072,
        enable_hierarchical_cache=True,
        hicache_ratio=6.0,
        hicache_write_policy="write_through",
        hicache_io_backend=io_backend,
    )
    assert tokens == expected
    assert from_host > 6000 and counts["reprs_healed"] >= 4 * from_host // 64
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
