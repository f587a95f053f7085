# SPDX-License-Identifier: Apache-2.0
"""Child processes of the CPU tests."""

import os
import subprocess
import sys


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
