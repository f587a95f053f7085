# SPDX-License-Identifier: Apache-2.0
"""The source map names the right lines in the patched tree."""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path

import pytest
import source_map
from overlay_tool import lock
from places import nodes, places, rows, sections, stands_there
from source_map_tool import page
from source_map_tool.facts import read_map

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


def source(path: str) -> str:
    """A file of the patched tree, or nothing if the release has none of that name."""
    file = ROOT / "sglang" / "python" / "sglang" / path
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def is_gone(backend: str) -> bool:
    """Whether the release has no such backend any more."""
    return backend == "cutlass_mla" and not source("srt/layers/attention/cutlass_mla_backend.py")


@pytest.fixture(scope="module")
def facts():
    return read_map(source_map.patched_tree())


@pytest.fixture(scope="module")
def patched(facts) -> str:
    return source_map.patched_page(facts)


def test_page_is_current(patched, facts):
    if f"from the source of {facts.label};" not in source_map.PAGE.read_text(encoding="utf-8"):
        pytest.skip("the page is that of another release")
    assert not source_map.check(patched), source_map.check(patched)


def test_page_of_releases_names_those_of_the_lock():
    releases = lock.load(ROOT).releases
    written = source_map.RELEASES.read_text(encoding="utf-8")
    assert f"--releases {' '.join(release.version for release in releases.values())} --write" in written


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
    assert {name for name in NAMED_IN_THE_PAGE if not is_gone(name)} <= set(names)
    assert sorted(sections(patched)) == sorted(names)


def chapter(text: str, name: str) -> str:
    """What the page says of a name of the registry, or of FlashInfer's MLA backend, which is `flashinfer` there."""
    if name == "flashinfer_mla":
        return next(part for part in text.split("\n## ") if part.startswith("FlashInferMLAAttnBackend\n"))
    return sections(text)[name]


@pytest.mark.parametrize("backend", [*NAMED_IN_THE_PAGE, "flashinfer_mla"])
def test_ten_places_hold_what_the_page_says(patched, backend):
    if is_gone(backend):
        pytest.skip("the release has no such backend")
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


# Files through which some releases go. A step with a file is one where that file defines it.
OPS = "kernels/ops/attention/"
FA, FA3, FA4 = (f"{OPS}flash_attention{version}.py" for version in ("", "_v3", "_v4"))
FLASH_MLA = f"{OPS}flash_mla_interface.py"
AITER, DSA, TRTLLM = (f"srt/layers/attention/{name}_backend.py" for name in ("aiter", "dsa", "trtllm_mla"))
WITH_CACHE = "flash_attn_with_kvcache"


@pytest.mark.parametrize(
    "backend, path, kernel",
    [
        (
            "triton",
            ["forward_decode", "decode_attention_fwd", "decode_attention_fwd_grouped", "_decode_grouped_att_m_fwd"],
            "_fwd_grouped_kernel_stage1",
        ),
        ("flashinfer", ["forward_decode"], "flashinfer.BatchDecodeWithPagedKVCacheWrapper.forward"),
        (
            "trtllm_mla",
            ["forward_decode", (TRTLLM, "_run_decode_kernel")],
            "flashinfer.decode.trtllm_batch_decode_with_kv_cache_mla",
        ),
        ("cutlass_mla", ["forward_decode"], "sgl_kernel.cutlass_mla_decode"),
        (
            "fa3",
            ["forward_decode", (FA, WITH_CACHE), (FA3, WITH_CACHE), (FA3, "_call_fa3_kernel")],
            "sgl_kernel.flash_attn.flash_attn_with_kvcache",
        ),
        (
            "fa4",
            ["forward_decode", (FA, WITH_CACHE), WITH_CACHE, "flash_attn_varlen_func"],
            "flash_attn.cute.flash_attn_varlen_func",
        ),
        (
            "fa4",
            [
                "forward_decode",
                *[WITH_CACHE, WITH_CACHE],
                *["flash_attn_varlen_func", "flash_attn_varlen_func"],
                *["forward", "_flash_attn_fwd"],
            ],
            "FlashAttentionForwardSm90.__call__",
        ),
        ("nsa", ["forward_decode", "_forward_flashmla_kv"], "sgl_kernel.flash_mla.flash_mla_with_kvcache"),
        (
            "nsa",
            ["forward_decode", "_forward_flashmla_kv", (FLASH_MLA, "flash_mla_with_kvcache")],
            "flash_mla.flash_mla_with_kvcache",
        ),
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
        (
            "aiter",
            ["forward_decode", (AITER, "_forward_mla_decode"), (AITER, "_mla_decode_fwd_with_head_pad")],
            "aiter.mla.mla_decode_fwd",
        ),
    ],
)
def test_known_ways_to_a_kernel(backend, path, kernel, facts):
    """What anyone can read in these files; the map must have found it by itself."""
    if not has(kernel):
        pytest.skip(f"the release does not come to {kernel}")
    steps = [step for item in facts.classes if backend in item.backends for step in item.paths]
    for step in path:
        file, name = step if isinstance(step, tuple) else ("", step)
        if file and f"def {name}(" not in source(file):
            continue
        steps = [step for step in steps if step.name.rsplit(".", 1)[-1] == name]
        assert steps, name
        steps = [call for step in steps for call in step.calls]
    assert kernel in [step.name for step in steps]


