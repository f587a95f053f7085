# SPDX-License-Identifier: Apache-2.0
"""An engine with HSA on CUDA devices: graphs and replicas leave the tokens alone, tensor-parallel ranks but near-ties."""

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
two_devices = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA devices"
)

LENGTHS = (1, 63, 64, 65, 700, 1500)
NEW = 48


def generate(model_path, **engine):
    """The engine's answers to every prompt alone and to all of them as a batch, and the counters of each scheduler."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 512, n).tolist() for n in LENGTHS]
    sampling = dict(temperature=0, ignore_eos=True, max_new_tokens=NEW)
    ask = dict(sampling_params=sampling, return_logprob=True, top_logprobs_num=2)
    with sgl.Engine(model_path=model_path, **{**GPU_ENGINE, **engine}) as llm:
        outputs = [llm.generate(input_ids=p, **ask) for p in prompts]
        outputs += llm.generate(input_ids=prompts, **ask)
        info = llm.get_server_info()
    # Nothing switched graphs off, or on, behind our back.
    assert info["disable_cuda_graph"] == engine.get("disable_cuda_graph", False)
    states = info["internal_states"]
    assert tokens(outputs[: len(prompts)]) == tokens(outputs[len(prompts) :])
    return outputs, [state["hsa_counters"] for state in states]


def tokens(outputs):
    return [output["output_ids"] for output in outputs]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("model") / "qwen3", head_dim=64)


@pytest.fixture(scope="module")
def eager(model_path):
    """One device, no graphs."""
    outputs, [counts] = generate(model_path, disable_cuda_graph=True)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    return outputs


def test_cuda_graphs_do_not_change_tokens(model_path, eager):
    """# trap 3, 10"""
    outputs, [counts] = generate(model_path)
    assert tokens(outputs) == tokens(eager)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


@two_devices
def test_two_tensor_parallel_ranks(model_path, eager):
    """Each rank has one of the two KV heads; the ranks' sums round in another order. # trap 29"""
    outputs, [counts] = generate(model_path, tp_size=2)
    assert_same_up_to_near_ties(outputs, eager)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


@two_devices
def test_two_replicas(model_path, eager):
    outputs, counts = generate(model_path, dp_size=2)
    assert tokens(outputs) == tokens(eager)
    assert len(counts) == 2 and all(count["pages_selected"] > 0 for count in counts)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
