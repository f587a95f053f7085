# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests. Engines run in child processes that see no GPU."""

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cpu_children import child_env as make_child_env  # noqa: E402, the line above makes it importable
from cpu_children import run_child  # noqa: E402


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folder of the tiny checkpoints."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def child_env():
    """``child_env(**extra)``: the environment that children run in."""
    return make_child_env


@pytest.fixture(scope="session")
def child():
    """``child([script, arg, ...], timeout=, **env)`` runs Python and returns its standard output."""
    return run_child


@pytest.fixture(scope="session")
def run_engine(tmp_path_factory):
    """``run_engine(engine_arguments, requests, **env)`` -> one dict per request, in order.

    With ``info=True``: (those, the scheduler's counters and memory use).
    """

    def run(engine, requests, info=False, **extra):
        folder = tmp_path_factory.mktemp("engine")
        job, result = folder / "job.json", folder / "result.json"
        job.write_text(json.dumps({"engine": engine, "requests": requests}))
        run_child([HERE / "engine_client.py", job, result], **extra)
        answer = json.loads(result.read_text())
        return (answer["results"], answer["info"]) if info else answer["results"]

    return run
