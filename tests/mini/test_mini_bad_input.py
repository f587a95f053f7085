# SPDX-License-Identifier: Apache-2.0
"""What cannot run is refused in one line, alone, and nothing else is lost."""

import pytest
import torch
from tiny_models import prompt_ids

from sglang.mini import MiniEngine, MiniError, SamplingParams

GREEDY = SamplingParams(max_tokens=10, ignore_eos=True)
BAD = (
    ("", "empty"),
    ([], "empty"),
    (prompt_ids(300), "300 tokens, which with max_tokens 10 is more than the 256 tokens"),
    ([5, 512], "token id 512 is not in the vocabulary of 512"),
    ([-1], "token id -1"),
    (None, "be or contain None"),
    (7, "be or contain 7"),
    (["a", "b"], "be or contain 'a'"),
)


def test_bad_prompts_fail_alone(world, check_books):
    w = world("qwen3")
    engine = w.engine(page_size=16, token_budget=256)
    good = [prompt_ids(n, seed=n) for n in (1, 100, 246)]
    prompts = [good[0], *(prompt for prompt, _ in BAD), *good[1:]]
    results = engine.generate(prompts, GREEDY)
    for (_, words), result in zip(BAD, results[1:]):
        assert result.finish_reason == "error" and words in result.error and result.token_ids == []
    kept = [results[0], *results[-2:]]
    assert [r.token_ids for r in kept] == [w.expected(p, 10) for p in good]
    check_books(engine)


def test_longest_prompt_fits_to_the_token(world):
    engine = world("qwen3").engine(page_size=16, token_budget=100)  # 6 pages
    assert engine.generate(prompt_ids(86), GREEDY).error is None
    assert "more than the 96 tokens" in engine.generate(prompt_ids(87), GREEDY).error


def test_the_context_of_the_model_is_a_limit(world):
    w = world("qwen3", max_position_embeddings=64)
    engine = w.engine(page_size=16)
    assert engine.generate(prompt_ids(54), GREEDY).token_ids == w.expected(prompt_ids(54), 10)
    assert "more than the 64 tokens" in engine.generate(prompt_ids(55), GREEDY).error


def test_logits_that_are_not_numbers_fail_alone(world, check_books, monkeypatch):
    w = world("qwen3")
    engine = w.engine(page_size=16)
    forward = engine.scheduler.forward

    def poisoned(batch):
        logits = forward(batch).clone()
        for i, (_, tokens, _) in enumerate(batch):
            if len(tokens) == 33:
                logits[i, 5] = float("nan")
        return logits

    monkeypatch.setattr(engine.scheduler, "forward", poisoned)
    prompts = [prompt_ids(n, seed=n) for n in (20, 33, 40)]
    results = engine.generate(prompts, GREEDY)
    assert results[1].error == "the model's logits are not numbers."
    assert [results[i].token_ids for i in (0, 2)] == [w.expected(prompts[i], 10) for i in (0, 2)]
    check_books(engine)


