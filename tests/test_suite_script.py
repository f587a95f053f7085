# SPDX-License-Identifier: Apache-2.0
"""scripts/test.sh reports what its test processes report: no failure passes, no success fails."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "test.sh"
ENVIRONMENT = """
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
env_release() { ARGUMENTS=("$@"); }
env_apply() { :; }
env_install() { :; }
env_enter() { PATH=$ROOT/bin:$PATH; }
"""
# Stands for python -m pytest: the process that runs the servers has no --ignore.
PYTHON = """#!/usr/bin/env bash
case "$*" in *--ignore*) name=others ;; *) name=servers ;; esac
if [ "$FAILS" = $name ]; then echo "FAILED test_of_$name"; echo "1 failed"; exit 1; fi
echo "3 passed"
"""
STOCK = """#!/usr/bin/env bash
if [ "$FAILS" = stock ]; then echo "1 broken"; exit 1; fi
"""


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize("arguments", [[], ["-q"], ["--quick"]], ids=["whole suite", "with arguments", "quick"])
@pytest.mark.parametrize("fails", ["nothing", "servers", "others", "stock"])
@pytest.mark.parametrize("with_stock", [True, False], ids=["stock tests", "no stock tests"])
def test_status_is_the_status_of_the_tests(tmp_path, fails, arguments, with_stock):
    executable(tmp_path / "bin/python", PYTHON)
    executable(tmp_path / "scripts/stock_tests.sh", STOCK)
    executable(tmp_path / "scripts/env.sh", ENVIRONMENT)
    shutil.copy(SCRIPT, tmp_path / "scripts")
    stock = tmp_path / "sglang/python/sglang/test/test_dump_metric.py"  # of the releases whose archives have tests
    if with_stock:
        stock.parent.mkdir(parents=True)
        stock.touch()
    done = subprocess.run(
        ["bash", tmp_path / "scripts/test.sh", *arguments],
        env={**os.environ, "FAILS": fails, "TMPDIR": str(tmp_path / "bin")}, capture_output=True, text=True,
    )  # fmt: skip
    ran = ("servers",)
    if not arguments:
        ran += ("others", "stock") if with_stock else ("others",)
        assert ("takes those of a checkout" in done.stdout) != with_stock
    assert (done.returncode != 0) == (fails in ran), done.stdout + done.stderr
    if not arguments:
        result = done.stdout[done.stdout.index("result:") :]
        assert ("FAILED" in result) == (fails in ("servers", "others"))
    assert os.listdir(tmp_path / "bin") == ["python"]  # the logs are gone


def test_what_is_quick_exists():
    """Every file that the quick tier names is one of the repository's, or of the tree that is made of it."""
    text = SCRIPT.read_text()
    names = re.search(r"quick=\((.*)\)\n", text)[1].split()
    root = SCRIPT.parents[1]
    assert names and all((root / f"overlay/python/sglang/test/attention/test_hsa_{name}.py").is_file() for name in names)
    targets = re.search(r'run_pytest "\$@" .* (tests/.*)$', text, re.MULTILINE)[1].split()
    assert targets and all((root / target).exists() for target in targets)
