"""The operators' verbs over HTTP: a daemon's control API, asked as if it were here.

An order carries a request id of its own, so that it can be sent again when the answer was lost on
the way: the daemon carries it out once.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from daemon.control import Order
from registry import NotFound, RegistryError

ATTEMPTS, PAUSE_SECONDS = 3, 0.5
# `verify` reads every file of every version before it answers.
ANSWER_SECONDS = 600.0


class Client:
    """A daemon's control API. Safe to use for one request after the other."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        server_name: str | None = None,
    ) -> None:
        """``server_name``: the name in the server's certificate, where it is not the URL's host.

        Raises `RegistryError` for a URL or a file of certificates that is none.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryError(f"{url!r} is no URL of a daemon: write http://HOST:PORT")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._path = parts.path.rstrip("/")
        self._host, self._port = parts.hostname, port or (443 if parts.scheme == "https" else 80)
        self._token, self._name = token, server_name or parts.hostname
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=ca_file)
            except OSError as error:
                raise RegistryError(f"cannot use the certificates in {ca_file}: {error}") from error

    def ask(self, verb: str, given: Mapping[str, Any]) -> Any:
        """The answer of a verb that looks. Raises `NotFound`, `RegistryError`."""
        pairs = [
            (name, _text(item))
            for name, value in given.items()
            if value is not None
            for item in (value if isinstance(value, list | tuple) else [value])
        ]
        query = f"?{urlencode(pairs)}" if pairs else ""
        return self._request("GET", f"/v1/{verb}{query}", None)

    def order(self, verb: str, given: Mapping[str, Any], order: Order) -> Any:
        """The answer of a verb that orders. Raises `NotFound`, `RegistryError`."""
        body = {
            **{name: value for name, value in given.items() if value is not None},
            "actor": order.actor,
            "reason": order.reason,
            "request_id": order.request_id or uuid.uuid4().hex,
        }
        return self._request("POST", f"/v1/{verb}", json.dumps(body).encode())

    def _request(self, method: str, path: str, body: bytes | None) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                status, data = self._exchange(method, self._path + path, body)
                break
            except ssl.SSLCertVerificationError as error:
                why = f"its certificate is not trusted ({error.verify_message}): see --ca-file"
                raise NotFound(f"cannot talk to {self.url}: {why}") from error
            except (OSError, http.client.HTTPException) as error:
                if attempt == ATTEMPTS:
                    raise NotFound(f"no daemon answers at {self.url}: {_why(error)}") from error
                time.sleep(PAUSE_SECONDS)
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if status == 200 and found is not None:
            return found
        message = found.get("error") if isinstance(found, dict) else None
        if message is None:
            raise NotFound(f"what answers at {self.url} (with {status}) is no driftd daemon")
        raise (NotFound if status == 404 else RegistryError)(str(message))

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = _Connection(self._host, self._port, self._tls, self._name)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """A connection whose certificate may carry another name than the host that is dialled."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, name: str) -> None:
        super().__init__(host, port, timeout=ANSWER_SECONDS)
        self._tls, self._name = tls, name

    def connect(self) -> None:
        """Connect, quickly or not at all, and then wait for answers as long as it takes."""
        self.sock = socket.create_connection((self.host, self.port), timeout=10.0)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)
        self.sock.settimeout(ANSWER_SECONDS)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
