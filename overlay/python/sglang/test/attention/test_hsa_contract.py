# SPDX-License-Identifier: Apache-2.0
"""HSA's contracts: how the past is partitioned, what the options mean, what start-up refuses."""

import argparse
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.layers.attention.hsa import refusals
from sglang.srt.layers.attention.hsa.config import (
    DEFAULT_PREFILL,
    FIELD_PREFIX,
    HSAConfig,
    option,
    parse_layers,
    select_layers,
)
from sglang.srt.layers.attention.hsa.layout import (
    num_candidate_pages,
    window_start_page,
)
from sglang.srt.layers.attention.hsa.server_args import HSAServerArgs
from sglang.srt.server_args import ServerArgs
from sglang.test.attention import hsa_oracle as oracle
from sglang.test.attention.hsa_fixtures import write_model_config


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_model_config(tmp_path_factory.mktemp("qwen3"))


def server_args(model_path, **kwargs):
    defaults = dict(
        model_path=model_path,
        device="cpu",
        attention_backend="hsa",
        skip_tokenizer_init=True,
    )
    return ServerArgs(**{**defaults, **kwargs})


# How the past is partitioned


@pytest.mark.parametrize("window", [0, 1, 63, 64, 65, 512])
@pytest.mark.parametrize("page_size", [16, 64, 128])
@pytest.mark.parametrize("sinks", [0, 1, 3])
def test_window_sinks_and_candidates_partition_the_past(window, page_size, sinks):
    opt = oracle.Options(page_size=page_size, window_size=window, sink_pages=sinks)
    for i in [*range(0, 200), 511, 512, 575, 576, 639, 640, 1000]:
        start = window_start_page(i, window, page_size)
        assert start * page_size == oracle.window_start(i, opt)
        local = oracle.local_positions(i, opt)
        pages = oracle.candidate_pages(i, opt)
        candidates = [
            j for c in pages for j in range(c * page_size, (c + 1) * page_size)
        ]
        assert sorted(local + candidates) == list(range(i + 1))
        assert num_candidate_pages(i, window, page_size, sinks) == len(pages)
        # Every candidate page is complete, and lies wholly left of the window that was asked for.
        assert all((c + 1) * page_size <= max(i - max(window, 1) + 1, 0) for c in pages)


def test_first_query_with_a_candidate():
    """Window 512, page 64: position 575 is the first that can select a page (without sinks)."""
    position = torch.arange(2000)
    count = num_candidate_pages(position, 512, 64, 0)
    assert count.nonzero()[0].item() == 575
    assert (
        num_candidate_pages(574, 512, 64, 0) == 0
        and num_candidate_pages(575, 512, 64, 0) == 1
    )


# Options


def test_defaults_have_one_source(model_path):
    args = server_args(model_path)
    resolved = HSAConfig.from_server_args(args)
    assert resolved == dataclasses.replace(
        HSAConfig(), dense_backend="torch_native", prefill=DEFAULT_PREFILL
    )
    assert args.page_size == resolved.page_size == 64


def test_command_line_sets_every_field(model_path):
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    given = dict(
        topk="7", page_size="32", selection_strategy="head", layers="0,2-3", prefill="dense", window_size="100",
        chunk_repr="mean_std", weight_mode="score", sink_pages="2", dense_backend="triton",
    )  # fmt: skip
    argv = ["--model-path", model_path, "--device", "cpu", "--attention-backend", "hsa"]
    for name, value in given.items():
        argv += [option(name), value]
    argv += ["--no-hsa-enable-swa-fusion", "--hsa-strict", "--skip-tokenizer-init"]
    config = HSAConfig.from_server_args(
        ServerArgs.from_cli_args(parser.parse_args(argv))
    )
    assert config == HSAConfig(
        7, 32, "head", "0,2-3", "dense", 100, False, "mean_std", "score", 2, "triton", True,
    )  # fmt: skip
    assert config.effective_window == 0


def test_nothing_changes_for_other_backends(model_path):
    args = server_args(model_path, attention_backend="torch_native")
    assert args.page_size == 1
    names = [FIELD_PREFIX + field.name for field in dataclasses.fields(HSAConfig)]
    assert all(getattr(args, name) is None for name in names)


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(HSAConfig)]
)
def test_options_without_hsa_are_refused(model_path, name):
    value = getattr(HSAConfig(), name) or "dense"
    with pytest.raises(
        ValueError, match=f"{option(name)}.*only --attention-backend hsa"
    ):
        server_args(
            model_path, attention_backend="triton", **{FIELD_PREFIX + name: value}
        )


