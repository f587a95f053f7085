# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters with HSA on a CUDA device: several in a batch, in CUDA graphs, with pages of their own in the radix cache."""

import numpy as np
import pytest
import torch

import sglang as sgl
from sglang.test.attention.hsa_fixtures import (
    GPU_ENGINE,
    assert_same_up_to_near_ties,
    without_hsa,
    write_random_adapter,
    write_random_model,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

NEW, NAMES = 48, (None, "first", "second")
ENGINE = {**GPU_ENGINE, "lora_backend": "triton", "chunked_prefill_size": 512}
DENSE = without_hsa(ENGINE)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Arguments of an engine: a model and two adapters."""
    folder = tmp_path_factory.mktemp("model")
    path = write_random_model(folder / "qwen3", head_dim=64)
    adapters = {n: write_random_adapter(path, folder / n, len(n)) for n in NAMES if n}
    return dict(model_path=path, lora_paths=[f"{n}={p}" for n, p in adapters.items()])


def generate(models, **engine):
    """Answers to one prompt under three models, alone and twice as a batch, and the counters."""
    prompt = np.random.default_rng(0).integers(0, 512, 1500).tolist()
    ask = dict(
        sampling_params=dict(temperature=0, ignore_eos=True, max_new_tokens=NEW),
        return_logprob=True,
        top_logprobs_num=4,
    )
    with sgl.Engine(**models, **engine) as llm:
        alone = [llm.generate(input_ids=prompt, lora_path=n, **ask) for n in NAMES]
        batches = [
            llm.generate(input_ids=[prompt] * 3, lora_path=list(NAMES), **ask)
            for _ in range(2)
        ]
        [state] = llm.get_server_info()["internal_states"]
    return alone + batches[0] + batches[1], state.get("hsa_counters")


def tokens(outputs):
    return [output["output_ids"] for output in outputs]


def test_every_page_selected_is_dense_attention(models):
    dense, _ = generate(models, **DENSE)
    assert len({tuple(answer) for answer in tokens(dense[:3])}) == 3
    got, counts = generate(models, **{**ENGINE, "hsa_topk": 10**6})
    assert counts["pages_selected"] == counts["pages_candidate"] > 0
    assert_same_up_to_near_ties(got, dense, NEW)


def test_cuda_graphs_do_not_change_tokens(models):
    """With pages left out."""
    eager, _ = generate(models, **ENGINE, disable_cuda_graph=True)
    graphs, counts = generate(models, **ENGINE)
    assert_same_up_to_near_ties(graphs, eager, NEW)
    cached = [output["meta_info"]["cached_tokens"] for output in graphs]
    assert cached[:3] == [0] * 3 and min(cached[3:]) > 1400
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
