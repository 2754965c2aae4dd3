"""The daemon's HTTP face: metrics, health, status, journal, and the operators' verbs.

Runs on a thread of its own; it reads snapshots that the loop left, and orders go to the registry,
as those of the command line do, so that a slow caller can not slow the loop. A verb is a page
under ``/v1``: GET for those that look, POST for orders.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from daemon.control import Desk, Order
from daemon.control_form import ORDER, VERBS, Verb, carry_out, checked, from_query
from daemon.metrics import Metrics
from daemon.openapi import document
from daemon.policy_config import HttpConfig
from deploy.access import OPEN, Scope, Scopes, exposures, guarded
from deploy.tls import Renewed
from registry import Corrupt, Invalid, NotFound, Registry, RegistryError, StorageError

log = logging.getLogger("driftd.http")

START_SECONDS = 10.0
MAX_ROWS = 1000
MAX_BODY_BYTES = 64 * 1024
READ: Scopes = frozenset({Scope.READ})
OPERATE: Scopes = frozenset({Scope.OPERATE})


class Health:
    """What liveness and readiness are judged by; the loop writes, the API reads."""

    def __init__(self, stalled_after: float = 120.0) -> None:
        self.stalled_after = stalled_after
        self.turned = time.monotonic()
        self.ready = False
        self.why = "starting"

    @property
    def live(self) -> bool:
        """Whether the loop has turned lately."""
        return time.monotonic() - self.turned < self.stalled_after


def application(
    metrics: Metrics,
    health: Health,
    status: Callable[[], dict[str, Any]],
    registry: Registry,
    config: HttpConfig | None = None,
) -> ASGIApp:
    """The ASGI application; ``status`` answers with the loop's last snapshot.

    Raises `deploy.errors.AccessError` if the file of tokens cannot be used.
    """
    config = config or HttpConfig()
    desk = Desk(lambda: registry, status, "this daemon")

    async def live(_: Request) -> Response:
        age = time.monotonic() - health.turned
        return answer(
            {"live": health.live, "loop_turned_seconds_ago": round(age, 1)},
            200 if health.live else 503,
        )

    async def ready(_: Request) -> Response:
        return answer({"ready": health.ready, "reason": health.why}, 200 if health.ready else 503)

    async def show_status(_: Request) -> Response:
        return answer(status())

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(_: Request) -> Response:
        return answer(document())

    def journal(request: Request) -> Response:
        try:
            limit = min(int(request.query_params.get("limit", "100")), MAX_ROWS)
        except ValueError:
            return answer({"error": "limit must be a whole number"}, 400)
        kinds = request.query_params.getlist("kind") or None
        rows = registry.journal.rows(kinds=kinds, limit=limit)
        return answer([row.as_dict() for row in rows])

    app = Starlette(
        routes=[
            Route("/health/live", live),
            Route("/health/ready", ready),
            Route("/metrics", show_metrics),
            Route("/status", show_status),
            Route("/journal", journal),
            Route("/openapi.json", openapi),
            *(_route(verb, desk, config) for verb in VERBS.values()),
        ],
        exception_handlers={
            RegistryError: _refused,
            HTTPException: _no_page,
            Exception: _broken,
        },
    )

    def needed(method: str, path: str) -> Scopes:
        if path.startswith("/health/") or path == "/openapi.json":
            return OPEN
        if path == "/metrics" and config.access.open_metrics:
            return OPEN
        return READ if method in ("GET", "HEAD") else OPERATE

    return guarded(app, config.access, needed)


def answer(body: object, code: int = 200) -> Response:
    """A body as JSON."""
    return Response(
        orjson.dumps(body, default=str), status_code=code, media_type="application/json"
    )


def _route(verb: Verb, desk: Desk, config: HttpConfig) -> Route:
    async def look(request: Request) -> Response:
        given = from_query(verb.parameters, request.query_params.multi_items())
        return answer(await run_in_threadpool(carry_out, desk, verb, given))

    async def order(request: Request) -> Response:
        if config.access.tokens is None:
            raise HTTPException(403, "orders over HTTP need a token: set http.access.tokens")
        given = await _body(request)
        words = checked(ORDER, {name: given.pop(name, None) for name in ORDER})
        caller = request.scope["caller"]
        actor = f"{caller} ({words['actor']})" if "actor" in words else caller
        ordered = Order(actor, words["reason"].strip(), words.get("request_id"))
        found = await run_in_threadpool(carry_out, desk, verb, given, ordered)
        log.info("%s ordered %s: %s", actor, verb.name, ordered.reason)
        return answer(found)

    page: Callable[[Request], Awaitable[Response]] = order if verb.orders else look
    return Route(f"/v1/{verb.name}", page, methods=["POST" if verb.orders else "GET"])


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of an order. Raises `Invalid`."""
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > MAX_BODY_BYTES:
            raise HTTPException(413, f"an order takes at most {MAX_BODY_BYTES} bytes")
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise Invalid('an order is a JSON object, such as {"reason": "why"}')
    return found


async def _refused(_: Request, error: Exception) -> Response:
    codes = ((Invalid, 400), (NotFound, 404), (StorageError, 503), (Corrupt, 500))
    code = next((code for kind, code in codes if isinstance(error, kind)), 409)
    return answer({"error": str(error)}, code)


async def _no_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: f"there is no page {request.url.path}: /openapi.json lists them",
        405: f"{request.url.path} does not take {request.method}: see /openapi.json",
    }
    body = {"error": words.get(error.status_code, error.detail)}
    found = answer(body, error.status_code)
    found.headers.update(error.headers or {})
    return found


async def _broken(_: Request, error: Exception) -> Response:
    # Starlette raises it again, and the server logs it.
    return answer({"error": "this failed in the daemon; its log says how"}, 500)


class ApiServer:
    """Serves the application on a thread; `stop` ends it."""

    def __init__(self, app: ASGIApp, config: HttpConfig) -> None:
        """Raises `deploy.errors.AccessError` for a certificate that cannot be used."""
        self._config = config
        settings = uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            log_config=None,  # its lines go where all others do
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        settings.load()
        if config.tls.certificate is not None:
            settings.ssl = Renewed(config.tls).context
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._run, name="driftd-http", daemon=True)
        self._error: BaseException | None = None

    @property
    def port(self) -> int:
        """The port it listens on; the one chosen by the system where the config says 0."""
        sockets = self._server.servers[0].sockets
        return int(sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens."""
        scheme = "http" if self._config.tls.certificate is None else "https"
        return f"{scheme}://{self._config.host}:{self.port}"

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken; the message says which and what to do.
        """
        for warning in exposures(self._config.host, self._config.access, self._config.tls, "http"):
            log.warning("%s", warning)
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                address = f"{self._config.host}:{self._config.port}"
                raise OSError(
                    f"cannot listen on {address}: is the port in use? Set http.port to a free "
                    "one (0 lets the system choose)"
                ) from self._error
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop listening and end the thread."""
        self._server.should_exit = True
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            self._server.run()
        except BaseException as error:
            # uvicorn answers a port in use with SystemExit; the caller of start() reports it.
            self._error = error
