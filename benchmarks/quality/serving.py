# SPDX-License-Identifier: Apache-2.0
"""A server of SGLang as a context manager, and the few requests that the gates and the quickstart make."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

READY_SECONDS = 600
REQUEST_SECONDS = 600
STOP_SECONDS = 15

# No proxy: the servers are on this machine.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServingError(Exception):
    """A server that does not start, or a request that fails; one line.

    ``status``: that of the answer, if there was one.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


def greedy_body(ids: list[int] | list[list[int]], new_tokens: int, **more) -> dict:
    """A request to /generate for exactly so many greedy tokens; ``more`` are further fields."""
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    return {"input_ids": ids, "sampling_params": sampling, **more}


class Server:
    """One server. It has a session of its own, so that all its processes end with it.

    Args:
        name: what it is called on screen, and its log.
        logs: folder of the logs.
        model: folder of the model.
        options: further options of ``sglang.launch_server``.
        env: variables beside those of this process.
        show: whether to print the command.
    """

    def __init__(
        self, name: str, logs: Path, model: Path, options: list[str], env: dict[str, str] | None = None, show: bool = True
    ):
        self.name, self.show, self.extra = name, show, env or {}
        self.log = logs / f"{name.replace(' ', '-').replace('/', '-')}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = ["-m", "sglang.launch_server", "--model-path", str(model), *options]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port)]

    def __enter__(self) -> Server:
        print(f"\n{self.name}: " + (f"python {shlex.join(self.command)}\n  starting " if self.show else "starting "), end="")
        sys.stdout.flush()
        started = time.monotonic()
        env = {**os.environ, "HF_HUB_OFFLINE": "1", **self.extra}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command], stdout=log, stderr=log, env=env, start_new_session=True
            )
        try:
            while not self._healthy():
                if self.process.poll() is not None:
                    raise ServingError(
                        f"the server '{self.name}' ended with status {self.process.returncode}: {self._last_error()}"
                    )
                if time.monotonic() - started > READY_SECONDS:
                    raise ServingError(f"the server '{self.name}' was not ready within {READY_SECONDS} s")
                print(".", end="", flush=True)
                time.sleep(2)
        except BaseException:
            print()
            self._stop()
            raise
        print(f" ready after {time.monotonic() - started:.0f} s", flush=True)
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def get(self, path: str) -> Any:
        return self._call(path, None)

    def post(self, path: str, body: dict) -> Any:
        return self._call(path, json.dumps(body).encode())

    def post_quietly(self, path: str, body: dict) -> int:
        """The status of a POST whose refusal is no error."""
        return self._send(path, json.dumps(body).encode())[0]

    def open(self, path: str, body: bytes | None) -> Any:
        """The response to a GET, or to a POST of JSON, as a context manager that reads it line by line."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        return HTTP.open(request, timeout=REQUEST_SECONDS)

    def greedy(self, ids: list[int] | list[list[int]], new_tokens: int, **more) -> Any:
        """/generate of token ids, greedy; ``more`` are fields of the request."""
        return self.post("/generate", greedy_body(ids, new_tokens, **more))

    def losses(self, ids: list[int], start: int) -> list[float]:
        """Negative log-probability of every token after position ``start``."""
        meta = self.greedy(ids, 1, return_logprob=True, logprob_start_len=start)["meta_info"]
        found = [-value for value, *_ in meta["input_token_logprobs"] if value is not None]
        if len(found) != len(ids) - start - 1:
            raise ServingError(f"'{self.name}' returned {len(found)} log-probabilities of {len(ids) - start - 1}")
        return found

    def counters(self) -> dict[str, int]:
        """HSA's counters, of all replicas together.

        Raises:
            ServingError: it does not run HSA.
        """
        replicas = [state.get("hsa_counters") for state in self.get("/server_info")["internal_states"]]
        if None in replicas:
            raise ServingError(f"the server '{self.name}' reports no HSA counters: it does not run HSA")
        return {name: sum(counters[name] for counters in replicas) for name in replicas[0]}

    def _call(self, path: str, body: bytes | None) -> Any:
        status, answer = self._send(path, body)
        if status >= 400:
            said = answer[:300].decode(errors="replace")
            raise ServingError(f"{path} of '{self.name}' answered {status}: {said}", status)
        return json.loads(answer)

    def _send(self, path: str, body: bytes | None) -> tuple[int, bytes]:
        """(status, answer), a refusal's too."""
        try:
            with self.open(path, body) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            raise ServingError(f"{path} of '{self.name}' failed: {error}") from None

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError):  # refused, or 503 while the model is loaded
            with HTTP.open(f"{self.url}/health", timeout=30):
                return True
        return False

    def _last_error(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or ["it wrote nothing"])[-1]

    def _stop(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):  # what is left of its schedulers
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
