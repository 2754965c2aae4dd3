"""The HTTP face of an engine: routes, limits, status codes, metrics.

A Starlette application that adds nothing to the engine: what a request means is in
`deploy.protocol`, what becomes of it in `deploy.engine`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.config import ServerConfig
from deploy.engine import Engine, Loaded
from deploy.errors import (
    ClientGoneError,
    DeployError,
    InputError,
    QueueFullError,
    SlowBodyError,
    TooLargeError,
    UnknownModelError,
)
from deploy.metrics import CONTENT_TYPE, NO_VERSION, Metrics
from deploy.preprocess import Encoded
from deploy.protocol import (
    Described,
    dump,
    read_infer,
    read_plain,
    write_infer,
    write_metadata,
    write_plain,
)

log = logging.getLogger("driftd.server")

T = TypeVar("T")

# Bodies longer than this are parsed and tokenised beside the event loop, not on it.
_LONG_BODY_BYTES = 16 * 1024

_LONGEST_ERROR = 1000

_STATUS = {
    "bad_input": 400,
    "unknown_model": 404,
    "unknown_version": 404,
    "slow_body": 408,
    "too_large": 413,
    "queue_full": 429,
    "client_gone": 499,
    "inference_failed": 500,
    "not_ready": 503,
    "deadline": 504,
}

_INDEX = {
    "name": "driftd",
    "predict": 'POST /predict {"text": "..."} or {"features": {...}} or {"inputs": [...]}',
    "v2": "/v2",
    "ready": "/v2/health/ready",
    "metrics": "/metrics",
}


@dataclass(slots=True)
class _Call:
    """One inference request on its way, for the metrics."""

    request: Request
    protocol: str
    version: str = NO_VERSION


def create_app(engine: Engine, config: ServerConfig, metrics: Metrics, release: str) -> Starlette:
    """The application. ``release``: this server's version, for the metadata."""
    api = _Api(engine, config, metrics, release)
    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    return Starlette(
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


class _Api:
    def __init__(
        self, engine: Engine, config: ServerConfig, metrics: Metrics, release: str
    ) -> None:
        self._engine = engine
        self._config = config
        self._metrics = metrics
        self._release = release

    async def index(self, request: Request) -> Response:
        return _json(dump(_INDEX))

    async def exposition(self, request: Request) -> Response:
        self._metrics.gauge("driftd_server_ready").set(self._engine.ready)
        self._metrics.gauge("driftd_server_queue_items").set(self._engine.queued)
        return Response(self._metrics.exposition(), media_type=CONTENT_TYPE)

    async def server(self, request: Request) -> Response:
        return _json(dump({"name": "driftd", "version": self._release, "extensions": []}))

    async def live(self, request: Request) -> Response:
        return _json(dump({"live": True}))

    async def ready(self, request: Request) -> Response:
        return self._readiness(self._engine.ready)

    async def model(self, request: Request) -> Response:
        try:
            loaded = self._pick(request)
        except DeployError as error:
            return _error(error)
        described = Described(
            self._config.name,
            self._engine.lineup.versions,
            loaded.preprocessor.tensors(),
            loaded.session.classes,
            loaded.session.head.weight.shape[0],
        )
        return _json(write_metadata(described))

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

    async def _infer(self, call: _Call) -> bytes:
        loaded = self._pick(call.request)
        call.version = loaded.version
        if "inference-header-content-length" in call.request.headers:
            raise InputError("binary tensors are not supported: send all data as JSON")
        body = await self._body(call.request)
        request = await _aside(len(body), lambda: read_infer(body))
        self._count(len(next(iter(request.tensors.values()))))
        items = await _aside(len(body), lambda: loaded.preprocessor.read(request.tensors))
        prediction = await self._engine.predict(loaded, items, lambda: _left(call.request))
        return write_infer(
            request, self._config.name, loaded.version, loaded.session.classes, prediction
        )

    async def _predict(self, call: _Call) -> bytes:
        loaded = self._engine.pick()
        call.version = loaded.version
        body = await self._body(call.request)
        request = await _aside(len(body), lambda: read_plain(body))
        self._count(len(request.values))

        def encode() -> Encoded:
            return loaded.preprocessor.encode(loaded.preprocessor.rows(request.values))

        items = await _aside(len(body), encode)
        prediction = await self._engine.predict(loaded, items, lambda: _left(call.request))
        return write_plain(request, loaded.version, loaded.session.classes, prediction)

    async def _reply(self, call: _Call, work: Callable[[_Call], Awaitable[bytes]]) -> Response:
        begin = time.perf_counter()
        try:
            response = _json(await work(call))
        except DeployError as error:
            response = _error(error)
            self._failed(call, error.reason)
        except Exception:
            log.exception("a request failed in an unforeseen way")
            response = _message(500, "internal error")
            self._failed(call, "internal")
        seconds = time.perf_counter() - begin
        code = str(response.status_code)
        metrics = self._metrics
        metrics.counter("driftd_server_requests_total", call.version, call.protocol, code).inc()
        metrics.histogram("driftd_server_request_seconds", call.version, call.protocol).observe(
            seconds
        )
        if self._engine.closing:
            # Let clients find another server before this connection's end surprises them.
            response.headers["connection"] = "close"
        return response

    def _failed(self, call: _Call, reason: str) -> None:
        self._metrics.counter("driftd_server_errors_total", call.version, reason).inc()

    def _pick(self, request: Request) -> Loaded:
        name = request.path_params["name"]
        if name != self._config.name:
            raise UnknownModelError(f"no model {name!r} here: it is called {self._config.name!r}")
        return self._engine.pick(request.path_params.get("version"))

    def _readiness(self, ready: bool) -> Response:
        return _json(dump({"ready": ready}), 200 if ready else 503)

    def _count(self, items: int) -> None:
        limit = self._config.max_items
        if items > limit:
            raise TooLargeError(f"{items} items in one request; the limit is {limit}")

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise InputError("compressed bodies are not supported: send plain JSON")
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


async def _aside(size: int, work: Callable[[], T]) -> T:
    """Do short work here, long work on a thread."""
    if size > _LONG_BODY_BYTES:
        return await asyncio.to_thread(work)
    return work()


async def _left(request: Request) -> None:
    """Return when the client has closed the connection; its body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _message(status: int, message: str) -> Response:
    # Messages quote names that clients chose.
    return _json(dump({"error": message[:_LONGEST_ERROR]}), status)


def _error(error: DeployError) -> Response:
    response = _message(_STATUS.get(error.reason, 500), str(error))
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