def has(kernel: str) -> bool:
    """Whether the release comes to a kernel that others do not; by what its files import."""
    return {
        "sgl_kernel.cutlass_mla_decode": not is_gone("cutlass_mla"),
        "flash_attn.cute.flash_attn_varlen_func": "from flash_attn.cute" in source(FA4) or not source(FA4),
        "FlashAttentionForwardSm90.__call__": bool(source(f"{OPS}flash_attn/cute/interface.py")),
        "sgl_kernel.flash_mla.flash_mla_with_kvcache": not source(FLASH_MLA),
        "flash_mla.flash_mla_with_kvcache": bool(source(FLASH_MLA)),
    }.get(kernel, True)


def test_flashinfer_mla_is_found_by_its_file(facts):
    text = page.terminal(facts, "flashinfer_mla")
    assert text.startswith("FlashInferMLAAttnBackend ") and "flashinfer.BatchMLAPagedAttentionWrapper.run" in text
    assert page.terminal(facts, "no_such_backend") is None
    assert {"flashinfer_mla", "flashinfer", "fa3"} <= set(page.names(facts))
    assert all(page.terminal(facts, name) for name in page.names(facts))


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


def test_what_is_handed_to_other_packages(patched):
    """Arguments as the source has them, on one line, without comments, what is unpacked included."""
    shown = {
        name: re.findall(r"^# (\S+), (\S+):(\d+)\n(.+(?:\n    .+)*)", part, re.MULTILINE)
        for name, part in sections(patched).items()
    }
    for calls in shown.values():
        for name, path, line, text in calls:
            assert stands_there(ROOT / "sglang", name, path, int(line))
            [shown_call] = ast.parse(text).body
            there = [node for node in nodes(ROOT / "sglang" / "python" / "sglang" / path) if isinstance(node, ast.Call)]
            assert ast.dump(shown_call.value) in [ast.dump(node) for node in there if node.lineno == int(line)]
    for name in ("flashinfer", "trtllm_mla", "fa3", "cutlass_mla", "nsa", "flashmla"):
        assert is_gone(name) or shown[name], name
    known = {name: text for name, *_, text in shown["trtllm_mla"]}
    assert "kv_lora_rank=self.kv_lora_rank" in known["flashinfer.decode.trtllm_batch_decode_with_kv_cache_mla"]
    assert any("**" in text for text in known.values())


def test_the_file_of_a_compiled_kernel_is_spelled_out(patched):
    """A constant of another file inside an f-string; what is only known at run time stays a name."""
    files = re.findall(r"`\w+ \(([^()`]+\.cuh?)\)`", patched)
    package = ROOT / "sglang" / "python" / "sglang"
    sources = next(path for name in ("kernels/jit", "jit_kernel") if (path := package / name / "csrc").is_dir())
    spelled = {file for names in files for file in names.split(", ")}
    assert spelled and all(list(sources.glob(re.sub(r"{\w+}", "*", file))) for file in spelled)
