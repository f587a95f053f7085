# SPDX-License-Identifier: Apache-2.0
"""The source map of a tree whose every answer is known."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import mini_tree
import pytest
from overlay_tool.console import OverlayError
from places import places, sections, stands_there
from source_map_tool import diff, page, releases
from source_map_tool.facts import read_map
from source_map_tool.tree import open_tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return read_map(open_tree(str(mini_tree.write(tmp_path_factory.mktemp("mini"))), "mini"))


def kernels_of(facts, cls: str, method: str) -> list[str]:
    item = next(item for item in facts.classes if item.place.name == cls)
    return [kernel.name for path in item.paths if path.name.endswith("." + method) for kernel in path.kernels()]


def test_what_the_mini_backends_are_built_of(mini):
    """Functions and objects that `__init__` makes, its bases' included; not what the engine hands in."""
    held = {item.place.name: [(part.attribute, part.what, part.kind) for part in item.held] for item in mini.classes}
    alpha = [
        ("decode_fwd", "decode_fwd", "function"),
        ("wrappers", "flashlib.decode.PagedWrapper", "object"),
        ("updater", "Updater", "object"),
    ]
    assert held["AlphaBackend"] == held["BetaBackend"] == alpha
    assert held["SplitBetaBackend"] == []


def test_registry_of_the_mini_tree(mini):
    assert {backend.name: [built.cls.name for built in backend.outcomes.built] for backend in mini.backends} == {
        "alpha": ["AlphaBackend"],
        "beta": ["SplitBetaBackend", "BetaBackend"],
        "old_alpha": ["AlphaBackend"],
    }
    alpha, beta, _ = mini.backends
    assert alpha.outcomes.refuses == (("runner.use_mla_backend", "alpha has no MLA"),)
    assert beta.outcomes.refuses == (("not (runner.page_size == 1)", "beta needs pages of 1"),)
    assert [built.conditions for built in beta.outcomes.built] == [("runner.split",), ("not runner.split",)]


def test_choice_of_the_mini_tree(mini):
    assert [place.name.split(".")[-1] for place in mini.chain] == ["initialize", "init_attention_backend", "_from_name"]
    assert [place.name for place in mini.helpers] == ["ServerArgs.get_attention_backends"]
    assert mini.wrapper.name == "attn_backend_wrapper"
    assert "HybridBackend" in [built.cls.name for built in mini.wrapped.built]
    assert [(place.name, place.note) for place in mini.defaults] == [
        ("alpha", "is_hopper()"),
        ("beta", "is_hip()"),
        ("old_alpha", ""),
    ]
    assert len(mini.decode_step) == 5


def test_kernels_of_the_mini_tree(mini):
    """Lazy imports, partial, wrapped attributes, arguments, lists of objects, hidden methods, super, aliases."""
    assert kernels_of(mini, "AlphaBackend", "forward_decode") == [
        "flashlib.decode.PagedWrapper.run",
        "_decode_kernel",
        "_tuned_kernel",
    ]
    assert kernels_of(mini, "AlphaBackend", "forward_extend") == ["flashlib.prefill.trtllm_attend"]
    assert kernels_of(mini, "AlphaBackend", "init_forward_metadata") == ["flashlib.decode.PagedWrapper.begin_forward"]
    assert kernels_of(mini, "BetaBackend", "forward_decode") == kernels_of(mini, "AlphaBackend", "forward_decode")
    assert kernels_of(mini, "SplitBetaBackend", "forward_decode") == ["_tuned_kernel", "_decode_kernel"]
    kinds = {kernel.name: kernel.kind for item in mini.classes for path in item.paths for kernel in path.kernels()}
    assert (
        kinds["_decode_kernel"] == "Triton"
        and kinds["flashlib.prefill.trtllm_attend"] == "TensorRT-LLM through flashlib"
    )


def test_the_file_of_a_compiled_kernel_is_spelled_out(mini):
    assert kernels_of(mini, "AlphaBackend", "forward_mixed") == ["attend (slow_attention/{dtype}.cuh, common.cuh)"]


def test_what_is_handed_to_other_packages(mini):
    text = sections(page.page(mini, page.Links(lambda path, line: None)))["alpha"]
    assert 'flashlib.prefill.trtllm_attend(q if batch else "# no comment")' in text


def test_ways_through_thin_modules(mini):
    """A table by its key, a function that is handed on, `apply`, and an object that is compiled and kept in a function."""
    found = ["flashlib.fast.plan", "Fused.__call__", "flashlib.fast.attend"]
    assert kernels_of(mini, "SplitBetaBackend", "forward_extend") == found
    text = page.terminal(mini, "SplitBetaBackend")
    assert text.count("─ _call  ") == 2 and text.count("(see above)") == 1  # not the second, which calls another kernel


