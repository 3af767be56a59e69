"""Stands in for a generation server: says on /health that it is well until it is told to end or to fall silent.

python tests/generation_server.py PORT START_SECONDS
"""

from __future__ import annotations

import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Health(BaseHTTPRequestHandler):
    """Answers /health; ends the process at /end."""

    def do_GET(self) -> None:
        if self.path == "/end":
            print("out of memory, they say", flush=True)
            sys.exit(3)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server(HTTPServer):
    """Ends with a request that ends it, where http.server would go on."""

    def handle_error(self, request: object, client_address: object) -> None:
        sys.exit(3)


if __name__ == "__main__":
    print("loading", flush=True)
    time.sleep(float(sys.argv[2]))
    Server(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
