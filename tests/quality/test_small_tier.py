# SPDX-License-Identifier: Apache-2.0
"""The small tier with its servers: HSA answers what dense attention answers, and a kind of one vector per page does not."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.quality import arms, gates
from cpu_children import child_env

ROOT = Path(__file__).resolve().parents[2]


def test_small_tier(tmp_path):
    command = [sys.executable, "-m", "benchmarks.quality", "--tier", "small", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=child_env(), capture_output=True, text=True, timeout=1800)
    assert done.returncode != 2, done.stderr.strip().splitlines()[-1]  # no model, or no server
    assert done.returncode == 0, done.stdout[-3000:]
    found = json.loads((tmp_path / "gates.json").read_text())
    assert found["complete"] and found["holds"] and found["failures"] == []
    default, control = found["rows"]
    assert (default["role"], control["role"], control["kind"]) == (arms.DEFAULT, arms.CONTROL, "mean")
    assert default["keys"] == default["keys_dense"] == default["keys_total"]
    assert control["budget"] == default["budget"] and gates.broken(control, gates.SMALL[arms.CONTROL])
    for row in found["rows"]:
        assert 0 < row["share"] < 0.5
    assert (tmp_path / "gates.svg").read_text().startswith("<svg")
