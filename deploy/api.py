"""The HTTP face of an engine: routes, limits, status codes, metrics.

A Starlette application that adds nothing to the engine: what a request means is in
`deploy.protocol`, what becomes of it in `deploy.engine`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from deploy.access import OPEN, Scope, Scopes, guarded
from deploy.answering import STATUS, Answering, aside
from deploy.engine import Loaded
from deploy.errors import (
    ClientGoneError,
    DeployError,
    InputError,
    QueueFullError,
    SlowBodyError,
    TooLargeError,
)
from deploy.metrics import CONTENT_TYPE, NO_VERSION
from deploy.preprocess import Encoded, Preprocessor
from deploy.protocol import (
    dump,
    read_infer,
    read_plain,
    write_infer,
    write_metadata,
    write_plain,
)

# Requests of one key are answered by one version while a challenger has a share of them.
KEY_HEADER = "x-driftd-key"
ID_HEADER = "x-request-id"

_LONGEST_ERROR = 1000

_EXTENSIONS = ["binary_tensor_data"]

# Tells how many of a body's first bytes are JSON, where binary tensors follow.
_JSON_BYTES = "inference-header-content-length"

_INDEX = {
    "name": "driftd",
    "predict": 'POST /predict {"text": "..."} or {"features": {...}} or {"inputs": [...]}',
    "v2": "/v2",
    "ready": "/v2/health/ready",
    "metrics": "/metrics",
}


_ASKING = frozenset({Scope.INFER})
# Clients of the V2 protocol look at the metadata before they ask.
_LOOKING = frozenset({Scope.READ, Scope.INFER})


@dataclass(slots=True)
class _Call:
    """One inference request on its way, for the metrics."""

    request: Request
    protocol: str
    version: str = NO_VERSION


def create_app(answering: Answering, release: str) -> ASGIApp:
    """The application. ``release``: this server's version, for the metadata.

    Raises `AccessError` if tokens are configured that cannot be used.
    """
    config = answering.config
    api = _Api(answering, release)
    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    app = Starlette(
        routes=[
            Route("/", api.index),
            Route("/metrics", api.exposition),
            Route("/predict", api.predict, methods=["POST"]),
            Route("/v2", api.server),
            Route("/v2/health/live", api.live),
            Route("/v2/health/ready", api.ready),
            Route(model, api.model),
            Route(model + "/ready", api.model_ready),
            Route(model + "/infer", api.infer, methods=["POST"]),
            Route(version, api.model),
            Route(version + "/ready", api.model_ready),
            Route(version + "/infer", api.infer, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _crash},
    )

    def needed(method: str, path: str) -> Scopes:
        if path.startswith("/v2/health/") or (path == "/metrics" and config.access.open_metrics):
            return OPEN
        return _ASKING if method == "POST" else _LOOKING

    return guarded(app, config.access, needed, answering.refused)


class _Api:
    def __init__(self, answering: Answering, release: str) -> None:
        self._answering = answering
        self._engine = answering.engine
        self._config = answering.config
        self._metrics = answering.metrics
        self._release = release

    async def index(self, request: Request) -> Response:
        return _json(dump(_INDEX))

    async def exposition(self, request: Request) -> Response:
        self._metrics.gauge("driftd_server_ready").set(self._engine.ready)
        self._metrics.gauge("driftd_server_queue_items").set(self._engine.queued)
        return Response(self._metrics.exposition(), media_type=CONTENT_TYPE)

    async def server(self, request: Request) -> Response:
        return _json(dump({"name": "driftd", "version": self._release, "extensions": _EXTENSIONS}))

    async def live(self, request: Request) -> Response:
        return _json(dump({"live": True}))

    async def ready(self, request: Request) -> Response:
        return self._readiness(self._engine.ready)

    async def model(self, request: Request) -> Response:
        try:
            loaded = self._pick(request)
        except DeployError as error:
            return _error(error)
        return _json(write_metadata(self._answering.described(loaded)))

    async def model_ready(self, request: Request) -> Response:
        try:
            self._pick(request)
        except DeployError as error:
            return _error(error)
        return self._readiness(self._engine.ready)

    async def infer(self, request: Request) -> Response:
        return await self._reply(_Call(request, "v2"), self._infer)

    async def predict(self, request: Request) -> Response:
        return await self._reply(_Call(request, "plain"), self._predict)

    async def _infer(self, call: _Call) -> Response:
        loaded = self._pick(call.request)
        call.version = loaded.version
        json_bytes = _json_bytes(call.request)
        body = await self._body(call.request)
        request = await aside(len(body), lambda: read_infer(body, json_bytes))
        if "version" not in call.request.path_params:
            loaded = self._route(call, request.id)
        prediction = await self._answering.answer(
            loaded,
            lambda preprocessor: preprocessor.read(request.tensors),
            items=request.items,
            size=len(body),
            left=lambda: _left(call.request),
        )
        answer = write_infer(
            request, self._config.name, loaded.version, loaded.session.labels, prediction
        )
        if answer.json_bytes is None:
            return _json(answer.body)
        return Response(
            answer.body,
            media_type="application/octet-stream",
            headers={_JSON_BYTES: str(answer.json_bytes)},
        )

    async def _predict(self, call: _Call) -> Response:
        loaded = self._engine.pick()
        call.version = loaded.version
        body = await self._body(call.request)
        request = await aside(len(body), lambda: read_plain(body))
        loaded = self._route(call, None)

        def encode(preprocessor: Preprocessor) -> Encoded:
            return preprocessor.encode(preprocessor.rows(request.values))

        prediction = await self._answering.answer(
            loaded,
            encode,
            items=len(request.values),
            size=len(body),
            left=lambda: _left(call.request),
        )
        return _json(write_plain(request, loaded.version, loaded.session.labels, prediction))

    async def _reply(self, call: _Call, work: Callable[[_Call], Awaitable[Response]]) -> Response:
        begin = time.perf_counter()
        failed: Exception | None = None
        try:
            response = await work(call)
        except DeployError as error:
            response, failed = _error(error), error
        except Exception as error:
            response, failed = _message(500, "internal error"), error
        self._answering.done(call.protocol, call.version, begin, failed)
        if self._engine.closing:
            # Let clients find another server before this connection's end surprises them.
            response.headers["connection"] = "close"
        return response

    def _pick(self, request: Request) -> Loaded:
        path = request.path_params
        return self._answering.pick(path["name"], path.get("version"))

    def _route(self, call: _Call, identity: str | None) -> Loaded:
        """Who answers a request that names no version; identity: the request's own id."""
        headers = call.request.headers
        key = headers.get(KEY_HEADER) or identity or headers.get(ID_HEADER) or ""
        loaded = self._engine.route(key)
        call.version = loaded.version
        return loaded

    def _readiness(self, ready: bool) -> Response:
        return _json(dump({"ready": ready}), 200 if ready else 503)

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise InputError("compressed bodies are not supported: send them as they are")
        limit = self._config.max_body_bytes
        stated = request.headers.get("content-length", "")
        if stated.isdigit() and int(stated) > limit:
            raise TooLargeError(f"the body has {stated} bytes; the limit is {limit}")
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._config.body_seconds):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError("the client left while sending")
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise TooLargeError(f"the body is longer than the limit of {limit} bytes")
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        break
        except TimeoutError as error:
            seconds = self._config.body_seconds
            raise SlowBodyError(f"the body took longer than {seconds:g} seconds") from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _left(request: Request) -> None:
    """Return when the client has closed the connection; its body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json_bytes(request: Request) -> int | None:
    stated = request.headers.get(_JSON_BYTES)
    if stated is None:
        return None
    if not (stated.isascii() and stated.isdigit() and len(stated) < 20):
        raise InputError(f"{_JSON_BYTES} must be a whole number, not {stated[:30]!r}")
    return int(stated)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _message(status: int, message: str) -> Response:
    # Messages quote names that clients chose.
    return _json(dump({"error": message[:_LONGEST_ERROR]}), status)


def _error(error: DeployError) -> Response:
    response = _message(STATUS.get(error.reason, 500), str(error))
    if isinstance(error, QueueFullError):
        response.headers["retry-after"] = str(error.retry_after)
    elif error.reason == "not_ready":
        response.headers["retry-after"] = "1"
    return response


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return _message(500, "internal error")
    response = _message(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


async def _crash(request: Request, error: Exception) -> Response:
    return _message(500, "internal error")