@pytest.mark.parametrize(
    "asked,alias,expected",
    [(None, None, 64), (32, None, 32), (None, 128, 128), (16, 16, 16)],
)
def test_page_size_and_its_alias(model_path, asked, alias, expected):
    args = server_args(model_path, page_size=asked, hsa_page_size=alias)
    assert args.page_size == args.hsa_page_size == expected


@pytest.mark.parametrize(
    "kwargs,message",
    [
        (dict(page_size=1), r"--page-size 1 .*16, 32, 64, 128"),
        (dict(page_size=48), r"--page-size 48 .*16, 32, 64, 128"),
        (dict(hsa_page_size=256), r"--page-size 256"),
        (dict(page_size=64, hsa_page_size=32), r"--page-size 64 and --hsa-page-size 32 differ"),
        (dict(hsa_topk=0), r"--hsa-topk 0"),
        (dict(hsa_window_size=-1), r"--hsa-window-size -1"),
        (dict(hsa_sink_pages=-1), r"--hsa-sink-pages -1"),
        (dict(hsa_selection_strategy="best"), r"--hsa-selection-strategy best .*group, head, softmax_head"),
        (dict(hsa_chunk_repr="max"), r"--hsa-chunk-repr max .*mean_std"),
        (dict(hsa_weight_mode="both"), r"--hsa-weight-mode both .*mass, score"),
        (dict(hsa_dense_backend="nsa"), r"--hsa-dense-backend nsa .*fa3"),
        (dict(hsa_weight_mode="score"), r"--hsa-weight-mode score .*slow_keys.*mass"),
        (dict(hsa_selection_strategy="softmax_head"), r"softmax_head .*slow_keys.*head"),
        (dict(hsa_layers="3-1"), r"--hsa-layers '3-1'"),
        (dict(hsa_prefill="full"), r"--hsa-prefill full .*sparse, dense, or the number of tokens"),
        (dict(hsa_prefill="-1"), r"--hsa-prefill -1 .*sparse, dense"),
    ],
)  # fmt: skip
def test_bad_values_name_the_option_and_the_fix(model_path, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        server_args(model_path, **kwargs)
    assert "\n" not in str(error.value)


def test_no_first_page_is_warned_of(model_path, caplog):
    with caplog.at_level("WARNING"):
        server_args(model_path, hsa_sink_pages=1)
        assert "sink" not in caplog.text
        server_args(model_path, hsa_sink_pages=0)
    assert "--hsa-sink-pages 0: pretrained models" in caplog.text


@pytest.mark.parametrize(
    "text,expected",
    [("all", range(12)), ("0", [0]), ("0,2,4", [0, 2, 4]), ("8-11", [8, 9, 10, 11]), ("1, 3-4 ,6", [1, 3, 4, 6]),
     ("10-", [10, 11]), ("0,9 - ", [0, 9, 10, 11]), (HSAConfig.layers, range(1, 12))],
)  # fmt: skip
def test_layer_lists(text, expected):
    assert select_layers(text, range(12), 12) == tuple(expected)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "-", "4-2", "all,1", "1;2"])
def test_unreadable_layer_lists(text):
    with pytest.raises(ValueError, match="--hsa-layers"):
        parse_layers(text)


def test_layers_are_the_eligible_ones_that_are_named():
    assert select_layers("all", {3, 1}, 4) == (1, 3)
    assert select_layers("0-2", {3, 1}, 4) == (1,)
    with pytest.raises(ValueError, match="names layer 4, but the model has layers 0-3"):
        select_layers("1,4", {1, 3}, 4)
    with pytest.raises(ValueError, match="names layer 5, but the model has layers 0-3"):
        select_layers("0,5-", {0, 1}, 4)
    with pytest.raises(ValueError, match="'1-' leaves no layer for HSA.*are 0;"):
        select_layers(HSAConfig.layers, {0}, 1)
    with pytest.raises(ValueError, match="leaves no layer for HSA.*1,3"):
        select_layers("0,2", {1, 3}, 4)


@pytest.mark.parametrize(
    "size,aligned", [(64, 64), (100, 64), (1000, 960), (10, 64), (-1, -1)]
)
def test_chunked_prefill_ends_on_page_boundaries(model_path, size, aligned):
    assert (
        server_args(model_path, chunked_prefill_size=size).chunked_prefill_size
        == aligned
    )


