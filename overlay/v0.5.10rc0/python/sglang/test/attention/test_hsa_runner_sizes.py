# SPDX-License-Identifier: Apache-2.0
"""What sizes the pools includes the price of the representations."""

from types import SimpleNamespace

import pytest

from sglang.srt.mem_cache import hsa_pool_setup
from sglang.srt.model_executor import model_runner_kv_cache_mixin as kv_cache_mixin
from sglang.srt.model_executor.model_runner_kv_cache_mixin import (
    ModelRunnerKVCacheMixin,
)
from sglang.test.attention.hsa_pool_owner import fake_runner


class Runner(ModelRunnerKVCacheMixin):
    """As much of a ModelRunner as sizing its pools takes: 4 layers of 2 KV heads of 8, bfloat16."""

    def __init__(self, attention_backend, **model_config):
        fake = fake_runner(attention_backend)
        vars(fake.server_args).update(
            page_size=64,
            max_total_tokens=None,
            swa_full_tokens_ratio=0.5,
            mem_fraction_static=0.8,
        )
        vars(self).update(
            vars(fake), device="cpu", gpu_id=0, use_mla_backend=False, is_draft_worker=False,
            mambaish_config=None, num_effective_layers=4, mem_fraction_static=0.8, pp_size=1,
            sliding_window_size=128,
        )  # fmt: skip
        self.model_config = SimpleNamespace(
            **{
                **vars(fake.model_config),
                "v_head_dim": 8,
                "is_hybrid_swa": False,
                **model_config,
            }
        )


@pytest.fixture
def one_gigabyte(monkeypatch):
    """1 GiB is left after the model was loaded, of 2.5 before; 0.8 of those may be used."""
    monkeypatch.setattr(hsa_pool_setup, "attention_tp", lambda: (0, 1))
    monkeypatch.setattr(kv_cache_mixin, "get_attention_tp_size", lambda: 1)
    monkeypatch.setattr(
        kv_cache_mixin,
        "get_world_group",
        lambda: SimpleNamespace(world_size=1, cpu_group=None),
    )
    monkeypatch.setattr(
        kv_cache_mixin, "get_available_gpu_memory", lambda *args, **kwargs: 1.0
    )


KV_PER_TOKEN = 4 * 2 * (8 + 8) * 2
REPR_PER_PAGE = 4 * (2 * 16 * 2 + 8) + 8


def test_profiled_tokens_fit_with_their_representations(one_gigabyte):
    """``--mem-fraction-static``: keys, values and representations of what was profiled fill the memory."""
    tokens = Runner("hsa").profile_max_num_token(2.5)
    plain = Runner("triton").profile_max_num_token(2.5)
    free = 1.0 * 2**30 - 2.5 * (1 - 0.8) * 2**30
    bytes_used = tokens * KV_PER_TOKEN + -(-tokens // 64) * REPR_PER_PAGE
    assert 0.99 * free < bytes_used <= free and plain * KV_PER_TOKEN <= free
    assert tokens < plain, "representations are not free"


def test_max_total_tokens_is_capped_by_the_price(one_gigabyte):
    runner = Runner("hsa")
    profiled = runner.profile_max_num_token(2.5)
    runner.server_args.max_total_tokens = Runner("triton").profile_max_num_token(2.5)
    assert runner._resolve_token_capacity(profiled) == profiled // 64 * 64
    runner.server_args.max_total_tokens = 1000
    assert runner._resolve_token_capacity(profiled) == 960


def test_hybrid_memory_is_split_with_the_price_on_the_full_part(one_gigabyte):
    runner = Runner(
        "hsa", is_hybrid_swa=True, full_attention_layer_ids=[1, 3], swa_attention_layer_ids=[0, 2],
        swa_head_dim=8, swa_v_head_dim=8, get_swa_num_kv_heads=lambda tp: 2,
    )  # fmt: skip
    for i in (0, 2):
        runner.model.layers[i].sliding_window_size = 128
    _, full, swa = runner._resolve_hybrid_swa_tokens(runner.profile_max_num_token(2.5))
    repr_per_page = 2 * (2 * 16 * 2 + 8) + 8
    used = (full + swa) * KV_PER_TOKEN // 2 + full // 64 * repr_per_page
    assert 0.99 * 2**29 < used <= 2**29


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
