# SPDX-License-Identifier: Apache-2.0
"""Which NSA backends come out for every choice of the user, with HiSparse and without, now and at the pinned release."""

import dataclasses
import itertools
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from pin import pin_function

from sglang.srt import server_args as module
from sglang.srt.server_args import NSA_CHOICES, ServerArgs

SPARSE = "flashmla_sparse"
CHOICES = (None, *NSA_CHOICES)
# (KV cache, compute capability, data parallel size): every branch that sets NSA defaults.
PATHS = list(itertools.product(("bfloat16", "fp8_e4m3"), (9, 10), (1, 2)))
paths = pytest.mark.parametrize("kv, major, dp", PATHS)
PIN = "python/sglang/srt/server_args.py"


def arguments(**given):
    """ServerArgs with its defaults, before any resolution."""
    args = object.__new__(ServerArgs)
    for field in dataclasses.fields(ServerArgs):
        has_factory = field.default_factory is not dataclasses.MISSING
        setattr(args, field.name, field.default_factory() if has_factory else field.default)
    for name, value in given.items():
        setattr(args, name, value)
    return args


def resolve(function, prefill, decode, kv, major, dp, hisparse):
    args = arguments(
        nsa_prefill_backend=prefill, nsa_decode_backend=decode, kv_cache_dtype=kv, dp_size=dp, enable_hisparse=hisparse
    )
    function(args, kv, major)
    return args.nsa_prefill_backend, args.nsa_decode_backend


@pytest.fixture
def pinned():
    return pin_function(PIN, "_set_default_nsa_backends", vars(module))


def now(args, kv, major):
    return ServerArgs._set_default_nsa_backends(args, kv, major)


@paths
@pytest.mark.parametrize("hip", (False, True), ids=("cuda", "rocm"))
def test_without_hisparse_as_at_the_pin(monkeypatch, hip, kv, major, dp):
    monkeypatch.setattr(module, "is_hip", lambda: hip)
    pinned = pin_function(PIN, "_set_default_nsa_backends", vars(module))
    for prefill, decode in itertools.product(CHOICES, CHOICES):
        asked = (prefill, decode, kv, major, dp, False)
        assert resolve(now, *asked) == resolve(pinned, *asked), asked


@paths
@pytest.mark.parametrize("prefill", CHOICES)
@pytest.mark.parametrize("decode", CHOICES)
def test_with_hisparse_flashmla_sparse_or_a_refusal(prefill, decode, kv, major, dp):
    asked = (prefill, decode, kv, major, dp, True)
    wrong = [
        f"--nsa-{name}-backend"
        for name, value in (("prefill", prefill), ("decode", decode))
        if value not in (None, SPARSE)
    ]
    if not wrong:
        assert resolve(now, *asked) == (SPARSE, SPARSE)
        return
    with pytest.raises(ValueError, match=f"Set {wrong[0]} {SPARSE}, or leave it out") as error:
        resolve(now, *asked)
    assert "--enable-hisparse" in str(error.value)


@pytest.mark.parametrize("kv, major, dp, before", [
    ("bfloat16", 9, 1, (SPARSE, "fa3")),
    ("bfloat16", 10, 1, (SPARSE, "trtllm")),
    ("fp8_e4m3", 9, 1, ("flashmla_auto", "flashmla_kv")),
    ("fp8_e4m3", 10, 1, ("trtllm", "trtllm")),
    ("fp8_e4m3", 10, 2, ("flashmla_auto", "flashmla_kv")),
])  # fmt: skip
def test_what_hisparse_got_at_the_pin(pinned, kv, major, dp, before):
    """What the patch is for: none of the defaults was flashmla_sparse for both."""
    assert resolve(pinned, None, None, kv, major, dp, True) == before


def test_an_explicit_choice_was_replaced_at_the_pin(pinned):
    assert resolve(pinned, SPARSE, SPARSE, "fp8_e4m3", 10, 1, True) == ("trtllm", "trtllm")


def test_hisparse_wins_over_rocm_defaults(monkeypatch):
    monkeypatch.setattr(module, "is_hip", lambda: True)
    assert resolve(now, None, None, "bfloat16", 9, 1, True) == (SPARSE, SPARSE)


@pytest.mark.parametrize("kv, warns", (("bfloat16", False), ("fp8_e4m3", True)))
def test_the_choice_is_logged(caplog, kv, warns):
    with caplog.at_level(logging.INFO, logger=module.__name__):
        resolve(now, None, None, kv, 9, 1, True)
    assert f"Set NSA backends for {kv} KV Cache: prefill={SPARSE}, decode={SPARSE}." in caplog.text
    assert ("use --kv-cache-dtype bfloat16" in caplog.text) == warns


# -- through ServerArgs itself

DEEPSEEK_V32 = dict(
    architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", index_topk=2048, index_head_dim=128, index_n_heads=4,
    hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, kv_lora_rank=512, q_lora_rank=64, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128,
    n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, vocab_size=128, max_position_embeddings=4096,
    torch_dtype="bfloat16",
)  # fmt: skip


@pytest.fixture
def nsa_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V32))
    return str(tmp_path)


def server_args(monkeypatch, model, major, **options):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (major, 0))
    return ServerArgs(model_path=model, device="cpu", disable_radix_cache=True, skip_tokenizer_init=True, **options)


@pytest.mark.parametrize("kv", ("auto", "bfloat16", "bf16", "fp8_e4m3"))
@pytest.mark.parametrize("major", (9, 10))
def test_server_args_of_an_nsa_model(monkeypatch, nsa_model, kv, major):
    args = server_args(monkeypatch, nsa_model, major, kv_cache_dtype=kv, enable_hisparse=True)
    assert (args.nsa_prefill_backend, args.nsa_decode_backend) == (SPARSE, SPARSE)
    plain = server_args(monkeypatch, nsa_model, major, kv_cache_dtype=kv)
    assert (plain.nsa_prefill_backend, plain.nsa_decode_backend) != (SPARSE, SPARSE)


@pytest.mark.parametrize("flag, other", (("nsa_prefill_backend", "tilelang"), ("nsa_decode_backend", "fa3")))
@pytest.mark.parametrize("major", (9, 10))
def test_server_args_refuse_another_backend(monkeypatch, nsa_model, flag, other, major):
    with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')} {other}"):
        server_args(monkeypatch, nsa_model, major, enable_hisparse=True, **{flag: other})


def test_check_server_args_refuses_where_no_default_was_set(monkeypatch):
    """A path that never sets NSA defaults (an NPU, say) is caught at launch."""
    args = arguments(
        model_path="dummy", enable_hisparse=True, disable_radix_cache=True, nsa_decode_backend="trtllm", device="cpu",
        served_model_name="dummy", chunked_prefill_size=-1, page_size=1, max_running_requests=4,
    )  # fmt: skip
    monkeypatch.setattr(ServerArgs, "get_model_config", lambda self: SimpleNamespace(hf_config=None))
    with pytest.raises(ValueError, match="--nsa-decode-backend trtllm"):
        args.check_server_args()
    args.nsa_decode_backend = SPARSE
    args.disable_radix_cache = False
    with pytest.raises(AssertionError, match="--disable-radix-cache"):
        args.check_server_args()
