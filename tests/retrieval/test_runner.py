# SPDX-License-Identifier: Apache-2.0
"""A run against a server: same bytes twice and after a kill, bounded concurrency, one line for every bad input."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_server import FakeServer, find_keys

from benchmarks.retrieval import __main__ as command
from benchmarks.retrieval import gates, runner
from benchmarks.retrieval.heatmap import heatmap

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--tasks multikey multivalue variables --lengths 640 720 --depths 0.2 0.8 --samples 3".split()
TOTAL = 3 * 2 * 2 * 3


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("benchmarks.retrieval.server.PAUSE", 0)
    monkeypatch.setattr(runner, "commit", lambda: "0000000")


@pytest.fixture
def ask(tmp_path, capsys):
    """``ask(url, folder, *options)`` -> (status, standard error, results file)."""

    def run(url, folder, *options):
        out = tmp_path / folder
        status = command.main(["run", "--url", url, "--out", str(out), "--label", "run", *(options or SMALL)])
        errors = [line for line in capsys.readouterr().err.split("\n") if line.startswith("retrieval:")]
        results = out / runner.RESULTS
        return status, errors, results.read_bytes() if results.exists() else None

    return run


def test_scores_of_a_model_that_answers_two_tasks(ask, tmp_path):
    with FakeServer(find_keys) as server:
        status, errors, results = ask(server.url, "a", *SMALL, "--concurrency", "3")
        assert server.most_at_once <= 3
        assert len(server.prompts) == TOTAL
    assert (status, errors) == (0, [])
    lines = [json.loads(line) for line in results.splitlines()]
    assert len(lines) == TOTAL + 1
    assert [(r["task"], r["length"], r["depth"], r["seed"]) for r in lines[1:]] == list(
        runner.Plan(("multikey", "multivalue", "variables"), (640, 720), (0.2, 0.8), (0, 1, 2), "server").cells()
    )
    summary = json.loads((tmp_path / "a" / runner.SUMMARY).read_text())
    exact = {(s["task"], s["length"]): s["exact"] for s in summary["scores"] if s["depth"] is None}
    assert exact == {
        (t, n): float(t != "variables") for t in ("multikey", "multivalue", "variables") for n in (640, 720)
    }
    assert summary["complete"] and summary["server"]["model"] == "fake" and summary["commit"] == "0000000"
    (session,) = (tmp_path / "a" / runner.SESSIONS).read_text().splitlines()
    assert json.loads(session)["samples"] == TOTAL


def test_twice_gives_the_same_bytes(ask):
    with FakeServer(find_keys) as server:
        port = server.url  # the address is no part of the results
        first = ask(port, "a", *SMALL, "--concurrency", "4")
        second = ask(port, "b", *SMALL, "--concurrency", "1")
    assert first[2] == second[2]


def test_a_failed_server_keeps_results_and_resumes(ask):
    with FakeServer(find_keys) as server:
        whole = ask(server.url, "whole")[2]
    with FakeServer(find_keys, fail_after=10) as server:
        status, errors, part = ask(server.url, "part")
    assert status == 2
    (error,) = errors
    assert "500: out of memory" in error and f"of {TOTAL} results are kept" in error
    kept = part.count(b"\n") - 1
    assert 0 < kept <= 10 and whole.startswith(part)
    with FakeServer(find_keys) as server:
        status, _, resumed = ask(server.url, "part")
        assert len(server.prompts) == TOTAL - kept
    assert (status, resumed) == (0, whole)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line_is_asked_again(ask, tmp_path, cut):
    with FakeServer(find_keys) as server:
        whole = ask(server.url, "a")[2]
        (tmp_path / "a" / runner.RESULTS).write_bytes(whole[:-cut])
        asked = len(server.prompts)
        assert ask(server.url, "a")[2] == whole
        assert len(server.prompts) == asked + 1


def test_a_finished_run_asks_nothing(ask):
    with FakeServer(find_keys) as server:
        first = ask(server.url, "a")
        asked = len(server.prompts)
        assert ask(server.url, "a") == first
        assert len(server.prompts) == asked


def test_killed_in_the_middle(tmp_path):
    """The whole command in a process of its own, with SIGKILL."""
    with FakeServer(find_keys) as server:
        arguments = [sys.executable, "-m", "benchmarks.retrieval", "run", "--url", server.url, "--label", "run", *SMALL]
        done = subprocess.run([*arguments, "--out", str(tmp_path / "whole")], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        whole = (tmp_path / "whole" / runner.RESULTS).read_bytes()
        asked = len(server.prompts)
        process = subprocess.Popen(
            [*arguments, "--out", str(tmp_path / "killed"), "--concurrency", "2"], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        while len(server.prompts) < asked + 8 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        part = (tmp_path / "killed" / runner.RESULTS).read_bytes()
        assert len(part) < len(whole) and whole.startswith(part)
        done = subprocess.run([*arguments, "--out", str(tmp_path / "killed")], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "killed" / runner.RESULTS).read_bytes() == whole


def test_no_server(ask):
    status, errors, results = ask("http://127.0.0.1:9", "a")
    assert (status, results) == (2, None)
    assert len(errors) == 1 and "no answer from http://127.0.0.1:9/v1/models: " in errors[0]
    status, errors, _ = ask("nonsense", "a")
    assert status == 2 and "'nonsense' is not an address" in errors[0]


def test_context_longer_than_the_server_tells(ask):
    with FakeServer(find_keys, max_model_len=700) as server:
        status, errors, results = ask(server.url, "a")
        assert server.prompts == []
    assert (status, results) == (2, None)
    assert errors == [
        "retrieval: length 720 is longer than the server's context of 700 tokens: "
        "leave it out, or start the server with a longer --context-length"
    ]


def test_context_longer_than_the_server_takes(ask):
    """A server that tells no limit refuses the first long prompt; the short ones are kept."""
    with FakeServer(find_keys, limit=600) as server:
        status, errors, results = ask(server.url, "a")
    assert status == 2 and len(errors) == 1 and "is longer than 600" in errors[0]
    assert results.count(b"\n") - 1 == TOTAL // 2


def test_a_model_that_refuses(ask, capsys, tmp_path):
    with FakeServer(lambda _: " I cannot help with that") as server:
        assert command.main(["run", "--url", server.url, "--out", str(tmp_path / "a"), *SMALL]) == 0
    assert f"{TOTAL} of {TOTAL} replies list nothing that could be graded" in capsys.readouterr().out
    assert {s["exact"] for s in runner.summarize(tmp_path / "a")["scores"]} == {0.0}


def test_another_run_in_the_folder_is_refused(ask):
    with FakeServer(find_keys) as server:
        before = ask(server.url, "a")[2]
        status, errors, after = ask(server.url, "a", *SMALL, "--lengths", "640")
    assert status == 2 and after == before
    [error] = errors
    assert f"its plan.lengths differs ({[640, 720]} there, {[640]} now)" in error


@pytest.mark.parametrize(
    "options, message",
    [
        (["--tasks", "poems"], "unknown task 'poems': one of single, "),
        (["--depths", "1.5"], "depth 1.5 is not between 0 and 1"),
        (["--lengths", "640", "640"], "--lengths needs values that differ"),
        (["--lengths", "90"], "needs at least"),
        (["--samples", "0"], "must be at least 1"),
        (["--tokenizer", "/nowhere"], "no tokenizer in '/nowhere'"),
    ],
)
def test_bad_arguments(ask, options, message):
    with FakeServer(find_keys) as server:
        status, errors, _ = ask(server.url, "a", *SMALL, *options)
    assert status == 2 and len(errors) == 1 and message in errors[0]


def run_of(label, exact, depths=(0.2, 0.9)):
    """A summary of one task at 8192; ``exact`` per depth."""
    scores = [
        dict(task="multikey", length=8192, depth=d, samples=100, exact=e, recall=e) for d, e in zip(depths, exact)
    ]
    plan = dict(lengths=[8192], depths=list(depths))
    return dict(label=label, plan=plan, complete=True, results=200, scores=scores)


@pytest.mark.parametrize(
    "hsa, window, holds",
    [
        ((1.0, 0.98), (0.0, 1.0), True),
        ((0.99, 0.98), (0.4, 1.0), True),
        ((0.97, 0.98), (0.0, 1.0), False),  # HSA is 1.5 points below
        ((1.0, 1.0), (0.6, 0.0), False),  # the window alone is too good
    ],
)
def test_gates(hsa, window, holds):
    lines, all_hold = gates.check(run_of("d", (1.0, 0.98)), run_of("h", hsa), run_of("w", window), [8192], 0.7)
    assert len(lines) == 1 and all_hold is holds
    assert ("BELOW" in lines[0]) is not holds


def test_gates_compare_equal_plans_only():
    with pytest.raises(ValueError, match="different plans"):
        gates.check(run_of("d", (1, 1)), run_of("h", (1, 1), depths=(0.2, 0.8)), None, [8192], 0.7)
    with pytest.raises(ValueError, match="no run has length 16384"):
        gates.check(run_of("d", (1, 1)), run_of("h", (1, 1)), None, [16384], 0.7)
    with pytest.raises(ValueError, match="not complete"):
        gates.check(run_of("d", (1, 1)), {**run_of("h", (1, 1)), "complete": False}, None, [8192], 0.7)


def test_heatmap_shows_every_cell():
    runs = [run_of("dense", (1.0, 0.98)), run_of("a < b", (0.25, 0.5))]
    root = ElementTree.fromstring(heatmap(runs, per_task=True))
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"dense", "a < b", "all tasks", "multikey", "8K", "depth 20%"} <= set(texts)
    assert [t for t in texts if t in ("100", "98", "25", "50")] == ["100", "98"] * 2 + ["25", "50"] * 2
