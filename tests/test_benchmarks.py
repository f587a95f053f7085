# SPDX-License-Identifier: Apache-2.0
"""Benchmarks say what they lack where they cannot run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NSA = ROOT / "sglang/python/sglang/srt/layers/attention/nsa/nsa_mtp_fused.py"
SCRIPTS = sorted((ROOT / "benchmarks").glob("bench_*.py"))

# All in one process, since most of the time goes into imports.
RUN = """
import runpy, sys
for path in sys.argv[1:]:
    sys.argv = [path]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        print(end.code)
"""


def test_without_a_cuda_device_they_end_with_one_line(child_env):
    command = [sys.executable, "-c", RUN, *map(str, SCRIPTS)]
    env = child_env(PYTHONPATH=f"{ROOT}/benchmarks:{ROOT}/sglang/python")
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["2"] * len(SCRIPTS), done.stderr
    lines = [line for line in done.stderr.splitlines() if ": error: " in line]
    lacks = {path.name: "needs a CUDA device, and torch sees none here" for path in SCRIPTS}
    if not NSA.exists():
        lacks["bench_fused_metadata.py"] = "compares with the drafts of NSA, which the tree of v0.5.10rc0 has"
    assert lines == [f"{name}: error: this {lack}" for name, lack in lacks.items()]
    assert SCRIPTS and "Traceback" not in done.stderr


def test_the_model_of_several_gpus():
    """Near what it was fitted to, within a sixth of the other measurements, and the page shows what it prints."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import scale_model

    for what, where, measured, _, fitted, model in scale_model.CHECKS:
        limit = 1.03 if fitted else 7 / 6
        assert 1 / limit < model() / measured < limit, (what, where)
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    assert scale_model.check_table() in page and scale_model.scale_table() in page


def steps(path, geometry="345m", backends=("hsa", "fa3")):
    """The output of a run of bench_steps.py."""
    rows = [
        dict(backend=backend, length=length, batch=batch, prefill_ms=length / 9, step_ms=1 + length / 1e5, spread_ms=0.1,
             prefill_spread_ms=2)
        for backend in backends for length in (8192, 32768) for batch in (1, 16)
    ]  # fmt: skip
    path.write_text("what it printed\n" + json.dumps(dict(geometry=geometry, gpu="a GPU", rows=rows)) + "\n")
    return path


def draw(*runs, out):
    command = [sys.executable, ROOT / "benchmarks/plot_steps.py", *runs, "--out", out]
    return subprocess.run(command, capture_output=True, text=True)


def test_picture_of_steps(tmp_path):
    """All backends of all runs, the same bytes for the same rows."""
    runs = steps(tmp_path / "a"), steps(tmp_path / "b", backends=("flashinfer",))
    pictures = tmp_path / "1.svg", tmp_path / "2.svg"
    for picture in pictures:
        done = draw(*runs, out=picture)
        assert done.returncode == 0, done.stderr
    text = pictures[0].read_text()
    assert text == pictures[1].read_text()
    for label in ("HSA, batch 16", "FlashAttention 3, batch 1", "FlashInfer, batch 16", "345m, a GPU"):
        assert f"<!-- {label} -->" in text, label


@pytest.mark.parametrize("text", ["", "no JSON\n", "{}\n", '["rows"]\n'])
def test_picture_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "run").write_text(text)
    done = draw(tmp_path / "run", out=tmp_path / "p.svg")
    assert done.returncode == 1 and done.stderr.startswith("plot_steps: error: ") and done.stderr.count("\n") == 1
    assert "does not end in the JSON line" in done.stderr and not (tmp_path / "p.svg").exists()


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    done = draw(steps(tmp_path / "a"), steps(tmp_path / "b", geometry="8b"), out=tmp_path / "p.svg")
    assert done.returncode == 1 and "draw them apart" in done.stderr
