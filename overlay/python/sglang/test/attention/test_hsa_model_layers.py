# SPDX-License-Identifier: Apache-2.0
"""Between the making of a model and the reading of its weights, HSA refuses what only the layers tell."""

from types import SimpleNamespace

import pytest
import torch

from sglang.srt.layers.attention.hsa import model_layers
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_loader import loader
from sglang.test.attention.hsa_release import no_server


class Model(torch.nn.Module):
    def __init__(self, config=None, quant_config=None, **layer):
        super().__init__()
        self.attn = RadixAttention(4, 16, 1.0, 2, layer_id=0, **layer)


class Rotary(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inv_freq = torch.empty(8, device="meta")


class TransformersForCausalLM(torch.nn.Module):
    pass


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    args = SimpleNamespace(
        attention_backend="hsa",
        hsa_layers="all",
        hsa_chunk_repr="slow_keys",
        hsa_strict=False,
        device="cpu",
        kv_cache_dtype="auto",
        speculative_draft_attention_backend=None,
    )
    monkeypatch.setattr(model_layers.compat, "serving_arguments", lambda: args)
    return args


def config(**changed):
    fields = dict(
        num_hidden_layers=1,
        is_multimodal=False,
        head_dim=16,
        is_draft_model=False,
        dtype=torch.bfloat16,
        hf_config=None,
    )
    return SimpleNamespace(**{**fields, **changed})


def test_a_model_whose_numbers_do_not_exist_yet_passes():
    model = Model()
    model.rotary = Rotary()
    assert model_layers.check_model(model, config()) is model


@pytest.mark.parametrize(
    "model,text",
    [
        (Model(attn_type=AttentionType.ENCODER_ONLY), "attention of attn, which is not causal"),
        (Model(sliding_window_size=64), "leaves no layer for HSA"),
        (Model(), "slow_keys needs a rotary embedding"),
        (TransformersForCausalLM(), "does not support the Transformers modelling backend"),
    ],
)  # fmt: skip
def test_the_loader_refuses(monkeypatch, arguments, model, text):
    """As it makes the model, and for no other backend."""
    made = lambda **kwargs: model  # noqa: E731
    monkeypatch.setattr(loader, "get_model_architecture", lambda config: (made, ""))
    load = SimpleNamespace(draft_model_idx=None)
    with no_server():
        with pytest.raises(ValueError, match=text):
            loader._initialize_model(config(hf_config=None), load)
        arguments.attention_backend = "triton"
        assert loader._initialize_model(config(hf_config=None), load) is model


def test_what_the_kernels_and_the_cache_cannot_do_is_refused_at_once(arguments):
    """With the rotary embedding that is missing, too."""
    arguments.device = "cuda"
    with pytest.raises(ValueError) as error:
        model_layers.check_model(Model(), config(head_dim=512, dtype=torch.float64))
    cache, kernels, rotary = str(error.value).split("\n")
    assert "does not support a torch.float64 KV cache" in cache
    assert "head dimensions up to 256, not 512" in kernels
    assert "slow_keys needs a rotary embedding" in rotary


@pytest.mark.parametrize("where", [dict(device="cpu"), dict(hsa_strict=True)])
def test_the_references_take_any_head_dimension(arguments, where):
    vars(arguments).update(device="cuda", hsa_chunk_repr="mean")
    vars(arguments).update(where)
    model = Model()
    assert model_layers.check_model(model, config(head_dim=512)) is model


@pytest.mark.parametrize("asked,checkpoint", [("fp8_e5m2", None), ("auto", "FP8")])
def test_eight_bits_on_a_cpu_are_refused_beside_dense_layers(
    monkeypatch, arguments, asked, checkpoint
):
    """Whoever asks for them."""
    vars(arguments).update(kv_cache_dtype=asked, hsa_chunk_repr="mean")
    monkeypatch.setattr(model_layers.compat, "cpu_has_fp8_caches", lambda: True)
    model = Model()
    model.quant_config = SimpleNamespace(kv_cache_quant_algo=checkpoint)
    assert model_layers.check_model(model, config()) is model
    with pytest.raises(ValueError, match="float8_.* on a CPU unless every layer"):
        model_layers.check_model(model, config(num_hidden_layers=2))
    monkeypatch.setattr(model_layers.compat, "cpu_has_fp8_caches", lambda: False)
    with pytest.raises(ValueError, match="float8_.* on a CPU with this release"):
        model_layers.check_model(model, config())
    arguments.kv_cache_dtype = "bf16"
    assert model_layers.check_model(model, config(num_hidden_layers=2)) is model


def test_a_draft_model_with_a_backend_of_its_own_is_not_asked_about(arguments):
    arguments.speculative_draft_attention_backend = "triton"
    model = Model(sliding_window_size=64)
    assert model_layers.check_model(model, config(is_draft_model=True)) is model
    with pytest.raises(ValueError, match="leaves no layer"):
        model_layers.check_model(model, config())


def test_without_server_arguments_nobody_chose_hsa(monkeypatch):
    def unset():
        raise ValueError("Global server args is not set yet!")

    monkeypatch.setattr(model_layers.compat, "serving_arguments", unset)
    model = Model(sliding_window_size=64)
    assert model_layers.check_model(model, config()) is model


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
