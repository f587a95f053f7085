# SPDX-License-Identifier: Apache-2.0
"""An engine with HSA on CUDA devices: graphs, replicas and stages leave the tokens alone, ranks round more and do no more."""

import pytest
import torch

import sglang as sgl
from sglang.srt.layers.attention.hsa import compat
from sglang.srt.utils.network import get_free_port
from sglang.test.attention.hsa_fixtures import (
    GPU_ENGINE,
    answers,
    random_prompts,
    repeat_kv_heads,
    write_random_model,
)
from sglang.test.attention.hsa_release import decodes_without_graphs
from sglang.test.attention.hsa_rounding import (
    Float32Model,
    assert_other_pages,
    assert_same_pages,
    assert_same_rounding,
    distances,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)
two_devices = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA devices"
)
four_devices = pytest.mark.skipif(
    torch.cuda.device_count() < 4, reason="needs four CUDA devices"
)

# Of two replicas that take turns, each gets a prompt with pages to leave out: a window, and one page more than are selected.
LENGTHS = (1, 63, 1400, 65, 64, 1500)
FIRST_LEFT_OUT = GPU_ENGINE["hsa_window_size"] + 64 * (GPU_ENGINE["hsa_topk"] + 2)
NEW = 48
EVERY_PAGE = dict(hsa_topk=10**6)


def generate(model_path, prompts_too=False, **engine):
    """``answers``, and the counters of each scheduler."""
    with sgl.Engine(model_path=model_path, **{**GPU_ENGINE, **engine}) as llm:
        outputs = answers(llm, LENGTHS, NEW, prompts_too)
        info = llm.get_server_info()
    # Nothing switched graphs off, or on, behind our back.
    assert decodes_without_graphs(info) == engine.get("disable_cuda_graph", False)
    states = info["internal_states"]
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
    assert tokens(outputs[: len(LENGTHS)]) == tokens(outputs[len(LENGTHS) :])
    return outputs


@pytest.fixture(scope="module")
def errors(model_path):
    """Of the answers of an engine, from its model in float32."""
    model = Float32Model(model_path)
    return lambda outputs: model.errors(2 * random_prompts(LENGTHS), outputs)


def test_cuda_graphs_do_not_change_tokens(model_path, eager):
    outputs, [counts] = generate(model_path)
    assert tokens(outputs) == tokens(eager)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


def assert_errors_of_one_rank(model_path, errors, ranks, **options):
    """With every page selected, as close to the model in float32. ``ranks`` returns the arguments of several."""
    options |= dict(EVERY_PAGE, prompts_too=True)
    one, _ = generate(model_path, **options)
    several, counts = generate(model_path, **options, **ranks())
    assert all(c["pages_selected"] == c["pages_candidate"] > 0 for c in counts)
    assert_same_rounding(errors(several), errors(one))
    return counts


def assert_pages_of_one_rank(model_path, ranks, ranks_path=None, **options):
    """With pages left out, in float16: what rounding swaps moves far less than one page does.

    ``ranks_path``: the model of several ranks, if it is not that of one. Returns how far answers lie from those of one rank,
    and how far they move with one page less.
    """
    options |= dict(prompts_too=True)
    one, _ = generate(model_path, **options)
    fewer, _ = generate(model_path, **options, hsa_topk=GPU_ENGINE["hsa_topk"] - 1)
    several, counts = generate(ranks_path or model_path, **options, **ranks())
    assert all(0 < c["pages_selected"] < c["pages_candidate"] for c in counts)

    def from_one(outputs):
        return distances(2 * random_prompts(LENGTHS), outputs, one, FIRST_LEFT_OUT)

    of_a_page = from_one(fewer)
    assert_same_pages(from_one(several), of_a_page)
    return from_one, of_a_page


@pytest.mark.parametrize(
    "options",
    [dict(), dict(dtype="bfloat16"), dict(kv_cache_dtype="fp8_e4m3")],
    ids=["float16", "bfloat16", "fp8_e4m3"],
)
@pytest.mark.parametrize(
    "ranks",
    [pytest.param(2, marks=two_devices), pytest.param(4, marks=four_devices)],
)
def test_tensor_parallel_ranks(model_path, errors, ranks, options):
    """Each of two ranks has one of the two KV heads; of four, two share each."""
    assert_errors_of_one_rank(
        model_path, errors, lambda: dict(tp_size=ranks), **options
    )


