# SPDX-License-Identifier: Apache-2.0
"""A stock server on the CPU, as a context manager of the tests."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from cpu_children import child_env

# Generous: a start takes some 20 s of an idle core, and other tests run beside. A server that ends is noticed at once.
READY_SECONDS = 600
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the host has no business here


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url):
    """The body of a GET."""
    with HTTP.open(url, timeout=READY_SECONDS) as response:
        return response.read().decode()


def opened(url, body):
    """The response to a POST of a JSON body, or of bytes as they are: a context manager."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    return HTTP.open(request, timeout=READY_SECONDS)


def post(url, body):
    """The JSON answer to a POST of a JSON body."""
    with opened(url, body) as response:
        return json.load(response)


def send(url, body):
    """(status, text) of the answer to such a POST, a refusal's too."""
    try:
        with opened(url, body) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def requests_of(url):
    """How many requests the server has, running or waiting."""
    try:
        return sum(load["num_reqs"] for load in json.loads(get(url + "/get_load")))
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
    loads = json.loads(get(url + "/v1/loads"))["loads"]  # v0.5.23
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)


@contextlib.contextmanager
def serving(log, **options):
    """The URL of a server that is healthy. ``options`` are its flags, True for those without a value; ``log`` a Path."""
    port = free_port()
    command = [sys.executable, "-m", "sglang.launch_server"]
    for name, value in dict(options, device="cpu", host="127.0.0.1", port=port).items():
        command += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, env=child_env(), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-8000:]
            try:
                get(url + "/health")
                break
            except OSError:  # refused, or 503 while the model is loaded
                time.sleep(0.5)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
