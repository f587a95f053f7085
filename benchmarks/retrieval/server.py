# SPDX-License-Identifier: Apache-2.0
"""What the suite needs of a server: the OpenAI completions endpoint, and SGLang's own pages where there are any."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

ATTEMPTS = 3
PAUSE = 0.5  # seconds before the second attempt, twice as many before the third
# What of SGLang's server arguments belongs to a result.
ARGUMENTS = (
    "attention_backend device dtype kv_cache_dtype page_size context_length chunked_prefill_size "
    "disable_radix_cache tp_size quantization json_model_override_args"
).split()


class ServerError(Exception):
    """A request that cannot succeed; one line."""


class Server:
    """Client of one server.

    Args:
        url: address without a path, such as ``http://127.0.0.1:30000``.
        timeout: seconds that one request may take.
        api_key: sent as bearer token.
    """

    def __init__(self, url: str, timeout: float = 600, api_key: str | None = None):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout = timeout
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        host = urllib.parse.urlsplit(self.url).hostname
        if host is None:
            raise ServerError(f"{url!r} is not an address; write one such as http://127.0.0.1:30000")
        # A proxy of the environment is not meant for this machine.
        proxies = [urllib.request.ProxyHandler({})] if host in ("localhost", "127.0.0.1", "::1") else []
        self.opener = urllib.request.build_opener(*proxies)

    def connect(self) -> dict[str, Any]:
        """Name of the model, its longest context where the server tells it, and what SGLang says about itself."""
        card = self._call("/v1/models")["data"][0]
        self.model = card["id"]
        about = {"model": card["id"], "max_model_len": card.get("max_model_len")}
        info = self.server_info()
        about["arguments"] = {k: v for k, v in sorted(info.items()) if k in ARGUMENTS or k.startswith("hsa_")}
        about["version"] = info.get("version")
        return about

    def server_info(self) -> dict[str, Any]:
        """SGLang's /server_info; empty for another server."""
        try:
            return self._call("/server_info")
        except ServerError:
            return {}

    def hsa_counters(self) -> dict[str, int] | None:
        states = self.server_info().get("internal_states") or [{}]
        return states[0].get("hsa_counters")

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt by the server's own tokenizer."""
        try:
            return self._call("/tokenize", {"model": self.model, "prompt": text})["count"]
        except ServerError as error:
            raise ServerError(f"the server does not count tokens ({error}); give --tokenizer FOLDER") from None

    def complete(self, prompt: str, new_tokens: int) -> tuple[str, int | None]:
        """Greedy continuation up to the end of the line, and the server's count of prompt tokens.

        Raises:
            ServerError: the server refused the request, or did not answer it ``ATTEMPTS`` times.
        """
        body = dict(model=self.model, prompt=prompt, max_tokens=new_tokens, temperature=0, stop=["\n"])
        answer = self._call("/v1/completions", body)
        try:
            return answer["choices"][0]["text"], (answer.get("usage") or {}).get("prompt_tokens")
        except (KeyError, IndexError, TypeError):
            raise ServerError(f"/v1/completions answered something else: {json.dumps(answer)[:200]}") from None

    def _call(self, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                request = urllib.request.Request(self.url + path, data, self.headers)
                with self.opener.open(request, timeout=self.timeout) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                reason = f"{path} of {self.url} answered {error.code}: {_message(error.read(2000))}"
                if error.code < 500:
                    raise ServerError(reason) from None
            except json.JSONDecodeError:
                raise ServerError(f"{path} of {self.url} did not answer JSON") from None
            except (OSError, ValueError) as error:
                reason = f"no answer from {self.url}{path}: {getattr(error, 'reason', error)}"
            if attempt < ATTEMPTS:
                time.sleep(PAUSE * attempt)
        raise ServerError(reason)


def _message(body: bytes) -> str:
    """The message of an error, in one line."""
    text = body.decode(errors="replace")
    try:
        answer = json.loads(text)
        text = (answer.get("error") or answer)["message"] if isinstance(answer, dict) else text
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:300]
