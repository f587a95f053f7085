# SPDX-License-Identifier: Apache-2.0
"""What start-up says to options, configurations and tensors that do not go with a HiLS checkpoint."""

import json
import shutil

import pytest
import safetensors.torch as safetensors
from hils_checkpoints import FOLDER, cases, engine_arguments, request

from sglang.srt.configs.hils import QwenHiLSConfig
from sglang.srt.server_args import ServerArgs


def arguments(path=FOLDER / "qwen_c16", **options):
    given = dict(model_path=str(path), attention_backend="hsa", device="cpu", skip_tokenizer_init=True)
    return ServerArgs(**{**given, **options})


def changed(tmp_path, name="qwen_c16", **fields):
    """A copy of a checkpoint whose configuration has other fields."""
    path = tmp_path / name
    shutil.copytree(FOLDER / name, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))
    return path


@pytest.mark.parametrize(
    "options,text",
    [
        (dict(page_size=16), "--page-size 16: the pages of this checkpoint are 15 tokens and a landmark"),
        (dict(hsa_page_size=64), "--page-size 64: the pages of this checkpoint are 15 tokens"),
        (dict(hsa_sink_pages=1), "--hsa-sink-pages 1: the checkpoint was trained for HSA with 0; drop the option."),
        (dict(hsa_selection_strategy="head"), "--hsa-selection-strategy head: the checkpoint was trained"),
        (dict(hsa_layers="1-"), "--hsa-layers 1-: the checkpoint was trained for HSA with 0,1,2,3"),
        (dict(hsa_chunk_repr="slow_keys"), "--hsa-chunk-repr slow_keys: the checkpoint was trained for HSA with prior"),
        (dict(hsa_weight_mode="mass"), "--hsa-weight-mode mass: the checkpoint"),
        (dict(hsa_prefill="dense"), "--hsa-prefill dense: the checkpoint was trained for HSA with sparse"),
        (dict(hsa_enable_swa_fusion=False), "--hsa-enable-swa-fusion False: the checkpoint"),
        (dict(tp_size=4), "does not support more tensor-parallel ranks than KV heads"),
        (dict(enable_lora=True), "does not support LoRA adapters of HiLS checkpoints"),
    ],
)
def test_options_that_contradict_the_checkpoint(options, text):
    with pytest.raises(ValueError) as error:
        arguments(**options)
    first, *others = str(error.value).splitlines()
    # A score of slow_keys is no weight, which is wrong with --hsa-weight-mode as well.
    assert text in first and (not others or "slow_keys" in text)


@pytest.mark.parametrize("size,aligned", [(64, 75), (60, 60), (8, 15), (-1, -1)])
def test_chunks_are_whole_pages_and_no_smaller_than_asked(size, aligned):
    """Pages of 15 tokens: prompts and sizes are powers of two, of which smaller chunks would leave a rest."""
    assert arguments(chunked_prefill_size=size).chunked_prefill_size == aligned


def test_budget_and_window_make_another_model(caplog):
    args = arguments(hsa_topk=7, hsa_window_size=64)
    assert args.hsa_topk == 7 and args.hsa_window_size == 64 and args.page_size == 15
    said = [record.message for record in caplog.records if "another model" in record.message]
    assert len(said) == 2 and "--hsa-topk 7: the checkpoint was trained with 3" in said[0]


@pytest.mark.parametrize(
    "name,fields,what",
    [
        ("qwen_c16", dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "scaled rotary embedding"),
        ("qwen_c16", dict(rope_parameters={"rope_type": "yarn", "factor": 4.0}), "scaled rotary embedding"),
        ("qwen_c16", dict(insert_landmarks=False), "(insert_landmarks False)"),
        ("qwen_c16", dict(enable_prior_query=False), "(enable_prior_query False)"),
        ("qwen_c16", dict(enable_chunk_pooling=True), "means of keys"),
        ("qwen_c16", dict(shared_q_c=True), "(shared_q_c True)"),
        ("qwen_c16", dict(chunk_size=24), "pages of 24 places"),
        ("qwen_c16", dict(num_swa_layers=4), "no layer that uses HSA"),
        ("qwen_c16", dict(hils_sliding_window=0), "HSA without a window"),
        ("olmo_c16", dict(mask_lmk_token=False), "landmarks that sliding windows attend"),
        ("olmo_c16", dict(sliding_window=24), "no whole pages (sliding_window 24)"),
        ("olmo_c16", dict(use_sliding_window=False), "full attention beside HSA"),
        ("olmo_c16", dict(replace_full_attention_with_hils=False), "(replace_full_attention_with_hils False)"),
        ("olmo_c16", dict(attention_bias=True), "biases beside a sliding window"),
    ],
)
def test_configurations_that_are_not_served(tmp_path, name, fields, what):
    with pytest.raises(ValueError) as error:
        arguments(changed(tmp_path, name, **fields))
    lines = [line for line in str(error.value).splitlines() if "this HiLS checkpoint, which asks for" in line]
    assert any(what in line for line in lines), str(error.value)


