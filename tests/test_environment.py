# SPDX-License-Identifier: Apache-2.0
"""An interpreter that will not do ends scripts/quickstart.sh with one line, before anything is made."""

import os
import subprocess
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).resolve().parents[1] / "scripts" / "quickstart.sh"
OLD = """#!/bin/sh
case "$1" in -V) echo "Python 3.8.18" ;; *) case "$2" in *version_info*) exit 1 ;; esac ;; esac
"""
STAND_IN = """#!/bin/sh
echo "python: command not found" >&2
echo "it exists in other versions" >&2
exit 127
"""


@pytest.mark.parametrize(
    "text, said",
    [
        (OLD, "Python 3.8.18 ({}) is too old; set PYTHON to a Python 3.10 or later"),
        (STAND_IN, "{} does not run; install Python 3.10 or later, or set PYTHON"),
        (None, "{} was not found; install Python 3.10 or later, or set PYTHON"),
    ],
    ids=["old", "stand-in", "missing"],
)
def test_python_that_will_not_do(tmp_path, text, said):
    python = tmp_path / "python"
    if text:
        python.write_text(text)
        python.chmod(0o755)
    env = {**os.environ, "PYTHON": str(python), "SGLANG_HSA_VENV": str(tmp_path / "venv")}
    done = subprocess.run([QUICKSTART], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"quickstart.sh: error: {said.format(python)}\n"
    assert not (tmp_path / "venv").exists()
