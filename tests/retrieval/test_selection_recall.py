# SPDX-License-Identifier: Apache-2.0
"""The recall tool against loops over single keys, and on a checkpoint against transformers' own attention."""

import csv
import math
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import selection_recall as tool

P, WINDOW, SINKS, TOPK = 4, 6, 1, 3


@pytest.fixture(scope="module")
def call():
    """5 queries of 4 heads (2 KV heads) in 61 keys, an odd length with an incomplete page."""
    generator = torch.Generator().manual_seed(0)
    q = 2 * torch.randn(5, 4, 8, generator=generator)
    k = torch.randn(61, 2, 8, generator=generator)
    return tool.Attention("test", 0, q, k, torch.tensor([60, 59, 40, 33, 6]), 8**-0.5)


def brute_force(call, kind, strategy):
    """Per query and KV head: (covered, best, local, share of the best pages, best page found), over single keys."""
    out = []
    for n, position in enumerate(call.positions.tolist()):
        start = max(0, math.floor((position - WINDOW + 1) / P))
        candidates = list(range(SINKS, start))
        if len(candidates) <= TOPK:
            continue
        per_head = []
        for h in range(2):
            heads = (2 * h, 2 * h + 1)
            weights = []
            for head in heads:
                s = [call.scale * float(call.q[n, head] @ call.k[j, h]) for j in range(position + 1)]
                total = sum(math.exp(x) for x in s)
                weights.append([math.exp(x) / total for x in s])

            def mass(page):
                keys = [j for j in range(page * P, (page + 1) * P) if j <= position]
                return sum(w[j] for w in weights for j in keys) / len(heads)

            def raw(head, page):
                keys, q = call.k[page * P : (page + 1) * P, h], call.scale * call.q[n, head]
                if kind == "mean":
                    return float(q @ keys.mean(0))
                if kind == "mean_std":
                    return float(q @ keys.mean(0) + 0.5 * (q**2) @ keys.var(0, unbiased=False))
                if kind == "mean_std":
                    return float(torch.maximum(q * keys.amin(0), q * keys.amax(0)).sum())
                return float(q @ keys[-1])

            local = [c for c in range(position // P + 1) if c < SINKS or c >= start]

            def normal(i):
                """Log normaliser of a head: exact over window and sinks, by scores over the candidates."""
                keys = [j for c in local for j in range(c * P, (c + 1) * P) if j <= position]
                exact = sum(math.exp(call.scale * float(call.q[n, heads[i]] @ call.k[j, h])) for j in keys)
                return math.log(exact + sum(math.exp(raw(heads[i], c)) for c in candidates))

            def score(page):
                values = [raw(head, page) for head in heads]
                if strategy == "group":
                    return sum(values)
                return max(values) if strategy == "head" else max(v - normal(i) for i, v in enumerate(values))

            chosen = sorted(candidates, key=lambda c: (-score(c), c))[:TOPK]
            best = sorted(candidates, key=lambda c: (-mass(c), c))[:TOPK]
            floor = sum(map(mass, local))
            covered, ceiling = floor + sum(map(mass, chosen)), floor + sum(map(mass, best))
            per_head.append((covered, ceiling, floor, len({*chosen} & {*best}) / TOPK, float(best[0] in chosen)))
        out.append(per_head)
    return torch.tensor(out).mean(0)


@pytest.mark.parametrize("strategy", ["group", "head", "softmax_head"])
@pytest.mark.parametrize("kind", ["mean", "mean_std", "slow_keys", "landmark"])
def test_equals_brute_force(call, kind, strategy):
    expected = brute_force(call, kind, strategy)
    rows = tool.recall(tool.Pages(call, P), kind, strategy, TOPK, WINDOW, SINKS)
    found = torch.tensor([[r[c] for c in ("mass", "mass_best", "mass_local", "pages", "top_page")] for r in rows])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert [r["queries"] for r in rows] == [4, 4], "the query at 6 has no candidates"
    assert (expected[:, 0] < expected[:, 1]).any(), "a selection that is always best would test nothing"


def test_all_pages_cover_everything(call):
    pages = tool.Pages(call, P)
    local, candidate = pages.parts(WINDOW, SINKS)
    chosen = pages.select("mean", "group", 1000, WINDOW, SINKS)
    covered = (pages.mass.mean(2) * (chosen | local[:, None, :])).sum(-1)
    torch.testing.assert_close(covered, torch.ones_like(covered))
    assert not (local & candidate).any()


def test_equal_bytes():
    # 16K tokens: 246 candidates. mean reads 246 * D elements less than mean_std, a page has 128 * D.
    assert tool.equal_bytes("mean_std", 32, 246, 64) == 32
    assert tool.equal_bytes("mean_std", 32, 246, 64) == 32
    assert tool.equal_bytes("mean", 32, 246, 64) == 33
    assert tool.equal_bytes("mean", 32, 8192, 64) == 96


def test_command_on_synthetic_keys(tmp_path, capsys):
    out = tmp_path / "r"
    options = "--synthetic --lengths 1024 --seeds 0 1 --queries 8 --topk 2 4".split()
    assert tool.main([*options, "--out", str(out)]) == 0
    with open(f"{out}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 3 * 2  # KV heads, kinds, strategies, K
    for row in rows:
        assert float(row["mass_local"]) <= float(row["mass"]) <= float(row["mass_best"]) + 1e-5
    ElementTree.parse(f"{out}.svg")
    first = (tmp_path / "r.csv").read_bytes()
    assert tool.main([*options, "--out", str(out)]) == 0
    assert (tmp_path / "r.csv").read_bytes() == first
    capsys.readouterr()
    assert tool.main(["--synthetic", "--lengths", "512", "--topk", "32", "--out", str(out)]) == 2
    assert "no query has more candidates" in capsys.readouterr().err
    assert tool.main(["--model", "/nowhere", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("selection_recall: ")


def test_model_calls_are_the_model_s_attention(tmp_path, capsys):
    """Queries and keys as captured give the attention weights that transformers' eager attention reports."""
    import vocabulary
    from model import Qwen3, Shape, export
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shape = Shape(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    own = vocabulary.build()
    export(Qwen3(shape), tmp_path, own.eos_token_id, own.pad_token_id)
    own.save_pretrained(tmp_path)
    calls = list(tool.model_calls(str(tmp_path), 600, "multikey", 0, 3))
    assert [(c.source, c.layer) for c in calls] == [(f"multikey {n}", i) for i in (0, 1) for n in ("answer", "text")]

    sample = tool.samples.make("multikey", 600, 0.5, 0, lambda text: len(own(text)["input_ids"]))
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path)(sample.prompt + sample.reply)["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
    for call in calls:
        assert call.positions[0] == (sample.tokens - 1 if "answer" in call.source else 0)
        pages = tool.Pages(call, 64)
        exact = weights[call.layer][0][:, call.positions]  # [H_q, N, S]
        padded = torch.nn.functional.pad(exact, (0, pages.count * 64 - exact.shape[-1]))
        expected = padded.unflatten(-1, (pages.count, 64)).sum(-1).transpose(0, 1)
        torch.testing.assert_close(pages.mass.flatten(1, 2), expected, atol=1e-5, rtol=1e-4)