def test_cuda_graphs_are_for_decode_on_the_kernels(model_path):
    args = server_args(model_path)
    assert args.disable_piecewise_cuda_graph

    def graphs_after(**changed):
        stand_in = SimpleNamespace(
            **{**vars(args), "device": "cuda", "disable_cuda_graph": False, **changed}
        )
        HSAServerArgs._limit_cuda_graphs_for_hsa(stand_in)
        return not stand_in.disable_cuda_graph

    assert graphs_after()
    assert graphs_after(
        hsa_selection_strategy="softmax_head", hsa_weight_mode="score", hsa_chunk_repr="mean"
    )  # fmt: skip
    assert graphs_after(kv_cache_dtype="fp8_e4m3")
    assert not graphs_after(hsa_strict=True)
    assert not graphs_after(disable_cuda_graph=True)


# Refusals

ASKED_BY_ARGUMENTS = {
    "a different backend for prefill or decode": dict(
        prefill_attention_backend="triton"
    ),
    "query-dependent page representations": dict(hsa_chunk_repr="prior"),
    "4-bit KV cache": dict(kv_cache_dtype="fp4_e2m1"),
    "fp8_e5m2 keys with FlashAttention 3": dict(
        hsa_dense_backend="fa3", kv_cache_dtype="fp8_e5m2"
    ),
    "double sparsity": dict(enable_double_sparsity=True),
    "hierarchical sparse offload": dict(enable_hisparse=True),
    "piecewise CUDA graph": dict(enforce_piecewise_cuda_graph=True),
    "torch.compile": dict(enable_torch_compile=True),
    "deterministic inference": dict(enable_deterministic_inference=True),
    "LoRA adapters": dict(enable_lora=True),
    "hierarchical cache on a CPU": dict(enable_hierarchical_cache=True),
    "storage behind the hierarchical cache": dict(hicache_storage_backend="file"),
    "LMCache": dict(enable_lmcache=True),
    "prefill-decode disaggregation": dict(disaggregation_mode="prefill"),
    "decode KV offload": dict(disaggregation_decode_enable_offload_kvcache=True),
    "two-batch overlap": dict(enable_two_batch_overlap=True),
    "prefill-decode multiplexing": dict(enable_pdmux=True),
    "diffusion language models": dict(dllm_algorithm="LowConfidence"),
    "data-parallel attention": dict(enable_dp_attention=True, tp_size=2, dp_size=2),
    "context-parallel attention": dict(attn_cp_size=2, tp_size=2),
    "more tensor-parallel ranks than KV heads": dict(tp_size=4),
    "pipeline parallelism": dict(pp_size=2),
    "embedding models": dict(is_embedding=True),
}

ASKED_BY_MODEL = {
    "multi-head latent attention": dict(attention_arch=SimpleNamespace(name="MLA")),
    "attention sinks": dict(
        hf_config=SimpleNamespace(architectures=["MiMoV2FlashForCausalLM"])
    ),
    "encoder-decoder models": dict(is_encoder_decoder=True),
    "linear-attention hybrids": dict(
        hf_text_config=SimpleNamespace(
            layer_types=["linear_attention", "full_attention"]
        )
    ),
    "hybrid sliding-window memory": dict(is_hybrid_swa=True),
    "chunked local attention": dict(attention_chunk_size=8192),
    "multimodal models": dict(is_multimodal=True),
}


# A chain of drafts on a CUDA device; each entry asks for one thing more.
DRAFTS = dict(
    device="cuda",
    speculative_algorithm="EAGLE",
    speculative_num_steps=3,
    speculative_eagle_topk=1,
    speculative_num_draft_tokens=4,
)
ASKED_BY_DRAFTS = {
    "speculative decoding on a CPU": dict(device="cpu"),
    "NGRAM speculative decoding": dict(speculative_algorithm="NGRAM"),
    "branching drafts": dict(speculative_eagle_topk=2),
    "drafts longer than the window or than a page": dict(hsa_window_size=3),
    "speculative decoding with the overlap scheduler": dict(spec_v2="1"),
    "multi-layer EAGLE": dict(enable_multi_layer_eagle=True),
    "speculative decoding in strict mode": dict(hsa_strict=True),
    "speculative decoding with the hierarchical cache": dict(
        enable_hierarchical_cache=True
    ),
}


def test_every_refusal_is_tested_and_worded_apart():
    features = [refusal.feature for refusal in refusals.REFUSALS]
    asked = {*ASKED_BY_ARGUMENTS, *ASKED_BY_MODEL, *ASKED_BY_DRAFTS}
    assert sorted(features) == sorted(asked)


def drafting(model_path, **changed):
    """Resolved arguments of a server that drafts, changed; and the model they were resolved with."""
    args = server_args(model_path)
    model = args.get_model_config()
    for name, value in {**DRAFTS, **changed}.items():
        setattr(args, name, value)
    return args, model