@two_devices
def test_two_ranks_choose_the_pages_of_one(model_path):
    """Four would choose for one query head each."""
    assert_pages_of_one_rank(model_path, lambda: dict(tp_size=2))


@pytest.mark.parametrize(
    "kv_heads,ranks",
    [pytest.param(1, 2, marks=two_devices), pytest.param(2, 4, marks=four_devices)],
)
def test_ranks_that_share_a_kv_head_choose_for_their_own_query_heads(
    tmp_path, kv_heads, ranks
):
    """As one rank does of the model that has the KV head once for each of them; one rank of their own model chooses other pages."""
    shared = write_random_model(
        tmp_path / "shared", head_dim=64, num_key_value_heads=kv_heads
    )
    repeated = repeat_kv_heads(shared, tmp_path / "repeated", ranks // kv_heads)
    from_one, of_a_page = assert_pages_of_one_rank(
        repeated, lambda: dict(tp_size=ranks), shared
    )
    agreed, _ = generate(shared, prompts_too=True)
    assert_other_pages(from_one(agreed), of_a_page)


@two_devices
@pytest.mark.skipif(
    not compat.graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier"
)
def test_two_pipeline_stages(model_path, eager):
    """Of four layers, the first stage has one dense and one with HSA."""
    outputs, [counts] = generate(model_path, pp_size=2)
    assert tokens(outputs) == tokens(eager)
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


@two_devices
@pytest.mark.skipif(
    not compat.graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier"
)
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_data_parallel_attention(model_path, errors, graphs):
    """Two ranks, each with all heads and requests of its own, and one of them idle while a prompt is alone.

    Their rows share one MLP, whose sums round in another order.
    """

    def ranks():  # their ports are held until the process ends
        port = get_free_port()
        return dict(tp_size=2, dp_size=2, enable_dp_attention=True, port=port)

    graphs = dict(disable_cuda_graph=not graphs)
    counts = assert_errors_of_one_rank(model_path, errors, ranks, **graphs)
    assert len(counts) == 2
    assert_pages_of_one_rank(model_path, ranks, **graphs)


@two_devices
def test_two_replicas(model_path, eager):
    outputs, counts = generate(model_path, dp_size=2)
    assert tokens(outputs) == tokens(eager)
    assert len(counts) == 2 and all(count["pages_selected"] > 0 for count in counts)


def to_the_bit(model_path, text, **engine):
    """Tokens and log-probabilities of prompts that begin alike, alone and in batches, all of which must agree."""
    prompts = [text[:n] for n in LENGTHS]
    sampling = dict(temperature=0, ignore_eos=True, max_new_tokens=NEW)
    asked = dict(sampling_params=sampling, return_logprob=True)
    batches = [[i] for i in range(len(prompts))]  # the first of a prompt computes it
    batches += [[5, 0], [1, 5, 3], [2] * 8, [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0, 5]]
    found = {}
    with sgl.Engine(model_path=model_path, **{**GPU_ENGINE, **engine}) as llm:
        for batch in batches:
            outputs = llm.generate(input_ids=[prompts[i] for i in batch], **asked)
            for i, output in zip(batch, outputs):
                logprobs = output["meta_info"]["output_token_logprobs"]
                answer = output["output_ids"], [entry[0] for entry in logprobs]
                assert found.setdefault(i, answer) == answer, (batch, i)
        [state] = llm.get_server_info()["internal_states"]
    counts = state["hsa_counters"]
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]
    return found


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(page_size=16, hsa_selection_strategy="group"),
        dict(hsa_prefill="1000", dtype="bfloat16"),
        dict(hsa_chunk_repr="landmark", hsa_selection_strategy="softmax_head"),
        dict(kv_cache_dtype="fp8_e4m3"),
    ],
    ids=str,
)
def test_deterministic_inference(model_path, options):
    """In batches of any size, computed or found in the radix cache, whole or in chunks, in graphs or eagerly."""
    text = torch.randint(0, 512, (LENGTHS[-1],), generator=torch.Generator()).tolist()
    options = dict(options, enable_deterministic_inference=True)
    whole = to_the_bit(model_path, text, **options)
    chunked = to_the_bit(model_path, text, chunked_prefill_size=256, **options)
    eager = to_the_bit(
        model_path, text, disable_cuda_graph=True, disable_radix_cache=True, **options
    )
    assert whole == chunked == eager


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
