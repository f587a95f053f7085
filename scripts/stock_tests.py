# SPDX-License-Identifier: Apache-2.0
"""Upstream's own tests, once on the pristine pin and once on the patched tree, and the difference per test.

Exit status: 0 no test is worse, 1 a test that passes on the pin does not pass on the patched tree, 2 nothing
was compared. Each file runs in its own process under a time limit, without the network.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What the pin carries (python/sglang/test, jit_kernel/tests) and what works on a host without a GPU. The other
# files skip or fail there as a whole: they want CUDA, a model or a server. test_spec_utils.py passes under
# TRITON_INTERPRET=1 in some runs and crashes in others, so it is not here either.
STOCK_FILES = (
    "python/sglang/jit_kernel/tests/test_dependency.py",
    "python/sglang/test/longbench_v2/test_longbench_v2_eval.py",
    "python/sglang/test/test_dump_metric.py",
    "python/sglang/test/test_dynamic_grad_mode.py",
    "python/sglang/test/test_http_server_auth.py",
)

PASSED = "passed"
Results = dict[str, str]  # test id -> passed, failed, error, skipped or timeout


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stock_tests.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--pin", type=Path, help="pristine tree (default: built from the pin by overlay.py)")
    parser.add_argument("--patched", type=Path, default=Path("sglang"), help="patched tree (default: ./sglang)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with SGLang's requirements and pytest")
    parser.add_argument(
        "--tests",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder or file of an upstream checkout, for example test/registered/unit; may be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write both results and the difference")
    parser.add_argument("--timeout", type=float, default=90, help="seconds per file (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="files at a time (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    for module in ("torch", "pytest"):
        if subprocess.run([args.python, "-c", f"import {module}"], capture_output=True).returncode:
            return refuse(f"{args.python} cannot import {module}; name an interpreter that can with --python")
    with tempfile.TemporaryDirectory(prefix="stock-tests-") as folder:
        pin = args.pin or build_pin(Path(folder))
        if pin is None:
            return refuse("overlay.py could not build the pristine tree; name one with --pin")
        for tree in (pin, args.patched):
            if not package_root(tree).joinpath("sglang/__init__.py").is_file():
                return refuse(f"{tree} is not an SGLang tree")
        missing = [path for path in args.tests if not path.exists()]
        if missing:
            return refuse(f"no such test folder: {missing[0]}")
        pinned, patched = compare(pin, args.patched, args)
    return report(pinned, patched, args.json)


def refuse(message: str) -> int:
    print(f"stock_tests: error: {message}", file=sys.stderr)
    return 2


def build_pin(folder: Path) -> Path | None:
    """The pristine tree, through the public commands alone: apply somewhere else, then reverse."""
    tree = folder / "sglang"
    for command in ("apply", "reverse"):
        overlay = [sys.executable, str(ROOT / "scripts/overlay.py"), command, "--quiet", "--tree", str(tree)]
        if subprocess.run(overlay).returncode:
            return None
    return tree


def package_root(tree: Path) -> Path:
    """The folder to import from: upstream's repository has ``python/sglang``, an unpacked wheel ``sglang``."""
    return (tree / "python" if (tree / "python").is_dir() else tree).resolve()


def compare(pin: Path, patched: Path, args: argparse.Namespace) -> tuple[Results, Results]:
    trees = (pin, patched)
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [
            [(name, pool.submit(run_file, path, name, tree, args)) for name, path in test_files(tree, args.tests)]
            for tree in trees
        ]
        sides = [{name: future.result() for name, future in side} for side in futures]
    # A loaded machine can make a test miss a limit of its own: what looks broken gets a second try, alone.
    for name, path in test_files(patched, args.tests):
        before, after = sides[0].get(name, {}), sides[1][name]
        if any(outcome == PASSED and after.get(test) != PASSED for test, outcome in before.items()):
            sides[1][name] = run_file(path, name, patched, args)
    pinned, patched_results = ({k: v for file in side.values() for k, v in file.items()} for side in sides)
    return pinned, patched_results


def test_files(tree: Path, tests: list[Path]) -> list[tuple[str, Path]]:
    """(name, path) of each file; the name is the same on both sides."""
    if not tests:
        found = [(name, package_root(tree) / Path(name).relative_to("python")) for name in STOCK_FILES]
        return [(name, path) for name, path in found if path.is_file()]
    files = []
    for given in tests:
        base = given.resolve()
        paths = [base] if base.is_file() else sorted(base.rglob("test_*.py"))
        files += [(str(Path(given.name) / path.relative_to(base)).removesuffix("/."), path) for path in paths]
    return files


def run_file(path: Path, name: str, tree: Path, args: argparse.Namespace) -> Results:
    with tempfile.TemporaryDirectory(prefix="stock-test-") as folder:
        xml = Path(folder, "result.xml")
        env = {
            **os.environ,
            "PYTHONPATH": str(package_root(tree)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "SGLANG_USE_CPU_ENGINE": os.environ.get("SGLANG_USE_CPU_ENGINE", "1"),
            "HF_HOME": folder,  # no test depends on what the user has downloaded
            "TRITON_CACHE_DIR": folder,
        }
        command = [args.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(path.parent)]
        process = subprocess.Popen(
            [*command, f"--junitxml={xml}", str(path)],
            cwd=folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(args.timeout)
        except subprocess.TimeoutExpired:
            return {f"{name}::(file)": "timeout"}
        finally:
            # A test may have started servers; they belong to the session that was made for it.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        return read_junit(xml, name) if xml.is_file() else {f"{name}::(file)": "error"}


def read_junit(xml: Path, name: str) -> Results:
    results: Results = {}
    for case in ET.parse(xml).iter("testcase"):
        # The class name starts with the module; a file that does not import has neither class nor parameters.
        scope = case.get("classname", "").rpartition(".")[2] if case.get("classname") else "(import)"
        outcomes = {child.tag for child in case} & {"failure", "error", "skipped"}
        worst = next((tag for tag in ("error", "failure", "skipped") if tag in outcomes), PASSED)
        results[f"{name}::{scope}::{case.get('name')}"] = "failed" if worst == "failure" else worst
    return results


def report(pinned: Results, patched: Results, target: Path | None) -> int:
    tests = sorted(pinned.keys() | patched.keys())
    changed = [(t, pinned.get(t, "absent"), patched.get(t, "absent")) for t in tests if pinned.get(t) != patched.get(t)]
    broken = [row for row in changed if row[1] == PASSED]
    fixed = [row for row in changed if row[2] == PASSED]
    other = [row for row in changed if row not in broken and row not in fixed]
    for title, rows in (("broken", broken), ("fixed", fixed), ("otherwise different", other)):
        for test, before, after in rows:
            print(f"{title}: {test}: {before} -> {after}")
    for title, results in (("pin", pinned), ("patched", patched)):
        counts = Counter(results.values())
        print(f"{title}: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())))
    print(f"{len(broken)} broken, {len(fixed)} fixed, {len(other)} otherwise different, {len(tests)} tests")
    if target:
        rows = {title: [t for t, *_ in r] for title, r in (("broken", broken), ("fixed", fixed), ("other", other))}
        target.write_text(json.dumps({**rows, "pin": pinned, "patched": patched}, indent=1) + "\n")
    if PASSED not in patched.values():
        return refuse("no test passed on the patched tree, so the comparison says nothing")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
