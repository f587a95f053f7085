# SPDX-License-Identifier: Apache-2.0
"""Engines without the price of their start: a process that has imported what engines import, and forks.

An engine is three processes or more, and each of them spends 15 s of a core on imports before it does anything. The
nursery imports once, then forks a process for every script that it is asked to run; the engine in it forks its
schedulers and its detokenizer, where SGLang would start a new interpreter for each. Nothing else is shared: an engine's
arguments, weights, pools and sockets are its own, as are the variables that its script is run with.

What differs from a host's engine: all its processes import with SGLANG_USE_CPU_ENGINE=1, as its schedulers do there.
Every server of the tests starts SGLang's way, and so do the engines of two tests of cpu_host.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cpu_children import child_env


class Nursery:
    """``Nursery(**variables)(["script.py", argument, ...])`` runs a script as ``cpu_children.run_child`` does."""

    def __init__(self, **variables):
        env = {**child_env(**variables), "SGLANG_USE_CPU_ENGINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, args, timeout=600):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            job = dict(args=[str(arg) for arg in args], log=str(log), timeout=timeout)
            print(json.dumps(job), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
            output = log.read_text() if log.exists() else ""
        assert answer.strip() == "0", f"{args[0]} ended with {answer.strip() or 'its nursery'}: {output[-12000:]}"
        return output

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def run(args, log):
    """The life of a forked process: a session of its own, its output in the log."""
    import multiprocessing
    import runpy
    import traceback

    import torch.multiprocessing

    os.setsid()
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    os.dup2(1, 2)
    for module in (multiprocessing, torch.multiprocessing):
        module.set_start_method = lambda *_, **__: None  # SGLang asks for spawn; fork is the default
    sys.argv = args
    sys.path.insert(0, os.path.dirname(args[0]))
    status = 0
    try:
        runpy.run_path(args[0], run_name="__main__")
    except SystemExit as error:
        if error.code:
            print(error.code, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main():
    import gc
    import signal
    import threading
    import time

    # What the processes of an engine import.
    import sglang  # noqa: F401
    import sglang.srt.entrypoints.engine  # noqa: F401
    import sglang.srt.managers.data_parallel_controller  # noqa: F401
    import sglang.srt.managers.detokenizer_manager  # noqa: F401
    import sglang.srt.managers.scheduler  # noqa: F401
    import sglang.srt.models.registry  # noqa: F401

    assert threading.active_count() == 1, "a thread would not survive the fork"
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run(job["args"], job["log"])
        deadline = time.monotonic() + job["timeout"]
        ended = 0
        while not ended:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.05)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
