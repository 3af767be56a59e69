"""A tracking server on loopback that keeps what `wandb sync` sends: runs, their histories, their files."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "email": "me@example.org"}
SERVER: dict[str, Any] = {
    "cliVersionInfo": {"max_cli_version": "9.9.9"},
    "latestLocalVersionInfo": None,
    "features": [],
}


@dataclass
class Recorder:
    """Runs by id: variables of the first upsert, and lines of history by their place in it."""

    port: int = 0
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def history(self, run: str) -> list[dict[str, Any]]:
        """What was logged to a run, in order."""
        return [json.loads(line) for _, line in sorted(self.lines[run].items())]

    def post(self, path: str, text: str) -> dict[str, Any]:
        """The answer to what was posted."""
        if path.endswith("/graphql"):
            asked = json.loads(text)
            return {"data": self._data(str(asked.get("operationName")), asked["query"], asked.get("variables") or {})}
        if path.endswith("/file_stream"):
            run = path.split("/")[-2]
            files = json.loads(text).get("files") or {}
            sent = files.get("wandb-history.jsonl", {"content": [], "offset": 0})
            for index, line in enumerate(sent["content"]):
                self.lines[run][sent["offset"] + index] = line
        return {}

    def _data(self, operation: str, query: str, given: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(operation)
        data: dict[str, Any] = {"viewer": VIEWER, "serverInfo": SERVER}
        entity = {"id": "e", "name": "me"}
        if operation == "RunResumeStatus":
            data["model"] = {"id": "p", "name": given["project"], "entity": entity, "bucket": None}
            if given["name"] in self.runs:
                data["model"]["bucket"] = self._state(given["name"])
        elif operation == "UpsertBucket":
            run, project = given["name"], {"id": "p", "name": given["project"], "entity": entity}
            inserted = run not in self.runs
            self.lines.setdefault(run, {})
            self.runs.setdefault(run, {key: value for key, value in given.items() if value is not None})
            bucket = {"id": "b", "name": run, "displayName": given.get("displayName"), "project": project}
            bucket |= {"config": None, "sweepName": None, "historyLineCount": len(self.lines[run])}
            data["upsertBucket"] = {"bucket": bucket, "inserted": inserted}
        elif operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            data["createRunFiles"] = {"runID": "b", "uploadHeaders": [], "files": files}
        return data

    def _state(self, run: str) -> dict[str, Any]:
        history = [line for _, line in sorted(self.lines[run].items())]
        return {
            "id": "b", "name": run, "displayName": run, "summaryMetrics": "{}", "config": "{}", "tags": [],
            "notes": None, "wandbConfig": "{}", "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]",
            "historyLineCount": len(history), "historyTail": json.dumps(history[-1:]),
        }  # fmt: skip


@contextmanager
def recording() -> Iterator[Recorder]:
    """The recorder at work on a free port of loopback."""
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            text = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            if key := self.headers.get("Authorization"):  # files go to addresses that need none
                recorder.keys.add(key)
            answer = {} if self.command != "POST" else recorder.post(self.path, text.decode())
            told = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_PUT = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    recorder.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()
