# SPDX-License-Identifier: Apache-2.0
"""A small OpenAI server for the suite's tests: it reads the prompt like a model that answers some tasks."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer:
    """A context manager; ``url`` is its address.

    Args:
        max_model_len: what /v1/models tells; prompts above ``limit`` are refused with 400.
        reply: from the prompt to the continuation.
        fail_after: completions after which it answers 500 for good.
    """

    def __init__(self, reply, max_model_len=None, limit=None, fail_after=None):
        self.reply, self.max_model_len, self.limit, self.fail_after = reply, max_model_len, limit, fail_after
        self.prompts, self.now, self.most_at_once = [], 0, 0
        self.lock = threading.Lock()

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/v1/models":
                    self.answer(200, {"data": [{"id": "fake", "max_model_len": outer.max_model_len}]})
                else:
                    self.answer(404, {"message": "no such page"})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/tokenize":
                    self.answer(200, {"count": len(body["prompt"].split())})
                elif self.path == "/v1/completions":
                    self.answer(*outer.complete(body))
                else:
                    self.answer(404, {"message": "no such page"})

            def answer(self, status, content):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def complete(self, body):
        prompt, tokens = body["prompt"], len(body["prompt"].split())
        with self.lock:
            self.prompts.append(prompt)
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
            number = len(self.prompts)
        time.sleep(0.01 * (number % 3))  # answers come in another order than the requests
        with self.lock:
            self.now -= 1
        if self.fail_after is not None and number > self.fail_after:
            return 500, {"error": {"message": "out of memory"}}
        if self.limit is not None and tokens > self.limit:
            return 400, {"error": {"message": f"the input ({tokens} tokens) is longer than {self.limit}"}}
        text = self.reply(prompt).split(body["stop"][0])[0]
        return 200, {"choices": [{"text": text}], "usage": {"prompt_tokens": tokens}}


def find_keys(prompt):
    """Answers single, multikey and multivalue right, and everything else with the first number of the text."""
    name = re.search(r"pass keys? of (\w+)\?", prompt)
    values = re.findall(rf"The pass key of {name[1]} is (\d+)\.", prompt) if name else []
    return f" {', '.join(values or re.findall(r'[0-9]{6}', prompt)[:1])}.\nQuestion: more"
