# SPDX-License-Identifier: Apache-2.0
"""Child processes of the CPU tests."""

import os
import subprocess
import sys
from functools import partial


def child_env(**extra):
    """The environment of a CPU-only host on which nobody has set SGLANG_USE_CPU_ENGINE."""
    env = {k: v for k, v in os.environ.items() if k not in ("SGLANG_USE_CPU_ENGINE", "TRITON_INTERPRET")}
    # The children import the sglang and the test helpers that this process imports.
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return {**env, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **extra}


def run_child(args, timeout=600, **extra):
    done = subprocess.run(
        [sys.executable, *map(str, args)], env=child_env(**extra), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout


def on_ranks(run_engine, pairs=1):
    """``run_engine`` for engines with two tensor-parallel ranks, or more pairs of ranks."""
    cores = sorted(os.sched_getaffinity(0))
    return partial(
        run_engine,
        # SGLang wants to be told where there are fewer NUMA nodes than ranks.
        SGLANG_CPU_OMP_THREADS_BIND="|".join([f"{cores[0]}|{cores[-1]}"] * pairs),
        # Each rank would compile C++ for the mask of its part of the vocabulary, which takes seconds.
        TORCH_COMPILE_DISABLE="1",
    )
