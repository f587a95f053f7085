# SPDX-License-Identifier: Apache-2.0
"""The model of ``examples/needle/hils.py`` that is trained is the one that a server serves."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "needle"
sys.path[:0] = [str(EXAMPLE), str(EXAMPLE.parents[1])]

import train  # noqa: E402
from hils import HiLS, HiLSShape  # noqa: E402
from model import export  # noqa: E402

SHAPE = HiLSShape(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, head_dim=16, chunk_size=16,
    hils_sliding_window=32, hils_topk=3, lmk_q_lora_dim=8, max_position_embeddings=2048, rope_context_length=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    made = HiLS(SHAPE, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() == 1:
                weight.normal_(generator=generator)
                weight.mul_(0.3).add_(1.0) if "norm" in name else None
            weight.copy_(weight.bfloat16())  # what the checkpoint holds
    return made.eval()


def test_a_server_computes_what_was_trained(model, run_engine, tmp_path):
    export(model, tmp_path, 2, 1)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in (5, 15, 47, 300)]
    engine = dict(model_path=str(tmp_path), attention_backend="hsa", skip_tokenizer_init=True)
    request = dict(prompts=prompts, max_new_tokens=1, prompt_logprobs=True)
    [result], info = run_engine(engine, [request], info=True)
    for prompt, ours in zip(prompts, result["prompt_logprobs"]):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            every = model.logits(model(ids)).log_softmax(-1)
        expected = every[0, :-1].gather(1, ids[0, 1:, None]).flatten()
        assert torch.allclose(torch.tensor(ours[1:]), expected, atol=1e-5)
    counts = info["hsa_counters"]
    assert 0 < counts["pages_selected"] < counts["pages_candidate"]


def test_gradients_reach_what_landmarks_are_made_of(model):
    ids = torch.randint(3, 300, (2, 200), generator=torch.Generator().manual_seed(4))
    model.zero_grad()
    model.logits(model(ids)).logsumexp(-1).sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_it_starts_as_a_dense_checkpoint_that_chooses_by_its_queries():
    model = HiLS(HiLSShape())
    model.start_from(EXAMPLE / "checkpoint")
    attention = model.model["layers"][0].self_attn
    x = torch.randn(1, 64, 256, generator=torch.Generator().manual_seed(5))
    chooser = attention.lmk_q_proj[1](attention.lmk_q_proj[0](x)) + attention.q_proj(x)
    heads = (1, 64, 4, 64)
    assert torch.equal(attention.lmk_q_norm(chooser.view(heads)), attention.q_norm(attention.q_proj(x).view(heads)))
    assert torch.equal(model.model.lmk_embed, model.model["embed_tokens"].weight.mean(dim=0))
    with pytest.raises(SystemExit, match="is no checkpoint of this shape"):
        HiLS(HiLSShape(num_hidden_layers=4)).start_from(EXAMPLE / "checkpoint")


def test_a_run_learns(tmp_path, capsys):
    options = "--recipe hils-seconds --device cpu --workers 0 --report 5 --samples 1 --lengths 256".split()
    assert train.main(["--out", str(tmp_path), *options]) == 0
    out = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", out)]
    result = json.loads(out.splitlines()[-1])
    assert result["complete"] and losses[-1] < losses[0] - 1.0
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert config["model_type"] == "qwen_hils" and config["hils_topk"] == 2
    with pytest.raises(SystemExit, match="--start is for recipes of HiLS"):
        train.main(["--out", str(tmp_path / "b"), "--recipe", "seconds", "--start", str(EXAMPLE / "checkpoint")])
