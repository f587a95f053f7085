# SPDX-License-Identifier: Apache-2.0
"""The training script: its checkpoint is a Qwen3, its data is what the suite asks, a run learns and goes on."""

import json
import re

import data
import pytest
import torch
import train
import vocabulary
from model import Qwen3, Shape, export
from recipe import RECIPES

from benchmarks.retrieval import tasks

LITTLE = dict(
    hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model whose every parameter is random and exact in bfloat16, and its checkpoint."""
    model = Qwen3(Shape(**LITTLE), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # ones would hide a norm that is left out
                weight.uniform_(0.5, 2.0, generator=generator)
            weight.copy_(weight.bfloat16().float())
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = vocabulary.build()
    export(model, folder, tokenizer.eos_token_id, tokenizer.pad_token_id)
    vocabulary.save(tokenizer, folder)
    return model, folder


def test_exported_logits_equal_transformers(exported):
    from transformers import AutoModelForCausalLM

    model, folder = exported
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    assert type(reference).__name__ == "Qwen3ForCausalLM"
    assert sum(w.numel() for w in reference.parameters()) == sum(w.numel() for w in model.parameters())
    ids = torch.randint(0, model.shape.vocab_size, (2, 300), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, found = reference(ids).logits, model.logits(model(ids))
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_exported_tokenizer_is_the_suite_s(exported):
    from transformers import AutoTokenizer

    loaded, own = AutoTokenizer.from_pretrained(exported[1]), vocabulary.build()
    text = tasks.key_fact("mite", "572008") + tasks.ask("What?", "é")
    assert loaded(text)["input_ids"] == own(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token_id == json.loads((exported[1] / "config.json").read_text())["eos_token_id"]


def test_the_committed_shape_fits():
    shape = RECIPES["needle"].shape
    model = Qwen3(shape)
    assert 2 * sum(w.numel() for w in model.parameters()) < 8e6 - 20000  # bytes in bfloat16, header included
    assert shape.vocab_size == vocabulary.rows(vocabulary.build())
    assert shape.num_attention_heads > shape.num_key_value_heads


def test_batches_are_deterministic():
    encode = data.Encoder(vocabulary.build())
    arguments = dict(rows=3, length=300, text_weight=0.0, dense=0.5, pool=1000)
    first, second, other = (data.batch(encode, 0, step, **arguments) for step in (5, 5, 6))
    assert (first.ids == second.ids).all() and (first.weight == second.weight).all()
    assert (first.ids != other.ids).any()


@pytest.mark.parametrize("length, pool", [(128, 32), (128, 1000), (256, 1000), (1000, 1000), (4096, 1000)])
def test_every_trained_answer_follows_from_its_text(length, pool):
    tokenizer = vocabulary.build()
    encode = data.Encoder(tokenizer)
    mixes = tuple(mix for mix in data.MIXES if mix != "recital")
    batch = data.batch(encode, 0, 0, rows=12, length=length, pool=pool, mixes=mixes)
    asked = 0
    for ids, weight in zip(batch.ids, batch.weight):
        filled = [i for i in ids.tolist() if i != encode.pad]
        assert len(filled) > 0.8 * length
        assert tokenizer.encode(tokenizer.decode(filled)) == filled, "as the suite's prompts are encoded"
        text, *questions = tokenizer.decode(filled).split("\n\nQuestion: ")
        assert questions
        for question in questions[:-1] or questions:  # the last may be cut off
            asked += 1
            if name := re.search(r"pass keys? of (\w+)\?", question):
                held = re.findall(rf"pass key of {name[1]} is (\d{{6}})\.", text)
                assert held and question.endswith(f" {', '.join(held)}.\n") or len(questions) == 1
            elif value := re.search(r"does (\d+) fill,", question):
                copies = dict(re.findall(r"Here (\w+) fills (\w+)\.", text))
                chain = [value[1]]
                while chain[-1] in copies:
                    chain.append(copies[chain[-1]])
                assert len(chain) == tasks.CHAIN + 1
                assert question.endswith(f" {', '.join(chain[1:])}.\n") or len(questions) == 1
        # What is learned in full weight is answers: the tokens that follow a question.
        assert weight.max() >= 1.0 and weight[: len(encode(text))].max() <= 0.5
    assert asked >= 12


def test_a_recital_says_the_same_every_time():
    tokenizer = vocabulary.build()
    encode = data.Encoder(tokenizer)
    batch = data.batch(encode, 0, 0, rows=20, length=500, mixes=("recital",))
    several = 0
    for ids, weight in zip(batch.ids, batch.weight):
        text = tokenizer.decode(ids.tolist())
        said = [tuple(statement.rsplit(" ", 1)) for statement in text.split("Text:")[1].split(".")[:-1]]
        said = [(re.sub(r"Here | fills|,", "", begin), end) for begin, end in said]
        assert len(set(said)) == len({begin for begin, _ in said})
        several += len(set(said)) > 3
        # The first round teaches nothing; from the second on every end counts.
        taught = tokenizer.decode([i for i, w in zip(ids.tolist(), weight) if w])
        assert abs(taught.count(".") - (len(said) - len(set(said)))) <= 1
    assert several


def run(folder, capsys, *options):
    defaults = ["--recipe", "seconds", "--device", "cpu", "--workers", "0", "--report", "5", "--samples", "1"]
    assert train.main(["--out", str(folder), *defaults, "--lengths", "256", *options]) == 0
    out = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", out)]
    return json.loads(out.splitlines()[-1]), losses, out


def test_a_run_learns_resumes_and_repeats(tmp_path, capsys, monkeypatch):
    result, losses, _ = run(tmp_path / "a", capsys)
    assert result["complete"] and result["steps"] == sum(s["steps"] for s in result["course"])
    assert losses[-1] < losses[0] - 1.0
    written = (tmp_path / "a" / "checkpoint" / "README.md").read_text()
    assert f"{result['parameters']:,} parameters" in written and "Finished as planned: yes" in written
    assert (tmp_path / "a" / "checkpoint" / "model.safetensors").stat().st_size == result["bytes"]

    # The same course from the same seed gives the same weights, whatever the clock says.
    def repeat(folder, *options):
        again, *_ = run(tmp_path / folder, capsys, "--schedule", str(tmp_path / "a" / "schedule.json"), *options)
        assert again["course"] == result["course"]
        return torch.load(tmp_path / folder / "state.pt", weights_only=True)["model"]

    first, second = repeat("b", "--minutes", "0.0001"), repeat("c")
    assert all(torch.equal(first[name], second[name]) for name in first)

    # A finished run only evaluates, or does its last stage once more; another seed does not fit into its folder.
    _, losses, out = run(tmp_path / "a", capsys)
    assert losses == [] and f"resumed at step {result['steps']}" in out
    more, losses, _ = run(tmp_path / "a", capsys, "--again")
    assert more["course"] == [*result["course"], result["course"][-1]] and losses
    with pytest.raises(SystemExit, match="multikey needs at least"):
        run(tmp_path / "d", capsys, "--lengths", "128")
    with pytest.raises(SystemExit, match="give another --out"):
        run(tmp_path / "a", capsys, "--seed", "1")


def test_a_run_that_is_out_of_time_goes_on(tmp_path, capsys, monkeypatch):
    """Cut off in the first stage; the second call finishes it on the steps that follow."""
    with monkeypatch.context() as clock:
        clock.setattr(train.Run, "time_left", property(lambda self: 60.0 if self.step < 7 else 0.0))
        first, *_ = run(tmp_path / "a", capsys)
    assert not first["complete"] and first["steps"] == 7 and first["course"] == []
    assert not (tmp_path / "a" / "schedule.json").exists()
    second, _, out = run(tmp_path / "a", capsys, "--minutes", "5")
    assert "resumed at step 7, after 0 stages" in out
    assert second["complete"] and second["steps"] == 30
