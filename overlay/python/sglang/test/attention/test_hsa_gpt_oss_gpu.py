# SPDX-License-Identifier: Apache-2.0
"""gpt-oss with HSA on a CUDA device: learned sinks, and sliding windows in a pool of their own, in CUDA graphs."""

import pytest
import torch

import sglang as sgl
from sglang.srt.layers.attention.hsa import compat
from sglang.test.attention.hsa_fixtures import (
    GPU_ENGINE,
    answers,
    random_prompts,
    without_hsa,
    write_random_gpt_oss,
)
from sglang.test.attention.hsa_rounding import Float32Model, assert_same_rounding

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and compat.graphs_hold_metadata()),
    reason="needs a CUDA device, and SGLang since 0.5.13",
)

LENGTHS = (1, 64, 700, 1500)
NEW = 48
# Windows of the batch and a chunk fit, and pages are handed out again.
ENGINE = {
    **GPU_ENGINE,
    "dtype": "bfloat16",  # of the sinks
    "swa_full_tokens_ratio": 0.25,
    "chunked_prefill_size": 512,
    "moe_runner_backend": "triton",
}
DENSE = without_hsa(ENGINE)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "gpt_oss"
    return write_random_gpt_oss(folder, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def errors(model_path):
    """Of the answers of an engine, from its model in float32."""
    model = Float32Model(model_path)
    return lambda outputs: model.errors(2 * random_prompts(LENGTHS), outputs)


def generate(model_path, **engine):
    """Answers alone and as a batch, and the server's counters."""
    with sgl.Engine(model_path=model_path, **engine) as llm:
        outputs = answers(llm, LENGTHS, NEW)
        [state] = llm.get_server_info()["internal_states"]
    return outputs, state.get("hsa_counters")


def tokens(outputs):
    return [output["output_ids"] for output in outputs]


@pytest.mark.parametrize("one_pool", [False, True])
@pytest.mark.parametrize("dense_backend", ["triton", "fa3"])
def test_every_page_selected_is_dense_attention(
    model_path, errors, dense_backend, one_pool
):
    """As close to the model in float32: texts part where two experts score alike, and rounding routes a token to the other."""
    if dense_backend == "fa3" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("FlashAttention 3 needs a Hopper card")
    pool = dict(disable_hybrid_swa_memory=one_pool)
    everything = dict(hsa_topk=10**6, hsa_layers="all", hsa_dense_backend=dense_backend)
    dense, _ = generate(model_path, **DENSE, **pool)
    got, counts = generate(model_path, **{**ENGINE, **everything, **pool})
    assert counts["pages_selected"] == counts["pages_candidate"] > 0
    assert_same_rounding(errors(got), errors(dense))


def test_cuda_graphs_do_not_change_tokens(model_path):
    """With pages left out."""
    eager, _ = generate(model_path, **ENGINE, disable_cuda_graph=True)
    graphs, counts = generate(model_path, **ENGINE)
    assert tokens(graphs) == tokens(eager)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