def test_what_the_engine_asks_of_the_mini_backends(mini):
    """Only of backends, and of a decode step only what is in it."""
    asked = [(place.name, place.note.split()[1]) for place in mini.runner_calls]
    plan = "self.attn_backend.init_forward_metadata"
    assert asked == [("ModelRunner.forward_decode", plan), ("ModelRunner.forward_extend", plan)]
    assert not [place for place in mini.decode_step if "forward_extend" in place.name]


def test_options_that_the_mini_tree_sets(mini):
    """In an attribute, in a table and by keyword; a variable where it gets its value, and nothing that is handed on."""
    assert [(made.text, made.condition, made.function) for made in mini.settings] == [
        ("attention_backend = self._default()", "self.attention_backend is None", "ServerArgs.choose"),
        ('attention_backend = "alpha"', "args.is_small", "overrides_of_a_model"),
        ('attention_backend = "beta"', "not args.is_small", "overrides_of_a_model"),
        ('decode_attention_backend = "beta"', "args.is_odd", "overrides_of_a_model"),
        ('prefill_attention_backend = found.get("attention_backend")', "", "overrides_of_a_model"),
    ]


def test_every_place_of_two_different_trees(mini, tmp_path):
    """Not ten: all of them, in both releases of the mini tree."""
    later = read_map(open_tree(str(mini_tree.write(tmp_path / "later", mini_tree.next_release())), "later"))
    first = mini_tree.write(tmp_path / "first")
    links = page.Links(lambda path, line: None)
    for facts, folder in ((mini, first), (later, tmp_path / "later")):
        for name, section in sections(page.page(facts, links)).items():
            for place in places(section):
                assert stands_there(folder, *place) or place[0] == "function", (name, place)


def test_diff_says_what_moved(mini, tmp_path):
    later = read_map(open_tree(str(mini_tree.write(tmp_path, mini_tree.next_release())), "later"))
    text = diff.compare(mini, later)
    groups = dict(re.findall(r"^(\w[^\n]*): \d+\n((?:  [^\n]+\n)*)", text, re.MULTILINE))
    added, removed = groups["added in later"], groups["removed since mini"]
    assert "backend gamma  " in added and "backend gamma -> AlphaBackend" in added
    assert "backend old_alpha  " in removed and "backend old_alpha -> AlphaBackend" in removed
    assert "backend alpha -> BetaBackend" in added and "backend alpha  " not in added + removed
    assert re.search(
        r"kernel AlphaBackend: _tuned_kernel  \S+kernels.py:12 -> \S+helpers.py:6", groups["in another file"]
    )
    assert re.search(r"class SplitBetaBackend  \S+beta.py:10 -> 14", groups["on another line"])
    assert diff.compare(mini, mini).count(": 0\n") == 4


def test_releases_side_by_side(mini, tmp_path):
    later = read_map(open_tree(str(mini_tree.write(tmp_path, mini_tree.next_release())), "later"))
    lines = releases.page([mini, later]).splitlines()
    assert "| `old_alpha` | `AlphaBackend` | – |" in lines
    assert "| `gamma` | – | `SplitBetaBackend`, `BetaBackend`, `AlphaBackend` |" in lines
    assert "`AttentionBackend` has the same methods in each." in lines
    assert "| names of `--attention-backend` | 3 | 3 |" in lines and "| classes behind them | 3 | 3 |" in lines
    moved = "| `srt/layers/attention/kernels.py` | `srt/layers/attention/helpers.py` | 1 |"
    assert moved in lines and "Every class comes to the same kernels." in lines
    assert "No kernel went to another file." in releases.page([mini, mini])


def test_output_is_the_same_in_every_process(tmp_path):
    mini_tree.write(tmp_path / "mini")
    command = [sys.executable, str(ROOT / "scripts" / "source_map.py"), "--tree", str(tmp_path / "mini")]
    made = {
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(made) == 1


def test_errors_are_one_line(tmp_path):
    files = {"__init__.py": "", "srt/server_args.py": mini_tree.ARGS}
    with pytest.raises(OverlayError, match="has no register_attention_backend"):
        read_map(open_tree(str(mini_tree.write(tmp_path, files))))
    with pytest.raises(OverlayError, match="holds no SGLang tree"):
        open_tree(str(tmp_path / "python" / "sglang" / "srt"))
    with pytest.raises(OverlayError, match="neither a release nor"):
        open_tree("no/such/place")
