# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests. Engines run in child processes that see no GPU."""

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scripts")]

from cpu_children import child_env as make_child_env  # noqa: E402, the line above makes it importable
from cpu_children import run_child  # noqa: E402
from engine_nursery import Nursery  # noqa: E402


@pytest.fixture(scope="session")
def generator():
    """The script that writes the support matrix, as a module."""
    import support_matrix

    return support_matrix


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
def engine_child():
    """As ``child``, for scripts that start an engine: a fork of a nursery, one for each set of variables."""
    nurseries = {}

    def run(args, timeout=600, **variables):
        key = tuple(sorted(variables.items()))
        if key not in nurseries:
            nurseries[key] = Nursery(**variables)
        return nurseries[key](args, timeout)

    yield run
    for nursery in nurseries.values():
        nursery.close()


@pytest.fixture(scope="session")
def run_engine(tmp_path_factory, engine_child):
    """``run_engine(engine_arguments, requests, **env)`` -> one dict per request, in order.

    With ``info=True``: (those, the scheduler's counters and memory use). With ``start=run_child`` the engine starts as on
    a host, and takes a minute of a core for it. With ``random_weights=True`` a model loaded as a dummy gets weights of
    which every token depends on those before it. ``client`` may be another script like ``engine_client.py``.
    """

    def run(
        engine, requests, info=False, start=engine_child, random_weights=False, client="engine_client.py", **extra
    ):  # fmt: skip
        folder = tmp_path_factory.mktemp("engine")
        job, result = folder / "job.json", folder / "result.json"
        job.write_text(json.dumps({"engine": engine, "requests": requests, "random_weights": random_weights}))
        start([HERE / client, job, result], **extra)
        answer = json.loads(result.read_text())
        return (answer["results"], answer["info"]) if info else answer["results"]

    return run
