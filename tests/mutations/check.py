# SPDX-License-Identifier: Apache-2.0
"""Show that the tests fail where they should: each deliberate fault, in a copy of the patched tree, and its test.

    python tests/mutations/check.py [PART OF A NAME]

Run it in the environment of the tests, after ``scripts/apply_overlay.sh``. It takes some ten seconds a fault on a free core,
prints a line for each, and one of JSON. Exits with 1 if a test passes with its fault, or fails without reaching it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from cpu_children import child_env  # noqa: E402, the line above makes it importable

TESTS = Path("sglang/test/attention")
SECONDS = 1800  # of one test


def run_test(tree: Path, fault: Fault) -> subprocess.CompletedProcess:
    """Run the fault's test on a tree, up to the first failure."""
    env = child_env(PYTHONPATH=f"{tree}:{ROOT / 'tests/kernels'}")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    if fault.kernel:
        env["TRITON_INTERPRET"] = "1"
        command += ["-p", "quick_interpreter"]
    command.append(f"{tree / TESTS / fault.test}")
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)


def caught(tree: Path, fault: Fault) -> bool:
    """Whether the fault's test fails with the fault, for a line of the test or of what it calls. The tree is left as it was."""
    path = tree / "sglang" / "srt" / fault.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        done = run_test(tree, fault)
    finally:
        path.write_text(text, encoding="utf-8")
    why = re.findall(r"^E  +(\S.*)", done.stdout, re.MULTILINE)
    found = done.returncode == 1 and bool(why)  # 1: tests ran, and some failed
    print(f"{'caught' if found else 'MISSED'}: {fault.name}\n    {fault.test}: {why[0] if why else done.stdout[-200:]}", flush=True)
    return found


def main() -> int:
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    faults = [fault for fault in FAULTS if part in fault.name]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "python"
        shutil.copytree(ROOT / "sglang/python", tree, ignore=shutil.ignore_patterns("__pycache__"))
        missed = [fault.name for fault in faults if not caught(tree, fault)]
    print(json.dumps(dict(faults=len(faults), caught=len(faults) - len(missed), missed=missed)))
    return 1 if missed or not faults else 0


if __name__ == "__main__":
    sys.exit(main())
