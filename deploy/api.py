"""The HTTP face of an engine: routes, limits, status codes, metrics.

A Starlette application that adds nothing to the engine: what a request means is in
`deploy.protocol`, what becomes of it in `deploy.engine`. Inferences pass its router by.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.access import guarded
from deploy.answering import ID, KEY, STATUS, Answering, Chosen, aside
from deploy.connection import Refuse
from deploy.crew import Crew
from deploy.engine import Asked, Loaded
from deploy.errors import (
    ClientGoneError,
    DeployError,
    InputError,
    QueueFullError,
    SlowBodyError,
    TooLargeError,
)
from deploy.metrics import CONTENT_TYPE, NO_VERSION
from deploy.openapi import DEADLINE, JSON_BYTES, OPERATIONS, document, needed
from deploy.preprocess import Encoded, Preprocessor
from deploy.protocol import (
    dump,
    parameters,
    read_infer,
    read_object,
    read_plain,
    says,
    write_infer,
    write_metadata,
    write_plain,
)
from deploy.repository import Repository

_LONGEST_ERROR = 1000

_EXTENSIONS = ["binary_tensor_data", "model_repository"]

_DEADLINE, _JSON_BYTES, _KEY, _ID = (
    name.lower().encode() for name in (DEADLINE, JSON_BYTES, KEY, ID)
)

_REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: %d\r\n"
    b"content-type: application/json\r\nretry-after: %d\r\n\r\n%b"
)

_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")

_INDEX = {
    "name": "driftd",
    "predict": 'POST /predict {"text": "..."} or {"features": {...}} or {"inputs": [...]}',
    "v2": "/v2",
    "ready": "/v2/health/ready",
    "openapi": "/openapi.json",
    "metrics": "/metrics",
}


@dataclass(slots=True)
class _Call:
    """One inference request on its way, for the metrics and the answer's headers.

    sent: its headers.
    """

    request: Request
    protocol: str
    sent: Mapping[bytes, bytes]
    version: str = NO_VERSION
    chosen: Chosen | None = None


def create_app(
    answering: Answering, repository: Repository, release: str, crew: Crew | None = None
) -> ASGIApp:
    """The application.

    release: this server's version, for the metadata; crew: of which it is, if of any.

    Raises `AccessError` if tokens are configured that cannot be used.
    """
    config = answering.config
    api = _Api(answering, repository, release, crew)
    app = Starlette(
        routes=[
            Route(each.path, getattr(api, each.handler), methods=[each.method])
            for each in OPERATIONS
        ],
        exception_handlers={HTTPException: _http_error, Exception: _crash},
    )
    inferring = _Inference(app, api, answering)
    traces = answering.engine.traces
    guarding = guarded(inferring, config.access, partial(needed, config), answering.refused)
    return guarding if traces is None else traces.around(guarding, _protocol)


class _Inference:
    """ASGI middleware: answers inferences, and refuses them early where they could not be answered.

    They are most of all requests, so each must cost little: Starlette's tour of its routes costs
    more than to read one, and under overload most are refused. Leaves the request's deadline, if
    it has one, in the ASGI scope as ``due``, by `time.monotonic`.
    """

    def __init__(self, app: ASGIApp, api: _Api, answering: Answering) -> None:
        self._app = app
        self._api = api
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an inference, be it with 400, 429 or 504 at once; pass on anything else."""
        protocol = _protocol(scope)
        if protocol is None:
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        try:
            scope["due"] = due = _due(scope["headers"])
            self._answering.admit(due)
        except DeployError as error:
            _refused(self._answering, protocol, begun, error)
            await _error(error)(scope, receive, send)
            return
        if protocol == "plain":
            response = await self._api.predict(Request(scope, receive))
        elif named := _INFER.fullmatch(scope["path"]):
            scope["path_params"] = {"name": named[1], "version": named[2]}
            response = await self._api.infer(Request(scope, receive))
        else:
            await self._app(scope, receive, send)
            return
        await response(scope, receive, send)


def refusing(answering: Answering) -> Refuse | None:
    """What refuses inferences while the queue is full, a third as dear as the application.

    None where that must not be: who may not ask is told so first, and traces hold every request.
    """
    if answering.config.access.tokens is not None or answering.engine.traces is not None:
        return None

    def refuse(method: bytes, url: bytes) -> bytes | None:
        try:
            answering.admit()
        except QueueFullError as error:
            begun = time.perf_counter()
            protocol = _asked(method.decode(), url.partition(b"?")[0].decode())
            if protocol is None:
                return None
            _refused(answering, protocol, begun, error)
            body = dump({"error": str(error)})
            return _REFUSAL % (len(body), error.retry_after, body)
        return None

    return refuse


def _refused(answering: Answering, protocol: str, begun: float, error: DeployError) -> None:
    champion = answering.engine.lineup.champion
    version = NO_VERSION if champion is None else champion.version
    answering.done(protocol, version, begun, error)


def _protocol(scope: Scope) -> str | None:
    """The protocol of an inference; None for anything else."""
    return _asked(scope["method"], scope["path"]) if scope["type"] == "http" else None


def _asked(method: str, path: str) -> str | None:
    if method != "POST":
        return None
    if path == "/predict":
        return "plain"
    return "v2" if path.endswith("/infer") else None


