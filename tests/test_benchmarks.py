# SPDX-License-Identifier: Apache-2.0
"""Benchmarks say what they lack where they cannot run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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
    assert lines == [f"{path.name}: error: this needs a CUDA device, and torch sees none here" for path in SCRIPTS]
    assert SCRIPTS and "Traceback" not in done.stderr
