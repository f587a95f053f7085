# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters with few pages selected: the tokens of the oracle on a checkpoint into which the adapter was merged."""

import pytest
from hf_oracle import greedy
from tiny_models import build, prompt_ids

from sglang.test.attention.hsa_fixtures import write_random_adapter
from sglang.test.attention.hsa_oracle import Options

NEW = 24
SPARSE = dict(
    attention_backend="hsa", hsa_topk=2, hsa_window_size=128, hsa_layers="all", hsa_prefill="sparse", hsa_strict=True,
    lora_backend="torch_native", max_total_tokens=16384, chunked_prefill_size=100,
)  # fmt: skip
ORACLE = Options(topk=2, window_size=128, kind="slow_keys", strategy="head")


def test_each_adapter_has_its_own_pages(run_engine, checkpoints, tmp_path):
    """One prompt under three models: alone, in one batch, and from the radix cache."""
    path = build("qwen3", checkpoints)
    first, second = (write_random_adapter(path, tmp_path / name, seed) for seed, name in enumerate(("first", "second")))
    prompt = prompt_ids(400, seed=4)
    models = path, tmp_path / "first" / "merged", tmp_path / "second" / "merged"
    want = [greedy(model, prompt, NEW, ORACLE) for model in models]
    assert len(set(map(tuple, want))) == 3, "the adapters have to matter"
    names = [None, "first", "second"]
    batch = dict(prompts=[prompt] * 3, adapters=names, max_new_tokens=NEW)
    alone = [dict(prompts=[prompt], adapters=[name], max_new_tokens=NEW) for name in names]
    engine = dict(model_path=str(path), lora_paths=[f"first={first}", f"second={second}"], **SPARSE)
    results, info = run_engine(engine, [batch, batch, *alone], info=True, client="lora_child.py")
    assert results[0]["tokens"] == results[1]["tokens"] == want
    assert [result["tokens"][0] for result in results[2:]] == want
    assert results[0]["cached"] == [0] * 3 and min(results[1]["cached"]) >= 384
    counts = info["hsa_counters"]
    assert 0 < counts["pages_selected"] < counts["pages_candidate"] and counts["reprs_healed"] == 0


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