def _due(headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    for name, value in headers:
        if name == _DEADLINE:
            if not (value.isdigit() and len(value) < 10):
                raise InputError(f"{DEADLINE} must be a whole number of milliseconds")
            return time.monotonic() + int(value) / 1000
    return None


class _Api:
    def __init__(
        self, answering: Answering, repository: Repository, release: str, crew: Crew | None
    ) -> None:
        self._answering = answering
        self._repository = repository
        self._engine = answering.engine
        self._config = answering.config
        self._crew = crew
        self._release = release
        self._document = dump(document(answering.config, release))

    async def index(self, request: Request) -> Response:
        return _json(dump(_INDEX))

    async def document(self, request: Request) -> Response:
        return _json(self._document)

    async def exposition(self, request: Request) -> Response:
        crew = self._crew
        page = self._answering.exposition() if crew is None else await crew.exposition()
        return Response(page, media_type=CONTENT_TYPE)

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

    async def repository_index(self, request: Request) -> Response:
        async def work() -> object:
            asked = read_object(await self._body(request, _sent(request)))
            entries = await self._repository.index(says(asked, "ready"))
            return [entry._asdict() for entry in entries]

        return await _operated(work)

    async def repository_load(self, request: Request) -> Response:
        async def work() -> object:
            body = await self._body(request, _sent(request))
            version = parameters(read_object(body)).get("version")
            if version is not None and not isinstance(version, str):
                raise InputError("the parameter 'version' must be a string")
            await self._repository.load(request.path_params["name"], version)
            return {}

        return await _operated(work)

    async def repository_unload(self, request: Request) -> Response:
        async def work() -> object:
            self._repository.unload(request.path_params["name"])

        return await _operated(work)

    async def infer(self, request: Request) -> Response:
        return await self._reply(_Call(request, "v2", _sent(request)), self._infer)

    async def predict(self, request: Request) -> Response:
        return await self._reply(_Call(request, "plain", _sent(request)), self._predict)

    async def _infer(self, call: _Call) -> Response:
        loaded = self._pick(call.request)
        call.version = loaded.version
        json_bytes = _json_bytes(call.sent)
        body = await self._body(call.request, call.sent)
        request = await aside(len(body), lambda: read_infer(body, json_bytes))
        chosen = self._choose(call, request.id)
        loaded = chosen.loaded
        prediction = await self._answering.answer(
            loaded,
            chosen.asked(request.tensors),
            items=request.items,
            size=len(body),
            left=call.request.scope.get("left"),
            due=call.request.scope.get("due"),
        )
        answer = write_infer(
            request, self._config.name, loaded.version, loaded.session.classes, prediction
        )
        if answer.json_bytes is None:
            return _json(answer.body)
        return Response(
            answer.body,
            media_type="application/octet-stream",
            headers={JSON_BYTES: str(answer.json_bytes)},
        )

    async def _predict(self, call: _Call) -> Response:
        loaded = self._engine.pick()
        call.version = loaded.version
        body = await self._body(call.request, call.sent)
        request = await aside(len(body), lambda: read_plain(body))
        chosen = self._choose(call)
        loaded = chosen.loaded

        def encode(preprocessor: Preprocessor) -> Encoded:
            return preprocessor.encode(preprocessor.rows(request.values))

        prediction = await self._answering.answer(
            loaded,
            Asked(chosen.id, encode, lambda: request.values),
            items=len(request.values),
            size=len(body),
            left=call.request.scope.get("left"),
            due=call.request.scope.get("due"),
        )
        return _json(write_plain(request, loaded.version, loaded.session.classes, prediction))

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
        if call.chosen is not None and call.chosen.made:
            response.headers[ID] = call.chosen.id
        if self._engine.closing:
            # Let clients find another server before this connection's end surprises them.
            response.headers["connection"] = "close"
        return response

    def _pick(self, request: Request) -> Loaded:
        path = request.path_params
        return self._answering.pick(path["name"], path.get("version"))

    def _choose(self, call: _Call, identity: str | None = None) -> Chosen:
        """Who answers; identity: what the request's body says is its id."""
        version = call.request.path_params.get("version")
        id = identity or _text(call.sent.get(_ID))
        call.chosen = self._answering.choose(_text(call.sent.get(_KEY)), id, version)
        call.version = call.chosen.loaded.version
        return call.chosen

    def _readiness(self, ready: bool) -> Response:
        return _json(dump({"ready": ready}), 200 if ready else 503)

    async def _body(self, request: Request, sent: Mapping[bytes, bytes]) -> bytes:
        if sent.get(b"content-encoding", b"identity") != b"identity":
            raise InputError("compressed bodies are not supported: send them as they are")
        limit = self._config.max_body_bytes
        stated = sent.get(b"content-length", b"")
        if stated.isdigit() and int(stated) > limit:
            raise TooLargeError(f"the body has {int(stated)} bytes; the limit is {limit}")
        if "whole" in request.scope:  # it came with its head, as most do: nothing to wait for
            return await _read(request, limit)
        try:
            async with asyncio.timeout(self._config.body_seconds):
                return await _read(request, limit)
        except TimeoutError as error:
            seconds = self._config.body_seconds
            raise SlowBodyError(f"the body took longer than {seconds:g} seconds") from error


async def _read(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
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
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _operated(work: Callable[[], Awaitable[object]]) -> Response:
    try:
        return _json(dump(await work()))
    except DeployError as error:
        return _error(error)


def _sent(request: Request) -> dict[bytes, bytes]:
    """Its headers; of several of one name the first."""
    return dict(reversed(request.scope["headers"]))


def _text(value: bytes | None) -> str:
    return value.decode("latin-1") if value else ""


def _json_bytes(sent: Mapping[bytes, bytes]) -> int | None:
    stated = sent.get(_JSON_BYTES)
    if stated is None:
        return None
    if not (stated.isdigit() and len(stated) < 20):
        raise InputError(f"{JSON_BYTES} must be a whole number, not {_text(stated)[:30]!r}")
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
