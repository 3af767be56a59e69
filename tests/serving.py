"""A chat completion server on loopback that answers, or fails, by a function of the question."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


def completion(text: str, **choice: Any) -> bytes:
    """The body of a chat completion."""
    said = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    return json.dumps({"object": "chat.completion", "choices": [said], "usage": usage}).encode()


class Server:
    """Answers by a function of the question and of how often it was asked before."""

    def __init__(self, answer: Callable[[str, int], Answer | None]) -> None:
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                with lock:
                    before = server.asked.count(text)
                    server.asked.append(text)
                    server.bodies.append(body)
                    server.keys.add(self.headers.get("Authorization"))
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                found = answer(text, before)
                with lock:
                    server.at_once -= 1
                if found is None:  # hang up
                    self.close_connection = True
                    self.connection.close()
                    return
                status, headers, content = found
                self.send_response(status)
                for key, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content)
                if "Content-Length" in headers:  # promised more than there is
                    self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
