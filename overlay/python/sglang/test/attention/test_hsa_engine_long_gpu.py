# SPDX-License-Identifier: Apache-2.0
"""An engine with HSA's kernels on a CUDA device: 128K tokens against dense attention, and sixteen requests at once."""

import numpy as np
import pytest
import torch

import sglang as sgl
from sglang.test.attention.hsa_fixtures import (
    GPU_ENGINE,
    answers,
    assert_same_up_to_near_ties,
    write_random_model,
)
from sglang.test.attention.hsa_release import graphs_up_to

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

LONG = (131072 - 64, 40000, 9000, 700)
MANY = tuple(300 + 173 * i for i in range(16))
NEW = 32


def generate(model_path, lengths, **engine):
    """``answers``, and the counters; None of dense attention."""
    total = sum(lengths) + 64 * len(lengths) + 4096
    options = dict(GPU_ENGINE, max_total_tokens=total, max_running_requests=16)
    options.update(graphs_up_to(16), page_size=64, **engine)
    if options["attention_backend"] != "hsa":
        options = {k: v for k, v in options.items() if not k.startswith("hsa_")}
    with sgl.Engine(model_path=model_path, **options) as llm:
        outputs = answers(llm, lengths, NEW)
        [state] = llm.get_server_info()["internal_states"]
    return outputs, state.get("hsa_counters")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    return write_random_model(folder, head_dim=64, max_position_embeddings=1 << 17)


def test_every_page_of_128k_selected_is_dense_attention(model_path):
    dense, none = generate(model_path, LONG, attention_backend="triton")
    assert none is None
    got, counts = generate(model_path, LONG, hsa_topk=10**6)
    assert counts["pages_selected"] == counts["pages_candidate"] > 0
    assert_same_up_to_near_ties(got, dense, NEW)
    first = [out["meta_info"]["output_token_logprobs"][0][0] for out in (*got, *dense)]
    apart = np.abs(np.subtract(first[: len(got)], first[len(got) :])).max()
    print(f"log-probabilities of the first tokens differ by at most {apart:.4f}")
    assert apart < 0.05


def test_sixteen_requests_at_once_or_one_by_one(model_path):
    """With and without the radix cache, a few pages of many selected."""
    outputs, counts = generate(model_path, MANY)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    alone, batch = outputs[: len(MANY)], outputs[len(MANY) :]
    assert_same_up_to_near_ties(batch, alone, NEW)
    uncached, _ = generate(model_path, MANY, disable_radix_cache=True)
    assert_same_up_to_near_ties(uncached, 2 * alone, NEW)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
