# SPDX-License-Identifier: Apache-2.0
"""The source map names the right lines, in the patched tree and in trees that it has never seen."""

from __future__ import annotations

import ast
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import mini_tree
import pytest
import source_map
from overlay_tool.console import OverlayError
from places import nodes, places, rows, sections, stands_there
from source_map_tool import diff, page
from source_map_tool.facts import read_map
from source_map_tool.tree import open_tree

ROOT = Path(__file__).resolve().parents[2]
ATTENTION = "python/sglang/srt/layers/attention/"
NAMED_IN_THE_PAGE = (
    "triton",
    "flashinfer",
    "trtllm_mla",
    "torch_native",
    "flex_attention",
    "fa3",
    "fa4",
    "cutlass_mla",
    "nsa",
    "hsa",
)
PICKS = 10


@pytest.fixture(scope="module")
def facts():
    return read_map(source_map.patched_tree())


@pytest.fixture(scope="module")
def patched(facts) -> str:
    return source_map.patched_page(facts)


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return read_map(open_tree(str(mini_tree.write(tmp_path_factory.mktemp("mini"))), "mini"))


def test_page_is_current(patched):
    assert not source_map.check(patched), source_map.check(patched)


def test_check_fails_when_a_line_moves(patched, tmp_path, monkeypatch):
    moved = re.sub(
        r"triton_backend\.py:(\d+)", lambda found: f"triton_backend.py:{int(found[1]) + 1}", patched, count=1
    )
    assert moved != patched
    monkeypatch.setattr(source_map, "PAGE", tmp_path / "page.md")
    assert "does not match" in source_map.check(patched)  # there is no page
    (tmp_path / "page.md").write_text(moved)
    assert "does not match" in source_map.check(patched)
    (tmp_path / "page.md").write_text(patched)
    assert not source_map.check(patched)


def test_every_registered_backend_has_a_chapter(patched):
    registry = (ROOT / "sglang" / ATTENTION / "attention_registry.py").read_text()
    names = re.findall(r'@register_attention_backend\("(\w+)"\)', registry)
    assert set(NAMED_IN_THE_PAGE) <= set(names)
    assert sorted(sections(patched)) == sorted(names)


def chapter(text: str, name: str) -> str:
    """What the page says of a name of the registry, or of FlashInfer's MLA backend, which is `flashinfer` there."""
    if name == "flashinfer_mla":
        return next(part for part in text.split("\n## ") if part.startswith("FlashInferMLAAttnBackend\n"))
    return sections(text)[name]


@pytest.mark.parametrize("backend", [*NAMED_IN_THE_PAGE, "flashinfer_mla"])
def test_ten_places_hold_what_the_page_says(patched, backend):
    known = sorted(set(places(chapter(patched, backend))))
    assert len(known) >= PICKS, known
    for name, path, line in random.Random(backend).sample(known, PICKS):
        assert stands_there(ROOT / "sglang", name, path, line), f"{name} is not on {path}:{line}"


def test_all_places_hold_what_the_page_says(patched):
    known = {place for section in sections(patched).values() for place in places(section)}
    assert len(known) > 600
    assert not [place for place in sorted(known) if not stands_there(ROOT / "sglang", *place)]


def test_definitions_end_where_the_page_says(patched):
    """Of functions and classes the tables have the last line as well."""
    known = {row for section in sections(patched).values() for row in rows(section)}
    assert sum(last > 0 for *_, last in known) > 200
    for name, path, line, last in known:
        ends = [
            node.end_lineno
            for node in nodes(ROOT / "sglang" / "python" / "sglang" / path)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.lineno == line
        ]
        assert ends in ([], [last or line]), (name, path, line, last)


def test_the_line_after_does_not(patched):
    """What the test above asks is false one line further down."""
    for name, path, line in places(sections(patched)["triton"]):
        assert not stands_there(ROOT / "sglang", name, path, line + 1), (name, path, line)


