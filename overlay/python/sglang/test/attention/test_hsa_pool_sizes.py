# SPDX-License-Identifier: Apache-2.0
"""What sizes the pools since 0.5.12 includes the price of the representations."""

from types import SimpleNamespace

import pytest

from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.mem_cache import hsa_pool_setup
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.test.attention.hsa_pool_owner import fake_runner
from sglang.test.attention.hsa_release import no_server

pool_configurator = pytest.importorskip(
    "sglang.srt.model_executor.pool_configurator",
    reason="a ModelRunner sizes its pools itself",
)

GIB = 2**30
KV_PER_TOKEN = 4 * 2 * (8 + 8) * 2
REPR_PER_PAGE = 4 * (2 * 16 * 2 + 8) + 8


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr(hsa_pool_setup, "attention_tp", lambda: (0, 1))
    ranks = SimpleNamespace(attn_tp_size=1, attn_dcp_size=1)
    monkeypatch.setattr(pool_configurator, "get_parallel", lambda: ranks)
    for name, bag in (
        ("get_schedule", dict(swa_full_tokens_ratio=0.5, max_total_tokens=None)),
        ("get_memory", dict(enable_unified_memory=False, enable_hisparse=False)),
    ):  # since 0.5.18
        if hasattr(pool_configurator, name):
            monkeypatch.setattr(
                pool_configurator, name, lambda bag=bag: SimpleNamespace(**bag)
            )
    with no_server():
        yield


def owner(attention_backend, sliding=(), **model_config):
    """As much of a KVCacheConfigurator as sizing its pools takes."""
    fake = fake_runner(attention_backend, sliding=sliding)
    layers = dict(
        full_attention_layer_ids=[i for i in range(4) if i not in sliding],
        swa_attention_layer_ids=list(sliding),
    )
    vars(fake.server_args).update(
        max_total_tokens=None, swa_full_tokens_ratio=0.5, dcp_size=1, enable_dsa_cache_layer_split=False,
        enable_hisparse=False,
    )  # fmt: skip
    vars(fake.model_config).update(
        attention_arch=AttentionArch.MHA, v_head_dim=8, context_len=4096, hf_config=SimpleNamespace(architectures=["Qwen3ForCausalLM"]),
        **layers, **model_config,
    )  # fmt: skip
    vars(fake).update(
        kv_cache_dtype_str="auto", use_mla_backend=False, page_size=64, sliding_window_size=128,
        spec_algorithm=SpeculativeAlgorithm.NONE, fused_entry_bytes=lambda part: None,
        layer_info=SimpleNamespace(num_effective_layers=4, start_layer=0, end_layer=4, **layers),
    )  # fmt: skip
    return fake


@pytest.fixture
def full_attention(monkeypatch):
    """No linear-attention layers, and layers that no rank shares."""
    monkeypatch.setattr(pool_configurator, "mambaish_config", lambda config: None)


def test_tokens_fit_with_their_representations(full_attention):
    """Keys, values and representations of the tokens fill what is available."""
    tokens = {
        name: pool_configurator.DefaultPoolConfigurator(owner(name))
        .calculate_pool_sizes(GIB, 64)
        .max_total_num_tokens
        for name in ("hsa", "triton")
    }
    used = tokens["hsa"] * KV_PER_TOKEN + -(-tokens["hsa"] // 64) * REPR_PER_PAGE
    assert 0.99 * GIB < used <= GIB and tokens["triton"] * KV_PER_TOKEN <= GIB
    assert tokens["hsa"] < tokens["triton"], "representations are not free"


def test_a_draft_of_the_targets_shape_pays_too(full_attention):
    """The configurator scales the whole cell, the price in it."""
    plain = owner("hsa")
    drafting = owner("hsa")
    drafting.spec_algorithm = SpeculativeAlgorithm.EAGLE
    drafting.spec_aux_config = SimpleNamespace(eagle_draft_num_layers=1)
    cells = [
        pool_configurator.DefaultPoolConfigurator(o)._cell_size
        for o in (plain, drafting)
    ]
    assert cells[1] == cells[0] * 5 // 4


@pytest.mark.parametrize("sliding", [(0, 2), (0, 1, 2, 3)], ids=["hybrid", "sliding"])
def test_hybrid_memory_has_the_price_on_the_full_part(sliding):
    full = [i for i in range(4) if i not in sliding]
    names = (
        ["triton", "hsa"] if full else ["triton"]
    )  # HSA refuses a model without a layer for it
    sizes = {
        name: pool_configurator.HybridSWAPoolConfigurator(
            owner(
                name, sliding, swa_head_dim=8, swa_v_head_dim=8, get_swa_num_kv_heads=lambda tp: 2,
            )  # fmt: skip
        ).calculate_pool_sizes(GIB, 64)
        for name in names
    }
    if not full:
        assert sizes["triton"].swa_max_total_num_tokens > 0
        return
    tokens = sizes["hsa"].full_max_total_num_tokens
    swa = sizes["hsa"].swa_max_total_num_tokens
    repr_per_page = 2 * (2 * 16 * 2 + 8) + 8
    used = (tokens + swa) * KV_PER_TOKEN // 2 + tokens // 64 * repr_per_page
    assert 0.99 * GIB < used <= GIB
    assert tokens < sizes["triton"].full_max_total_num_tokens


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
