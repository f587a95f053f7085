# SPDX-License-Identifier: Apache-2.0
"""Whatever a layer of the release can carry is computed or refused: the release's own source is the list."""

import ast
import inspect
from pathlib import Path

import pytest

import sglang.srt.models
from sglang.srt.layers.attention.hsa import layer_contract as contract
from sglang.srt.layers.radix_attention import RadixAttention

MODELS = Path(sglang.srt.models.__path__[0])


def parsed():
    """Files of the release's models and their syntax trees."""
    for file in sorted(MODELS.rglob("*.py")):
        yield file, ast.parse(file.read_text(encoding="utf-8-sig"))


def attention_names(tree):
    """Attributes of self that hold a RadixAttention in a model's file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            if getattr(node.value.func, "id", None) == "RadixAttention":
                yield from (
                    t.attr for t in node.targets if isinstance(t, ast.Attribute)
                )


def attentions(tree, names):
    """Nodes ``self.NAME`` and ``something.NAME``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            yield node


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
    assert carried == contract.COMPUTED | set(contract.REFUSED)


def test_models_set_no_other_attribute():
    """From outside, as Grok does with its temperature; a ``_kv_scale`` that nobody reads is Hunyuan's, ``kv_b_proj`` is of MLA models."""
    known = contract.COMPUTED | set(contract.REFUSED) | {"_kv_scale", "kv_b_proj"}
    found = set()
    for file, tree in parsed():
        names = set(attention_names(tree))
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else ()
            for target in targets:
                if isinstance(target, ast.Attribute) and any(target.value is a for a in attentions(tree, names)):  # fmt: skip
                    found.add(target.attr)
    assert {"k_scale", "xai_temperature_len"} <= found <= known


def test_models_pass_no_other_argument():
    """To a RadixAttention; a file whose own modules bear the same name adds theirs, which start with none of these."""
    passed = {}
    for file, tree in parsed():
        names = set(attention_names(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:  # fmt: skip
                if getattr(node.func.value, "id", None) == "self":
                    for keyword in node.keywords:
                        passed.setdefault(keyword.arg, set()).add(file.name)
    # Where a file gives two kinds of module one name, or builds the arguments as it goes.
    modules = {"positions", "hidden_states", "position_ids", "mixed_qkv", "a", "b"}
    slopes = {None}  # Baichuan passes its slopes on an NPU only
    known = contract.TAKEN | contract.OF_LATENT_ATTENTION | {"sinks"}
    assert set(passed) <= known | modules | slopes, passed
    assert passed[None] == {"baichuan.py"}

    classes = set()
    for name in [*passed["sinks"], "mimo_v2_flash_nextn.py"]:
        tree = ast.parse((MODELS / name).read_text(encoding="utf-8-sig"))
        [entry] = [n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "EntryClass"]  # fmt: skip
        classes.add(entry.id)
    assert classes == contract.SINK_MODELS


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
