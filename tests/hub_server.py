"""A hub on loopback: the small part of the hub's HTTP interface by which models and data sets are found and fetched."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".csv")
"""Files that the hub keeps as large ones, known by SHA-256; others are known by git's own hash."""


def commit_of(number: int) -> str:
    """A made-up commit."""
    return hashlib.sha1(b"commit %d" % number).hexdigest()


@dataclass
class Hub:
    """Repositories by `models/org/name` or `datasets/org/name`: branches to commits, commits to files."""

    port: int = 0
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    spoiled: set[str] = field(default_factory=set)
    """Files that are sent with a wrong byte."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def push(self, repository: str, folder: Path, number: int, branch: str = "main") -> str:
        """Make a commit of a folder's files the newest of a branch."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        commit = commit_of(number)
        self.commits.setdefault(repository, {})[commit] = files
        self.branches.setdefault(repository, {})[branch] = commit
        return commit

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of a request."""
        self.requests.append(path)
        found = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        if found:
            repository, what, revision = found[1], found[2], unquote(found[3])
            known = self.commits.get(repository)
            commit = self.branches.get(repository, {}).get(revision, revision)
            if known is None or commit not in known:
                code = "RepoNotFound" if known is None else "RevisionNotFound"
                return 404, {"X-Error-Code": code, "X-Error-Message": f"no {revision} of {repository}"}, b"{}"
            name = repository.partition("/")[2]
            tree = [_entry(path, text) for path, text in known[commit].items()]
            told: object = tree if what == "tree" else {"id": name, "sha": commit, "siblings": []}
            return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
        found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path)
        repository = f"{(found[1] or 'models/') if found else ''}{found[2] if found else ''}"
        text = self.commits.get(repository, {}).get(found[3], {}).get(unquote(found[4])) if found else None
        if found is None or text is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no such file"}, b""
        sent = text[:-1] + bytes([text[-1] ^ 1]) if found[4] in self.spoiled else text
        return 200, {"X-Repo-Commit": found[3], "ETag": f'"{_hash(found[4], text)}"'}, sent


def _hash(path: str, text: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(text).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()


def _entry(path: str, text: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(text), "oid": _hash(path, text)}
    if path.endswith(LARGE):
        entry |= {"oid": "0" * 40, "lfs": {"oid": _hash(path, text), "size": len(text), "pointerSize": 130}}
    return entry


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at work on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self, *, body: bool = True) -> None:
            status, headers, text = hub.answer(urlsplit(self.path).path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(text)

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
