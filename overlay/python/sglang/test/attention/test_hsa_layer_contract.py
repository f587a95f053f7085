# SPDX-License-Identifier: Apache-2.0
"""Whatever a layer of the release can carry is computed or refused: the release's own source is the list."""

import ast
import functools
import inspect
from pathlib import Path

import pytest

import sglang.srt.models
from sglang.srt.layers.attention.hsa import layer_contract as contract
from sglang.srt.layers.radix_attention import RadixAttention

# Of later releases: layers with sinks for some types of a class, and drafts of an algorithm that is refused.
BY_TYPE, DRAFTS = {"granite.py", "granitemoe.py"}, {"dflash.py"}
# Draft models that build a layer of MiMo's, in either release.
NEXTN = {"mimo_v2_flash_nextn.py", "mimo_v2_nextn.py"}
MODELS = Path(sglang.srt.models.__path__[0])


@functools.lru_cache(maxsize=None)
def models():
    """Of each file of the release's models: its name, its tree, and the attributes of self that hold a RadixAttention."""
    found = []
    for file in sorted(MODELS.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8-sig"))
        names = {
            target.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and getattr(node.value.func, "id", None) == "RadixAttention"
            for target in node.targets
            if isinstance(target, ast.Attribute)
        }
        found.append((file.name, tree, names))
    return found


def test_every_attribute_of_a_layer_is_known():
    tree = ast.parse(inspect.getsource(RadixAttention))
    [init] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__init__"]  # fmt: skip
    carried = {
        target.attr
        for node in ast.walk(init)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute)
    }
    known = contract.COMPUTED | set(contract.REFUSED)
    assert carried <= known and known - carried <= contract.LATER


def test_models_set_no_other_attribute():
    """From outside, as Grok does with its temperature; a ``_kv_scale`` that nobody reads is Hunyuan's, ``kv_b_proj`` is of MLA models."""
    known = contract.COMPUTED | set(contract.REFUSED)
    known |= {"_kv_scale", "kv_b_proj"}
    found = {
        target.attr
        for _, tree, names in models()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute)
        and getattr(target.value, "attr", None) in names
    }
    assert {"k_scale", "xai_temperature_len"} <= found <= known


def test_models_pass_no_other_argument():
    """To a RadixAttention; a file whose own modules bear the same name adds theirs, which start with none of these."""
    passed = {}
    for file, tree, names in models():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:  # fmt: skip
                if getattr(node.func.value, "id", None) == "self":
                    for keyword in node.keywords:
                        passed.setdefault(keyword.arg, set()).add(file)
    # Where a file gives two kinds of module one name, or builds the arguments as it goes.
    modules = {
        "positions", "hidden_states", "position_ids", "mixed_qkv", "a", "b",
        "cu_seqlens", "forward_metadata", "position_embeddings",
    }  # fmt: skip
    # Baichuan passes its slopes on an NPU only; Inkling hands on what is named below.
    slopes = {None}
    # Of Inkling and MiniMax-M3, whose first pass is refused by these names.
    at_first_pass = {
        "aux_tensors", "rel_bias", "rel_bias_event", "score_mod", "idx_q", "idx_k", "idx_v"
    }  # fmt: skip
    taken = {
        "forward_batch",
        "save_kv_cache",
        "hsa_mask_last_slot",
    }
    of_mla = {"q_rope", "k_rope"}  # whose models are refused as such
    # Of IQuest Q1 with sinks, which its configuration has a flag for.
    of_sinks = {"sinks", "return_lse"}
    known = taken | of_mla | of_sinks
    assert set(passed) <= known | modules | slopes | at_first_pass, passed
    # Of later releases: Inkling's, and Dots 3's, an MLA model.
    later = {"attn.py", "modeling.py"}
    assert {"baichuan.py"} <= passed[None] <= {"baichuan.py"} | later

    classes = {
        name.id
        for file, tree, _ in models()
        if file in (passed["sinks"] | NEXTN) - BY_TYPE - DRAFTS
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EntryClass"
        for name in getattr(node.value, "elts", [node.value])
    }
    assert classes <= contract.SINK_MODELS
    if BY_TYPE & passed["sinks"]:
        from sglang.srt.models.granite import SWA_MODEL_TYPES

        assert SWA_MODEL_TYPES == contract.SINK_TYPES
    assert contract.SINK_MODELS - classes <= {"MiMoV2ForCausalLM"}  # of later releases


def layer(layer_id=0, **kwargs):
    made = RadixAttention(4, 8, 1.0, 2, layer_id=layer_id, **kwargs)
    return f"model.layers.{layer_id}.attn", made


def test_ordinary_layers_pass():
    contract.check_layers(layer(i, logit_cap=30.0 * i) for i in range(3))


@pytest.mark.parametrize(
    "attribute,value,message",
    [
        ("xai_temperature_len", 1024, "a temperature that grows with the position .xai_temperature_len 1024"),
        ("logit_capping_method", "sigmoid", "a soft cap that is not tanh .logit_capping_method sigmoid"),
        ("pos_encoding_mode", "ROPE_LLAMA", "positions that the attention encodes itself"),
        ("use_irope", True, "attention within chunks"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused(attribute, value, message):
    name, made = layer(logit_cap=30.0)
    setattr(made, attribute, value)
    with pytest.raises(ValueError, match=f"{name}, which asks for {message}"):
        contract.check_layers([(name, made)])


def test_layers_that_share_a_cache_are_refused():
    """Each would write its representations."""
    message = "other, which shares the cache of model.layers.1.attn"
    with pytest.raises(ValueError, match=message):
        contract.check_layers([layer(0), layer(1), ("other", layer(1)[1])])


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