def rewritten(tmp_path, change):
    path = changed(tmp_path)
    file = path / "model.safetensors"
    tensors = safetensors.load_file(file)
    change(tensors)
    file.unlink()
    safetensors.save_file(tensors, file)
    return path


@pytest.mark.parametrize(
    "change,text",
    [
        (
            lambda tensors: tensors.pop("model.layers.2.self_attn.k_proj.weight"),
            "has missing tensors: model.layers.2.self_attn.k_proj.weight",
        ),
        (
            lambda tensors: tensors.pop("model.layers.1.self_attn.lmk_q_norm.weight"),
            "has missing tensors: model.layers.1.self_attn.lmk_q_norm.weight",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.self_attn.q_c": tensors["model.norm.weight"].clone()}),
            "has surplus tensors: model.layers.0.self_attn.q_c",
        ),
        (
            lambda tensors: tensors.update(
                {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:300].clone()}
            ),
            "model.embed_tokens.weight has 300 rows and needs 301",
        ),
    ],
    ids=["a-part", "a-norm", "surplus", "no-landmark"],
)
def test_tensors_that_do_not_go_with_the_configuration(tmp_path, engine_child, change, text):
    """# trap 22"""
    path = rewritten(tmp_path, change)
    with pytest.raises(AssertionError) as error:
        run_once(engine_child, tmp_path, engine_arguments("qwen_c16", model_path=str(path)))
    assert text in str(error.value)


def test_another_backend_is_refused_before_weights_are_read(tmp_path, engine_child):
    """# trap 28"""
    with pytest.raises(AssertionError) as error:
        run_once(engine_child, tmp_path, engine_arguments("qwen_c16", attention_backend="torch_native"))
    text = "qwen_hils checkpoints were trained for HSA, which no other attention backend computes"
    assert text in str(error.value) and "Load weight" not in str(error.value)


def run_once(engine_child, tmp_path, engine):
    job = tmp_path / "job.json"
    one = request(cases("qwen_c16")[:1])
    job.write_text(json.dumps({"engine": engine, "requests": [one], "random_weights": False}))
    engine_child(["tests/engine_client.py", job, tmp_path / "result.json"])


def test_landmark_ids_are_refused_in_prompts(tmp_path, run_engine):
    """# trap 34"""
    arguments = engine_arguments("qwen_c16")
    with pytest.raises(AssertionError, match="300"):
        run_engine(arguments, [dict(prompts=[[5, 300, 7]], max_new_tokens=2)])


@pytest.mark.parametrize("length", [2041, 2300])
def test_the_last_positions_have_their_rotation(run_engine, length):
    """Up to max_position_embeddings, and beyond it where SGLang is told to allow that. # trap 16"""
    prompt = [5 + i % 200 for i in range(length)]
    longer = length > 2048
    variables = dict(SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN="1") if longer else {}
    engine = engine_arguments("qwen_c16", **(dict(context_length=length + 8) if longer else {}))
    [result] = run_engine(engine, [dict(prompts=[prompt], max_new_tokens=1, logprobs=True)], **variables)
    assert result["logprobs"][0][0] < 0


SERVED = dict(hils_sliding_window=512, full_attn_interleave=1)


def test_either_field_of_rotary_embedding_is_read():
    config = QwenHiLSConfig(**SERVED, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert config.rotary_theta == 5e5 and config.unsupported() == []
    config = QwenHiLSConfig(**SERVED, rope_scaling={"rope_type": "default"}, rope_theta=2e4)
    assert config.rotary_theta == 2e4 and config.unsupported() == []
