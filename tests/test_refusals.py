# SPDX-License-Identifier: Apache-2.0
"""Start-up says all that is wrong at once, a line each."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tiny_models import build

from sglang.srt.layers.attention.hsa.refusals import REFUSALS
from sglang.srt.server_args import ServerArgs

MESSAGES = {refusal.feature: refusal.message for refusal in REFUSALS}


@pytest.fixture(scope="module")
def lines(checkpoints):
    """``lines(**options)``: what start-up says to these options; none if it accepts them."""
    model = str(build("qwen3", checkpoints))

    def run(**options):
        options = dict(dict(model_path=model, device="cpu", attention_backend="hsa", random_seed=0), **options)
        try:
            ServerArgs(**options)
        except ValueError as error:
            return str(error).split("\n")
        return []

    return run


def test_what_is_supported_says_nothing(lines):
    assert lines() == []


def test_one_refusal_is_its_line(lines):
    assert lines(enable_torch_compile=True) == [MESSAGES["torch.compile"]]


def test_all_refusals_are_listed_in_their_order(lines):
    options = dict(enable_pdmux=True, enable_torch_compile=True, enable_hierarchical_cache=True, kv_cache_dtype="fp4_e2m1")
    features = ["block-scaled KV cache", "torch.compile", "hierarchical cache on a CPU", "prefill-decode multiplexing"]
    assert lines(**options) == [MESSAGES[feature] for feature in features]


def test_bad_values_come_with_them(lines):
    found = lines(page_size=64, hsa_page_size=32, hsa_topk=0, enable_lmcache=True)
    assert [line.split(" differ:")[0].split(" is not")[0] for line in found[:2]] == [
        "--page-size 64 and --hsa-page-size 32", "--hsa-topk 0",
    ]
    assert found[2:] == [MESSAGES["LMCache"]]


@pytest.mark.parametrize("options", [dict(hsa_topk=0), dict(page_size=64, hsa_page_size=32), dict(hsa_layers="3-1")])
def test_a_bad_value_is_one_line(lines, options):
    (line,) = lines(**options)
    assert line.startswith("--")


def test_ngram_is_told_nothing_about_the_drafts_of_a_model(lines):
    """The defaults of EAGLE's parameters would be refused for some models, and NGRAM has none of them."""
    found = lines(speculative_algorithm="NGRAM", hsa_window_size=0)
    assert found == [MESSAGES["speculative decoding on a CPU"], MESSAGES["NGRAM speculative decoding"]]
    shape = dict(speculative_num_steps=3, speculative_eagle_topk=2, speculative_num_draft_tokens=8)
    found = lines(speculative_algorithm="EAGLE", hsa_window_size=0, **shape)
    features = "speculative decoding on a CPU", "branching drafts", "drafts longer than the window or than a page"
    assert found == [MESSAGES[feature] for feature in features]


def test_a_server_prints_each_on_a_line_of_its_own(checkpoints, child_env):
    model = str(build("qwen3", checkpoints))
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--device", "cpu"]
    command += ["--attention-backend", "hsa", "--hsa-chunk-repr", "prior", "--enable-torch-compile"]
    done = subprocess.run(command, env=child_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    expected = [MESSAGES["query-dependent page representations"], MESSAGES["torch.compile"]]
    assert done.stderr.rstrip().split("\n")[-2:] == [f"ValueError: {expected[0]}", expected[1]], done.stderr
