# SPDX-License-Identifier: Apache-2.0
"""scripts/attention_kit.py: no case of upstream's kit is lost, HSA passes what runs on a CPU, and a fault is seen."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

import attention_kit  # noqa: E402, the line above makes it importable
from attention_kit_tool import entries  # noqa: E402

KIT = entries.kit_folder()
needs_kit = pytest.mark.skipif(KIT is None, reason="the release has no attention test kit")
TWO = "extend_prefix_exact_page", "decode_page_boundary"
# All runs are in one process, which imports SGLang once. The kit changes what a process knows of its ranks, so not in this one.
RUNS = {
    "list": ["--list"],
    "extend": ["--only", TWO[0]],
    "decode": ["--only", TWO[1], "--log", "log"],
    "fault": ["--only", "long_gqa_decode_mixed", "--topk", "1", "--log", "log"],
    "nothing": ["--only", "no such case"],
}
PROGRAM = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
import attention_kit
def run(arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = attention_kit.main(arguments)
    return status, out.getvalue(), err.getvalue()
print(json.dumps({name: run(arguments) for name, arguments in json.loads(sys.argv[2]).items()}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, child):
    """(exit status, output, errors) of each of RUNS, and the log of the last that wrote one."""
    log = tmp_path_factory.mktemp("kit") / "log"
    asked = {name: [str(log) if word == "log" else word for word in words] for name, words in RUNS.items()}
    output = child(["-c", PROGRAM, str(SCRIPTS), json.dumps(asked)], timeout=120)
    return json.loads(output.splitlines()[-1]) | {"log": log.read_text()}


def row(output, case):
    return next(line for line in output.splitlines() if line.startswith(case))


@needs_kit
def test_every_batch_of_the_kit_is_a_case(runs):
    """Those of dense attention, as its source spells them."""
    source = (KIT / "attention_methods" / "dense_attention.py").read_text()
    made = {
        keyword.value.value
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "DenseAttentionCase"
        for keyword in call.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    }
    status, listed, _ = runs["list"]
    assert status == 0 and len(made) > 10
    assert {f"eager: {name}" for name in made} <= set(listed.splitlines())


@needs_kit
def test_names_of_cases_are_distinct(runs):
    listed = runs["list"][1].splitlines()
    assert len(listed) == len(set(listed))


@needs_kit
def test_every_function_of_the_kit_is_accounted_for():
    found = entries.entries(KIT)
    source = (SCRIPTS / "attention_kit_tool" / "cases.py").read_text()
    names = {name: value for name, value in vars(entries).items() if value in found}
    in_cases = {value for name, value in names.items() if f"entries.{name}" in source}
    assert in_cases >= set(entries.DRIVEN) & set(found)
    assert [entry for entry in found if not entries.is_accounted_for(entry, in_cases)] == []


@needs_kit
def test_a_function_that_no_case_names_is_noticed(tmp_path):
    (tmp_path / "tomorrow.py").write_text("def run_dense_tomorrow_case(): ...\ndef run_dense_forward(): ...\n")
    assert entries.entries(tmp_path) == ["tomorrow.run_dense_tomorrow_case"]
    assert not entries.is_accounted_for("tomorrow.run_dense_tomorrow_case", set(entries.DRIVEN))
    assert not entries.is_accounted_for(entries.VERIFY, set())
    assert entries.is_accounted_for("tomorrow.run_mla_tomorrow_case", set())


@needs_kit
@pytest.mark.parametrize("run, case", [("extend", f"eager: mha_{TWO[0]}"), ("decode", f"eager: gqa_{TWO[1]}")])
def test_hsa_with_all_pages_passes(runs, run, case):
    status, output, errors = runs[run]
    assert status == 0, output + errors
    found = re.match(re.escape(case) + r" +passed +passed +\S+ +(\d+) +(\d+)/(\d+)$", row(output, case))
    rows, selected, candidates = map(int, found.groups())
    assert rows > 0 and selected == candidates > 0


@needs_kit
def test_what_needs_a_device_has_not_passed(runs):
    assert re.search(r"needs a CUDA device +needs a CUDA device$", row(runs["decode"][1], "graph decode: gqa"))


@needs_kit
def test_a_backend_that_leaves_pages_out_is_caught(runs):
    status, output, _ = runs["fault"]
    assert status == 1
    assert re.search(r" failed +passed .*Tensor-likes are not close!", row(output, "eager: long_gqa_decode_mixed"))
    assert "== eager: long_gqa_decode_mixed on hsa\nTraceback" in runs["log"]


@needs_kit
def test_a_name_that_no_case_has_is_refused(runs):
    status, _, errors = runs["nothing"]
    assert status == 2 and "no case has 'no such case' in its name" in errors


def test_a_release_without_the_kit_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(entries, "kit_folder", lambda: None)
    assert attention_kit.main([]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("attention_kit: error: there is no attention test kit") and errors.count("\n") == 1
