# SPDX-License-Identifier: Apache-2.0
"""An engine with HSA's kernels on a CUDA device: 128K tokens against dense attention, and sixteen requests at once."""

import numpy as np
import pytest
import torch

import sglang as sgl
from sglang.test.attention.hsa_fixtures import (
    GPU_ENGINE,
    assert_same_up_to_near_ties,
    write_random_model,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

LONG = (131072 - 64, 40000, 9000, 700)
MANY = tuple(300 + 173 * i for i in range(16))
NEW = 32


def generate(model_path, lengths, at_once=True, **engine):
    """Answers of NEW tokens to random prompts, and the counters; None of dense attention."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 512, n).tolist() for n in lengths]
    sampling = dict(temperature=0, ignore_eos=True, max_new_tokens=NEW)
    ask = dict(sampling_params=sampling, return_logprob=True, top_logprobs_num=2)
    total = sum(lengths) + 64 * len(lengths) + 4096
    options = dict(GPU_ENGINE, max_total_tokens=total, max_running_requests=16)
    options.update(cuda_graph_max_bs=16, page_size=64, **engine)
    if options["attention_backend"] != "hsa":
        options = {k: v for k, v in options.items() if not k.startswith("hsa_")}
    with sgl.Engine(model_path=model_path, **options) as llm:
        if at_once:
            outputs = llm.generate(input_ids=prompts, **ask)
        else:
            outputs = [llm.generate(input_ids=p, **ask) for p in prompts]
        [state] = llm.get_server_info()["internal_states"]
    return outputs, state.get("hsa_counters")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    return write_random_model(folder, head_dim=64, max_position_embeddings=1 << 17)


def test_every_page_of_128k_selected_is_dense_attention(model_path):
    """# trap 20"""
    dense, none = generate(model_path, LONG, attention_backend="triton")
    assert none is None
    got, counts = generate(model_path, LONG, hsa_topk=10**6)
    assert counts["pages_selected"] == counts["pages_candidate"] > 0
    assert_same_up_to_near_ties(got, dense)
    first = [out["meta_info"]["output_token_logprobs"][0][0] for out in (*got, *dense)]
    apart = np.abs(np.subtract(first[: len(LONG)], first[len(LONG) :])).max()
    print(f"log-probabilities of the first tokens differ by at most {apart:.4f}")
    assert apart < 0.05


def test_sixteen_requests_at_once_or_one_by_one(model_path):
    """With and without the radix cache, a few pages of many selected. # trap 3, 10"""
    alone, counts = generate(model_path, MANY, at_once=False)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    for options in (dict(), dict(disable_radix_cache=True)):
        batch, _ = generate(model_path, MANY, **options)
        assert_same_up_to_near_ties(batch, alone)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
