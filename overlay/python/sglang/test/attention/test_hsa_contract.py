# SPDX-License-Identifier: Apache-2.0
"""HSA's contracts: how the past is partitioned, and what the options mean."""

import argparse
import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.layers.attention.hsa import compat
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
from sglang.srt.layers.attention.hsa.server_args import _limit_cuda_graphs
from sglang.srt.server_args import ServerArgs
from sglang.test.attention import hsa_oracle as oracle
from sglang.test.attention.hsa_fixtures import server_args, write_model_config
from sglang.test.attention.hsa_release import fields_of


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_model_config(tmp_path_factory.mktemp("qwen3"))


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
    assert not compat.has_graphs(args, "prefill")

    def graphs_after(without=False, **changed):
        graphs = {"disable_cuda_graph": False}
        if hasattr(args, "cuda_graph_config"):
            graphs["cuda_graph_config"] = copy.deepcopy(args.cuda_graph_config)
            graphs["cuda_graph_config"].decode.backend = "full"
        stand_in = SimpleNamespace(
            **{**fields_of(args), **graphs, "device": "cuda", **changed}
        )
        if without:
            compat.disable_graphs(stand_in, "decode")
        _limit_cuda_graphs(stand_in)
        view = compat.arguments(stand_in)
        assert not compat.has_graphs(view, "prefill")
        return compat.has_graphs(view, "decode")

    assert graphs_after()
    assert graphs_after(
        hsa_selection_strategy="softmax_head", hsa_weight_mode="score", hsa_chunk_repr="mean"
    )  # fmt: skip
    assert graphs_after(kv_cache_dtype="fp8_e4m3")
    assert not graphs_after(hsa_strict=True)
    assert not graphs_after(without=True)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