@pytest.mark.parametrize(
    "backend, path, kernel",
    [
        (
            "triton",
            ["forward_decode", "decode_attention_fwd", "decode_attention_fwd_grouped", "_decode_grouped_att_m_fwd"],
            "_fwd_grouped_kernel_stage1",
        ),
        ("flashinfer", ["forward_decode"], "flashinfer.BatchDecodeWithPagedKVCacheWrapper.forward"),
        ("trtllm_mla", ["forward_decode"], "flashinfer.decode.trtllm_batch_decode_with_kv_cache_mla"),
        ("cutlass_mla", ["forward_decode"], "sgl_kernel.cutlass_mla_decode"),
        ("fa3", ["forward_decode"], "sgl_kernel.flash_attn.flash_attn_with_kvcache"),
        (
            "fa4",
            ["forward_decode", "flash_attn_with_kvcache", "flash_attn_varlen_func"],
            "flash_attn.cute.flash_attn_varlen_func",
        ),
        ("nsa", ["forward_decode", "_forward_flashmla_kv"], "sgl_kernel.flash_mla.flash_mla_with_kvcache"),
        ("hsa", ["forward_decode", "attend", "launch", "decode_hsa"], "_decode_hsa_kernel"),
        (
            "torch_native",
            ["forward_decode", "_run_sdpa_forward_decode"],
            "torch.nn.functional.scaled_dot_product_attention",
        ),
        (
            "flex_attention",
            ["forward_decode", "_run_flex_forward_decode"],
            "torch.nn.attention.flex_attention.flex_attention",
        ),
        ("aiter", ["forward_decode"], "aiter.mla.mla_decode_fwd"),
    ],
)
def test_known_ways_to_a_kernel(backend, path, kernel, facts):
    """What anyone can read in these files; the map must have found it by itself."""
    steps = [step for item in facts.classes if backend in item.backends for step in item.paths]
    for name in path:
        steps = [step for step in steps if step.name.rsplit(".", 1)[-1] == name]
        assert steps, name
        steps = [call for step in steps for call in step.calls]
    assert kernel in [step.name for step in steps]


def test_flashinfer_mla_is_found_by_its_file(facts):
    text = page.terminal(facts, "flashinfer_mla")
    assert text.startswith("FlashInferMLAAttnBackend ") and "flashinfer.BatchMLAPagedAttentionWrapper.run" in text
    assert page.terminal(facts, "no_such_backend") is None
    assert {"flashinfer_mla", "flashinfer", "fa3"} <= set(page.names(facts))
    assert all(page.terminal(facts, name) for name in page.names(facts))


# A tree whose every answer is known


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


@pytest.mark.parametrize(
    "backend, attribute, what",
    [
        ("triton", "decode_attention_fwd", "decode_attention_fwd"),
        ("flashinfer", "prefill_wrappers_paged", "flashinfer.BatchPrefillWithPagedKVCacheWrapper"),
        ("flashinfer", "indices_updater_decode", "FlashInferIndicesUpdaterDecode"),
        ("trtllm_mla", "mha_chunk_kv_cache", "FlashInferMhaChunkKVRunner"),
        ("flex_attention", "flex_attention", "torch.nn.attention.flex_attention.flex_attention"),
        ("hsa", "dense", "another backend"),
    ],
)
def test_known_parts_of_backends(patched, backend, attribute, what):
    assert f"| `{attribute}` | `{what}` |" in sections(patched)[backend]


def test_what_is_handed_to_other_packages(patched, mini):
    """Arguments as the source has them, on one line, without comments, what is unpacked included."""
    shown = {
        name: re.findall(r"^# (\S+), (\S+):(\d+)\n(.+(?:\n    .+)*)", part, re.MULTILINE)
        for name, part in sections(patched).items()
    }
    for calls in shown.values():
        for name, path, line, text in calls:
            assert stands_there(ROOT / "sglang", name, path, int(line)) and ast.parse(text)
    for name in ("flashinfer", "trtllm_mla", "fa3", "cutlass_mla", "nsa", "flashmla"):
        assert shown[name], name
    known = {name: text for name, *_, text in shown["trtllm_mla"]}
    assert "kv_lora_rank=self.kv_lora_rank" in known["flashinfer.decode.trtllm_batch_decode_with_kv_cache_mla"]
    assert "(**common_trtllm_args," in known["flashinfer.prefill.trtllm_ragged_attention_deepseek"]
    assert "flashlib.prefill.trtllm_attend(q)" in sections(page.page(mini, page.Links(lambda path, line: None)))["alpha"]


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


def test_the_file_of_a_compiled_kernel_is_spelled_out(mini, patched):
    """A constant of another file inside an f-string; what is only known at run time stays a name."""
    assert kernels_of(mini, "AlphaBackend", "forward_mixed") == ["attend (slow_attention/{dtype}.cuh, common.cuh)"]
    files = re.findall(r"`\w+ \(([^()`]+\.cuh?)\)`", patched)
    sources = ROOT / "sglang" / "python" / "sglang" / "jit_kernel" / "csrc"
    assert files and all((sources / file).is_file() for names in files for file in names.split(", "))


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