@pytest.mark.parametrize("feature", ASKED_BY_DRAFTS)
def test_refused_drafts(model_path, monkeypatch, feature):
    asked = dict(ASKED_BY_DRAFTS[feature])
    monkeypatch.setenv("SGLANG_ENABLE_SPEC_V2", asked.pop("spec_v2", "0"))
    with pytest.raises(ValueError) as error:
        refusals.check(*drafting(model_path, **asked))
    text = str(error.value)
    assert f"does not support {feature} (" in text and "\n" not in text


def resolved_on_cuda(model_path, monkeypatch, **changed):
    """Arguments of a server that drafts on a CUDA device, through all of start-up's checks; no device is needed."""
    monkeypatch.setattr(
        "sglang.srt.server_args.get_device_memory_capacity", lambda device: 140_000
    )
    monkeypatch.setenv("SGLANG_ENABLE_SPEC_V2", "0")
    options = dict(speculative_draft_model_path=model_path, random_seed=0)
    return server_args(model_path, **{**DRAFTS, **options, **changed})


@pytest.mark.parametrize("algorithm", ["EAGLE", "EAGLE3", "NEXTN", "STANDALONE"])
@pytest.mark.parametrize("steps", [3, None])
def test_chains_are_not_refused(model_path, monkeypatch, algorithm, steps):
    """Three steps, given or chosen by SGLang."""
    given = {} if steps else dict.fromkeys(list(DRAFTS)[2:])
    args = resolved_on_cuda(
        model_path, monkeypatch, speculative_algorithm=algorithm, **given
    )
    assert args.attention_backend == "hsa"
    assert [getattr(args, name) for name in list(DRAFTS)[2:]] == [3, 1, 4]


def test_nextn_is_eagle(model_path, monkeypatch):
    """HSA's checks run before SGLang replaces the name, so they must not tell the two apart either."""

    def outcome(algorithm, **changed):
        asked = dict(speculative_algorithm=algorithm, **changed)
        try:
            args = vars(resolved_on_cuda(model_path, monkeypatch, **asked))
        except ValueError as error:
            return str(error)
        return {name: args[name] for name in args if name != "model_config"}

    assert outcome("NEXTN")["speculative_algorithm"] == "EAGLE"
    refused = dict(speculative_eagle_topk=2), dict(hsa_window_size=3)
    for changed in ({}, *refused):
        assert outcome("NEXTN", **changed) == outcome("EAGLE", **changed)
    assert all("does not support" in outcome("NEXTN", **case) for case in refused)


@pytest.mark.parametrize(
    "shape,expected",
    [((3, 1, 4), (1, 4)), ((3, 1, 9), (1, 4)), ((2, 4, 8), (4, 8)), ((None,) * 3, (1, 4))],
)  # fmt: skip
def test_draft_shape(model_path, shape, expected):
    """A chain verifies one token more than it has steps, whatever was given."""
    args, _ = drafting(model_path, **dict(zip(list(DRAFTS)[2:], shape)))
    assert refusals.draft_shape(args) == expected


@pytest.mark.parametrize("feature", ASKED_BY_ARGUMENTS)
def test_refused_arguments(model_path, feature):
    with pytest.raises(ValueError) as error:
        server_args(model_path, **ASKED_BY_ARGUMENTS[feature])
    text = str(error.value)
    assert (
        f"--attention-backend hsa does not support {feature} (" in text
        and "\n" not in text
    )


@pytest.mark.parametrize("feature", ASKED_BY_MODEL)
def test_refused_models(model_path, feature):
    args = server_args(model_path)
    model = args.get_model_config()
    refusals.check(args, model)
    changed = SimpleNamespace(**{**vars(model), **ASKED_BY_MODEL[feature]})
    with pytest.raises(ValueError, match=f"does not support {feature}"):
        refusals.check(args, changed)


@pytest.mark.parametrize(
    "pair", [("triton", "hsa"), ("hsa", "triton"), ("hsa", None), (None, "hsa")]
)
def test_mixed_backend_pairs_are_refused(model_path, pair):
    """With another backend for prefill, no representation would ever be written."""
    prefill, decode = pair
    with pytest.raises(ValueError, match="would never write page representations"):
        server_args(
            model_path, attention_backend="triton",
            prefill_attention_backend=prefill, decode_attention_backend=decode,
        )  # fmt: skip


def test_the_same_backend_named_twice_is_not_a_mixed_pair(model_path):
    args = server_args(
        model_path, attention_backend=None,
        prefill_attention_backend="hsa", decode_attention_backend="hsa",
    )  # fmt: skip
    assert args.attention_backend == "hsa" and args.page_size == 64


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
