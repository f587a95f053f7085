# SPDX-License-Identifier: Apache-2.0
"""What start-up refuses with ``--attention-backend hsa``: one case per refusal, and neighbours that pass."""

import json
from types import SimpleNamespace

import pytest

from sglang.srt.configs.hils import QwenHiLSConfig
from sglang.srt.environ import Envs
from sglang.srt.layers.attention.hsa import compat, refusals
from sglang.srt.layers.attention.hsa.config import INVARIANT_BACKEND
from sglang.test.attention.hsa_fixtures import server_args, write_model_config
from sglang.test.attention.hsa_refused import (
    ASKED_BY_ARGUMENTS,
    ASKED_BY_DRAFTS,
    ASKED_BY_MODEL,
    ASKED_OF_DETERMINISM,
    ASKED_OF_DISAGGREGATION,
    ASKED_OF_DRAFTS_BY_VARIABLES,
    ASKED_OF_GPT_OSS,
    ASKED_OF_HILS,
    DRAFTS,
    EVERY_FEATURE,
    IN_ONE_POOL,
    OPTIONAL,
    RANKS,
    SIZED_LATE,
    STAGES,
)
from sglang.test.attention.hsa_release import (
    change,
    fields_of,
    has_option,
    pretend_to_have_memory,
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_model_config(tmp_path_factory.mktemp("qwen3"))


def test_every_refusal_is_tested_and_worded_apart():
    features = [refusal.feature for refusal in refusals.REFUSALS]
    assert sorted(features) == sorted(EVERY_FEATURE)


def drafting(model_path, **changed):
    """Resolved arguments of a server that drafts, changed; and the model they were resolved with."""
    args = server_args(model_path)
    model = compat.model_config(args)
    change(args, **{**DRAFTS, **changed})
    return args, model


def is_refused(feature, args, model):
    with pytest.raises(ValueError) as error:
        refusals.check(args, model)
    text = str(error.value)
    return f"does not support {feature} (" in text and "\n" not in text


@pytest.mark.parametrize("feature", ASKED_BY_DRAFTS)
def test_refused_drafts(model_path, feature):
    if feature in OPTIONAL:
        pytest.skip("the release has no such option")
    assert is_refused(feature, *drafting(model_path, **ASKED_BY_DRAFTS[feature]))


@pytest.mark.parametrize("feature", ASKED_OF_DRAFTS_BY_VARIABLES)
def test_drafts_that_a_variable_asks_for_are_refused(model_path, monkeypatch, feature):
    variable = ASKED_OF_DRAFTS_BY_VARIABLES[feature]
    if not hasattr(Envs, variable):
        pytest.skip("the release has no such variable")
    args, model = drafting(model_path)
    refusals.check(args, model)
    monkeypatch.setenv(variable, "1")
    assert is_refused(feature, args, model)


def resolved_on_cuda(model_path, monkeypatch, **changed):
    """Arguments of a server that drafts on a CUDA device, through all of start-up's checks; no device is needed."""
    pretend_to_have_memory(monkeypatch, megabytes=140_000)
    options = dict(speculative_draft_model_path=model_path, random_seed=0)
    return server_args(model_path, **{**DRAFTS, **options, **changed})


def deterministic(model_path, monkeypatch, **options):
    """As ``resolved_on_cuda``, of a server that is deterministic and does not draft."""
    pretend_to_have_memory(monkeypatch, megabytes=140_000)
    asked = dict(device="cuda", random_seed=0, enable_deterministic_inference=True)
    return server_args(model_path, **{**asked, **options})


@pytest.mark.parametrize("dense", [None, "triton"])
def test_deterministic_inference_keeps_the_radix_cache(model_path, monkeypatch, dense):
    args = deterministic(model_path, monkeypatch, hsa_dense_backend=dense)
    assert args.attention_backend == "hsa" and args.enable_deterministic_inference
    assert args.hsa_dense_backend == INVARIANT_BACKEND
    assert not args.disable_radix_cache


@pytest.mark.parametrize("feature", ASKED_OF_DETERMINISM)
def test_refused_of_deterministic_inference(model_path, monkeypatch, feature):
    args = deterministic(model_path, monkeypatch)
    model = compat.model_config(args)
    refusals.check(args, model)
    change(args, **ASKED_OF_DETERMINISM[feature])
    assert is_refused(feature, args, model)


@pytest.mark.parametrize(
    "asked",
    [dict(enable_lora=True), dict(enable_dp_attention=True, dp_size=2, tp_size=2)],
    ids=str,
)
def test_others_refused_of_deterministic_inference(model_path, monkeypatch, asked):
    args = deterministic(model_path, monkeypatch)
    change(args, **asked)
    feature = "deterministic inference with drafts, adapters or data-parallel attention"
    with pytest.raises(ValueError, match=f"does not support {feature} "):
        refusals.check(args, compat.model_config(args))


@pytest.mark.skipif(not has_option("rl_on_policy_target"), reason="no such option")
def test_training_on_policy_is_deterministic(model_path):
    """Whenever SGLang says so: in 0.5.10 after HSA has checked."""
    text = "does not support deterministic inference on the reference ops "
    with pytest.raises(ValueError, match=text):
        server_args(model_path, rl_on_policy_target="fsdp")


@pytest.mark.parametrize("feature", ASKED_OF_DISAGGREGATION)
def test_refused_of_disaggregation(model_path, feature):
    args = server_args(model_path)
    model = compat.model_config(args)
    change(args, disaggregation_mode="decode")
    refusals.check(compat.arguments(args), model)
    change(args, **ASKED_OF_DISAGGREGATION[feature])
    with pytest.raises(ValueError, match=f"does not support {feature} "):
        refusals.check(compat.arguments(args), model)


BACKUP = "disaggregation_decode_retraction_backup"


@pytest.mark.skipif(not has_option(BACKUP), reason="no such option")
def test_retracted_keys_of_a_decode_server_stay_in_tensors(model_path):
    """SGLang would choose a pool of the hierarchical cache."""
    decode = dict(disaggregation_mode="decode")
    assert getattr(server_args(model_path, **decode), BACKUP) == "cpu_tensor"
    assert getattr(server_args(model_path), BACKUP) is None
    with pytest.raises(ValueError, match="does not support pools on the host"):
        server_args(model_path, **decode, **{BACKUP: "host_pool"})


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
            return fields_of(resolved_on_cuda(model_path, monkeypatch, **asked))
        except ValueError as error:
            return str(error)

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
    if feature in OPTIONAL:
        pytest.skip("the release has no such option")
    with pytest.raises(ValueError) as error:
        server_args(model_path, **ASKED_BY_ARGUMENTS[feature])
    text = str(error.value)
    assert (
        f"--attention-backend hsa does not support {feature} (" in text
        and "\n" not in text
    )


@pytest.mark.skipif(
    not hasattr(Envs, "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING"),
    reason="the release has no such variable",
)
def test_a_cache_that_is_sized_late_is_refused(model_path, monkeypatch):
    monkeypatch.setenv("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING", "1")
    with pytest.raises(ValueError, match=f"does not support {SIZED_LATE} "):
        server_args(model_path)


@pytest.mark.parametrize("feature", ASKED_BY_MODEL)
def test_refused_models(model_path, feature):
    args = server_args(model_path)
    model = compat.model_config(args)
    refusals.check(args, model)
    changed = SimpleNamespace(**{**vars(model), **ASKED_BY_MODEL[feature]})
    with pytest.raises(ValueError, match=f"does not support {feature}"):
        refusals.check(args, changed)


@pytest.mark.parametrize(
    "feature,asked",
    [
        (STAGES, dict(pp_size=2)),
        (RANKS, dict(enable_dp_attention=True, dp_size=2, tp_size=2)),
    ],
)
def test_refused_with_older_releases(model_path, feature, asked):
    args = server_args(model_path)
    model = compat.model_config(args)
    change(args, **asked)
    if compat.graphs_hold_metadata():
        refusals.check(compat.arguments(args), model)
    else:
        assert is_refused(feature, compat.arguments(args), model)


@pytest.mark.skipif(not compat.graphs_hold_metadata(), reason="refused altogether")
@pytest.mark.parametrize(
    "asked",
    [dict(moe_a2a_backend="pplx"), dict(speculative_algorithm="EAGLE")],
    ids=str,
)
def test_refused_beside_data_parallel_attention(model_path, asked):
    args = server_args(model_path)
    change(args, enable_dp_attention=True, dp_size=2, tp_size=2, **asked)
    feature = (
        "data-parallel attention with drafts, hybrid sliding-window memory or pplx"
    )
    with pytest.raises(ValueError, match=f"does not support {feature}"):
        refusals.check(compat.arguments(args), compat.model_config(args))


@pytest.mark.parametrize("feature", ASKED_OF_GPT_OSS)
def test_refused_of_windows_in_a_pool_of_their_own(model_path, feature):
    args = server_args(model_path)
    model = vars(compat.model_config(args))
    config = SimpleNamespace(architectures=["GptOssForCausalLM"])
    model = SimpleNamespace(**{**model, "hf_config": config, "is_hybrid_swa": True})
    if compat.graphs_hold_metadata():
        refusals.check(compat.arguments(args), model)
    else:
        with pytest.raises(ValueError, match=f"does not support {IN_ONE_POOL}"):
            refusals.check(compat.arguments(args), model)
    change(args, **ASKED_OF_GPT_OSS[feature])
    with pytest.raises(ValueError, match=f"does not support {feature}"):
        refusals.check(compat.arguments(args), model)


@pytest.mark.parametrize("feature", ASKED_OF_HILS)
def test_refused_of_checkpoints_that_were_trained_for_hsa(model_path, feature):
    args = server_args(model_path)
    model = compat.model_config(args)
    heads = model.get_total_num_kv_heads
    model = SimpleNamespace(**{**vars(model), "hf_config": QwenHiLSConfig()})
    model.get_total_num_kv_heads = heads
    refusals.check(compat.arguments(args), model)
    change(args, **ASKED_OF_HILS[feature])
    with pytest.raises(ValueError, match=f"does not support {feature}"):
        refusals.check(compat.arguments(args), model)


@pytest.mark.parametrize(
    "name,values",
    [
        ("enable_sink_attention", (False, True)),
        ("model_type", ("granitemoe", "granitemoe_swa")),
    ],
)
def test_the_configuration_asks_for_sinks(model_path, name, values):
    """As those of IQuest Q1 and Granite."""
    args = server_args(model_path)
    model = compat.model_config(args)
    for asks, value in zip((False, True), values):
        config = SimpleNamespace(architectures=["A"], **{name: value})
        assert (
            refusals.refuses_model(
                args, SimpleNamespace(**{**vars(model), "hf_config": config})
            )
            == asks
        )


SMALL = dict(
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    vocab_size=512,
)
# What SGLang asserts about these models, or a property of theirs that needs a running server, once hid the refusal.
REFUSED_BEFORE_SGLANG_ADJUSTS = {
    "Exaone4ForCausalLM": ("exaone4", "sliding windows of EXAONE", {}),
    "FalconH1ForCausalLM": ("falcon_h1", "linear-attention hybrids", {}),
    "Lfm2ForCausalLM": (
        "lfm2",
        "linear-attention hybrids",
        dict(layer_types=["conv", "full_attention"]),
    ),
    "GraniteMoeHybridForCausalLM": (
        "granitemoehybrid",
        "linear-attention hybrids",
        dict(layer_types=["mamba", "attention"], mamba_n_heads=8, mamba_d_head=16),
    ),
}


def written(folder, architecture, model_type, **fields):
    config = dict(architectures=[architecture], model_type=model_type)
    (folder / "config.json").write_text(json.dumps({**SMALL, **config, **fields}))
    return str(folder)


@pytest.mark.parametrize("architecture", REFUSED_BEFORE_SGLANG_ADJUSTS)
@pytest.mark.parametrize("options", [{}, dict(enable_torch_compile=True)])
def test_refused_before_sglang_adjusts_to_the_model(tmp_path, architecture, options):
    """With all else that is wrong."""
    model_type, feature, fields = REFUSED_BEFORE_SGLANG_ADJUSTS[architecture]
    path = written(tmp_path, architecture, model_type, **fields)
    with pytest.raises(ValueError) as error:
        server_args(path, **options)
    lines = str(error.value).split("\n")
    assert any(f"does not support {feature} (" in line for line in lines)
    assert any("torch.compile" in line for line in lines) == bool(options)


def test_a_granite_of_attention_layers_alone_is_not_refused(tmp_path):
    fields = dict(layer_types=["attention"] * 2, mamba_n_heads=8, mamba_d_head=16)
    path = written(
        tmp_path, "GraniteMoeHybridForCausalLM", "granitemoehybrid", **fields
    )
    assert server_args(path).attention_backend == "hsa"


def test_the_transformers_backend_is_refused_by_name(model_path):
    with pytest.raises(ValueError, match="the Transformers modelling backend .--model"):
        server_args(model_path, model_impl="transformers")


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
