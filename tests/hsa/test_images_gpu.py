# SPDX-License-Identifier: Apache-2.0
"""Prompts with images on a CUDA device: dense attention's tokens with all pages selected, and graphs change none."""

import pytest
import torch
from test_images import NEW, prompts, requests  # noqa: F401, prompts is a fixture
from tiny_vision import build

import sglang as sgl
from sglang.srt.layers.attention.hsa.compat import graphs_hold_metadata
from sglang.test.attention.hsa_fixtures import GPU_ENGINE, assert_same_up_to_near_ties, without_hsa

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and graphs_hold_metadata()), reason="needs a CUDA device, and SGLang since 0.5.13"
)

# Any backend attends inside the vision tower; this one takes its tiny heads.
ENGINE = {**GPU_ENGINE, "skip_tokenizer_init": False, "mm_attention_backend": "sdpa", "chunked_prefill_size": 128}
DENSE = without_hsa(ENGINE)


def generate(path, asked, **engine):
    """Answers to one request after the other, and the counters."""
    sampling = dict(temperature=0, ignore_eos=True, max_new_tokens=NEW)
    outputs = []
    with sgl.Engine(model_path=str(path), **engine) as llm:
        for one in asked:
            outputs += llm.generate(
                prompt=list(one["texts"]), image_data=one["images"], sampling_params=sampling, return_logprob=True, top_logprobs_num=4
            )  # fmt: skip
        [state] = llm.get_server_info()["internal_states"]
    return outputs, state.get("hsa_counters")


def test_images(checkpoints, prompts):  # noqa: F811
    path, asked = build("qwen3_vl", checkpoints), requests(prompts)
    dense, _ = generate(path, asked, **DENSE)
    every, counts = generate(path, asked, **{**ENGINE, "hsa_topk": 10**6})
    assert counts["pages_selected"] == counts["pages_candidate"] > 0
    assert_same_up_to_near_ties(every, dense, NEW)
    eager, _ = generate(path, asked, **{**ENGINE, "hsa_topk": 2}, disable_cuda_graph=True)
    graphs, counts = generate(path, asked, **{**ENGINE, "hsa_topk": 2})
    assert_same_up_to_near_ties(graphs, eager, NEW)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    cached = [output["meta_info"]["cached_tokens"] for output in graphs[:3]]
    assert cached[0] == 0 < cached[1] < cached[2], "pages of another image were found"


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