def test_an_exception_in_the_model_leaves_the_engine_usable(world, check_books, monkeypatch):
    w, prompts = world("qwen3"), [prompt_ids(n, seed=n) for n in (20, 33)]
    engine = w.engine(page_size=16)
    forward, calls = engine.scheduler.forward, []

    def fails_once(batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory")
        return forward(batch)

    monkeypatch.setattr(engine.scheduler, "forward", fails_once)
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(prompts, GREEDY)
    check_books(engine)
    assert [r.token_ids for r in engine.generate(prompts, GREEDY)] == [w.expected(p, 10) for p in prompts]


@pytest.mark.parametrize(
    "options, words",
    (
        ({"tp_size": 2}, "tp_size 2 is not supported"),
        ({"backend": "flash"}, "backend 'flash' is not known"),
        ({"page_size": 48}, "power of two of at least 16"),
        ({"page_size": 0}, "power of two of at least 16"),
        ({"page_size": 8}, "power of two of at least 16"),
        ({"token_budget": 511}, "holds no page of 512 tokens"),
        ({"max_running": 0}, "max_running 0"),
        ({"chunk_size": 0}, "chunk_size 0"),
        ({"eviction": "fifo"}, "use lru or lfu"),
        ({"token_budget": 1 << 60}, "does not fit into memory: lower token_budget"),
    ),
)
def test_options(world, options, words):
    with pytest.raises(MiniError, match=words) as caught:
        world("qwen3").engine(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, words",
    (
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_k": -2}, "top_k -2"),
        ({"stop": ("",)}, "not empty"),
    ),
)
def test_sampling_parameters(options, words):
    with pytest.raises(MiniError, match=words):
        SamplingParams(**options)


def test_number_of_sampling_parameters(world):
    with pytest.raises(MiniError, match="1 sampling parameters for 2 prompts"):
        world("qwen3").engine().generate([[1], [2]], [GREEDY])


def test_folders(world, tmp_path):
    with pytest.raises(MiniError, match="does not exist"):
        MiniEngine(str(tmp_path / "nothing"))
    with pytest.raises(MiniError, match="has no config.json"):
        MiniEngine(str(tmp_path))


def test_a_checkpoint_without_all_weights(world, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(world("qwen3").path, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MiniError, match="lacks 1 weights, among them model.layers.1.self_attn.q_proj.weight"):
        MiniEngine(str(folder))


def test_without_a_tokenizer(world):
    w = world("qwen3")
    engine = MiniEngine(w.model)
    result = engine.generate(prompt_ids(20), GREEDY)
    assert result.token_ids == w.expected(prompt_ids(20), 10) and result.text == ""
    assert "no tokenizer: give token ids" in engine.generate("text").error
    assert "need a tokenizer" in engine.generate([1], SamplingParams(stop="x")).error


@pytest.fixture
def no_hub(monkeypatch):
    """Where the package ``kernels`` is installed, a model of Mamba asks a hub for its kernels; without, it does not."""
    from transformers.models.mamba import modeling_mamba

    monkeypatch.setattr(modeling_mamba, "lazy_load_kernel", lambda name: None, raising=False)


@pytest.mark.parametrize("kind", ("gpt2", "bloom", "mamba", "gpt_oss"))
def test_models_are_refused_by_name(no_hub, kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    if kind == "gpt_oss":
        small.update(num_key_value_heads=2, head_dim=16, intermediate_size=16, num_local_experts=2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small))
    with pytest.raises(MiniError, match=f"{type(model).__name__} .model type {kind}. is not supported: use one of"):
        MiniEngine(model)


def test_what_the_probe_refuses(world, no_hub, monkeypatch):
    """Models of other types, let through the list: sinks in the softmax, and layers without attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    monkeypatch.setattr("sglang.mini.model.MODEL_TYPES", ("gpt_oss", "mamba"))
    small = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2)
    sinks = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=16, intermediate_size=16, num_local_experts=2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **small, **sinks))
    with pytest.raises(MiniError, match="its attention takes s_aux"):
        MiniEngine(model)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **small))
    with pytest.raises(MiniError, match="do not all have one attention"):
        MiniEngine(model)


def test_rotary_embeddings_that_depend_on_the_batch(world):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(world("llama").path)
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(MiniError, match="is not supported: dynamic rotary embeddings depend on"):
        MiniEngine(model)


def test_a_model_of_an_engine_used_without_it(world):
    import copy

    w = world("qwen3")
    model = copy.deepcopy(w.oracle)
    MiniEngine(model)
    with pytest.raises(MiniError, match="set_attn_implementation"):
        model(torch.tensor([[1, 2]]))
    model.set_attn_implementation("eager")
    assert model(torch.tensor([[1, 2]])).logits.equal(w.oracle(torch.tensor([[1, 2]])).logits)
