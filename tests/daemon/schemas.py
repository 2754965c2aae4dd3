"""A schema registry for tests: what a daemon asks of one, over HTTP on loopback."""

from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fastavro


class Schemas:
    """Schemas by id, and by subject and version; ``status`` makes every answer an error."""

    def __init__(self) -> None:
        self.ids: dict[int, dict[str, Any]] = {}
        self.subjects: dict[tuple[str, int], dict[str, Any]] = {}
        self.status = 200
        self.asked: list[str] = []
        self.logins: list[str | None] = []
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, number: int, schema: Any, **more: Any) -> None:
        self.ids[number] = {"schema": json.dumps(schema), **more}

    def start(self) -> None:
        """Listen, on the same port as before."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.logins.append(self.headers.get("Authorization"))
                status, body = outer.answer(self.path)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, path: str) -> tuple[int, Any]:
        if self.status != 200:
            return self.status, {"error_code": self.status * 100 + 1, "message": "no"}
        parts = path.strip("/").split("/")
        if parts[0] == "schemas":
            found = self.ids.get(int(parts[2]))
        else:
            found = self.subjects.get((parts[1], int(parts[3])))
        if found is None:
            return 404, {"error_code": 40403, "message": "Schema not found"}
        return 200, found


def framed(number: int, schema: Any, record: Any) -> bytes:
    """A record in the Confluent wire format."""
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(json.loads(json.dumps(schema))), record)
    return b"\x00" + number.to_bytes(4, "big") + body.getvalue()
