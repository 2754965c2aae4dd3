"""The daemon's HTTP face: metrics, health, status and journal. Read only.

Runs on a thread of its own; it only ever reads snapshots that the loop left, so a slow scraper
can not slow the loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.metrics import Metrics
from daemon.policy_config import HttpConfig
from registry import Registry

START_SECONDS = 10.0
MAX_ROWS = 1000


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
    metrics: Metrics, health: Health, status: Callable[[], dict[str, Any]], registry: Registry
) -> Starlette:
    """The ASGI application; ``status`` answers with the loop's last snapshot."""

    def answer(body: object, code: int = 200) -> Response:
        return Response(
            orjson.dumps(body, default=str), status_code=code, media_type="application/json"
        )

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

    def journal(request: Request) -> Response:
        try:
            limit = min(int(request.query_params.get("limit", "100")), MAX_ROWS)
        except ValueError:
            return answer({"error": "limit must be a whole number"}, 400)
        kinds = request.query_params.getlist("kind") or None
        rows = registry.journal.rows(kinds=kinds, limit=limit)
        return answer([row.as_dict() for row in rows])

    return Starlette(
        routes=[
            Route("/health/live", live),
            Route("/health/ready", ready),
            Route("/metrics", show_metrics),
            Route("/status", show_status),
            Route("/journal", journal),
        ]
    )


class ApiServer:
    """Serves the application on a thread; `stop` ends it."""

    def __init__(self, app: Starlette, config: HttpConfig) -> None:
        self._config = config
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                log_level="warning",
                lifespan="off",
                timeout_graceful_shutdown=2,
            )
        )
        self._thread = threading.Thread(target=self._run, name="driftd-http", daemon=True)
        self._error: BaseException | None = None

    @property
    def port(self) -> int:
        """The port it listens on; the one chosen by the system where the config says 0."""
        sockets = self._server.servers[0].sockets
        return int(sockets[0].getsockname()[1])

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken; the message says which and what to do.
        """
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
