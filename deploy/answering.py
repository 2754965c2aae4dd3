"""From a question to its answer, whatever protocol it came by: limits, engine, counting.

HTTP and gRPC read a request and write an answer, each in its own way; what lies between is here.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from deploy.config import ServerConfig
from deploy.connection import Left
from deploy.engine import Asked, Engine, Loaded
from deploy.errors import DeadlineError, DeployError, TooLargeError, UnknownModelError
from deploy.metrics import NO_VERSION, Metrics
from deploy.prediction_log import plain_items
from deploy.preprocess import Tensors
from deploy.protocol import Described
from deploy.session import Prediction

log = logging.getLogger("driftd.server")

T = TypeVar("T")

# Requests of one key are answered by one version while a challenger has a share of them. Both are
# headers in HTTP, metadata in gRPC.
KEY = "x-driftd-key"
ID = "x-request-id"

# Requests longer than this are parsed and tokenised beside the event loop, not on it.
_LONG_BYTES = 16 * 1024

# What each reason is in HTTP; metrics count every protocol's answers by these.
STATUS = {
    "bad_input": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "unknown_model": 404,
    "unknown_version": 404,
    "slow_body": 408,
    "refused": 409,
    "too_large": 413,
    "queue_full": 429,
    "client_gone": 499,
    "inference_failed": 500,
    "load_failed": 503,
    "not_ready": 503,
    "deadline": 504,
}


class Chosen(NamedTuple):
    """Who answers a request, and the request's id; ``made`` if the client does not know it yet."""

    loaded: Loaded
    id: str = ""
    made: bool = False

    def asked(self, tensors: Tensors) -> Asked:
        """A question by tensors."""
        return Asked(
            self.id,
            lambda preprocessor: preprocessor.read(tensors),
            lambda: plain_items(tensors, self.loaded.preprocessor),
        )


class Answering:
    """Answers questions about one model by an engine."""

    def __init__(self, engine: Engine, config: ServerConfig, metrics: Metrics) -> None:
        self.engine = engine
        self.config = config
        self.metrics = metrics

    def pick(self, name: str, version: str | None = None) -> Loaded:
        """The version of that name, by default the champion.

        Raises `UnknownModelError`, `UnknownVersionError` or `NotReadyError`.
        """
        if name != self.config.name:
            raise UnknownModelError(f"no model {name!r} here: it is called {self.config.name!r}")
        return self.engine.pick(version)

    def choose(self, key: str, id: str, version: str | None = None) -> Chosen:
        """Who answers: the version of that name, else whom the routing gives this request's key.

        key, id: what came with the request, its `KEY` and its `ID`; empty if it has none.
        Raises `UnknownVersionError` or `NotReadyError`.
        """
        loaded = self.engine.route(key or id) if version is None else self.engine.pick(version)
        # A label can come later, under the id.
        made = not id and self.config.prediction_log is not None
        return Chosen(loaded, uuid.uuid4().hex if made else id, made)

    def described(self, loaded: Loaded) -> Described:
        """The metadata of a version."""
        return Described(
            self.config.name,
            self.engine.lineup.versions,
            loaded.preprocessor.tensors(),
            loaded.session.classes,
            loaded.session.head.weight.shape[0],
        )

    def admit(self, due: float | None = None) -> None:
        """Refuse a request that could not be answered, before it is read.

        due: when its answer is of no use any more, by `time.monotonic`.
        Raises `QueueFullError` or `DeadlineError`.
        """
        self.engine.admit(_left_until(due))

    async def answer(
        self,
        loaded: Loaded,
        asked: Asked,
        *,
        items: int,
        size: int,
        left: Left | None = None,
        due: float | None = None,
    ) -> Prediction:
        """The answer of one version.

        size: of the request, in bytes; to read a large one takes a while.
        left: see `Engine.predict`, whose errors this raises, beside `InputError`; due: see `admit`.
        """
        if items > self.config.max_items:
            limit = self.config.max_items
            raise TooLargeError(f"{items} items in one request; the limit is {limit}")
        encoded = await aside(size, lambda: asked.read(loaded.preprocessor))
        return await self.engine.predict(
            loaded, encoded, left, within=_left_until(due), asked=asked
        )

    def exposition(self) -> bytes:
        """The metrics of this process."""
        self.metrics.gauge("driftd_server_ready").set(self.engine.ready)
        self.metrics.gauge("driftd_server_queue_items").set(self.engine.queued)
        self.metrics.gauge("driftd_server_log_queue_items").set(self.engine.unlogged)
        return self.metrics.exposition()

    def done(
        self, protocol: str, version: str, begun: float, error: Exception | None = None
    ) -> int:
        """Count a request that ended; what it ended with, as an HTTP status.

        begun: when it began, by `time.perf_counter`. An error that is none of ours is logged.
        """
        status, reason = 200, None
        if error is not None:
            reason = error.reason if isinstance(error, DeployError) else "internal"
            status = STATUS.get(reason, 500)
            self.refused(reason, version)
            if not isinstance(error, DeployError):
                self.engine.crashed(version)
                log.error("a request failed in an unforeseen way", exc_info=error)
        if self.engine.traces is not None:
            self.engine.traces.done(version, status, reason)
        metrics = self.metrics
        metrics.counter("driftd_server_requests_total", version, protocol, str(status)).inc()
        metrics.histogram("driftd_server_request_seconds", version, protocol).observe(
            time.perf_counter() - begun
        )
        return status

    def refused(self, reason: str, version: str = NO_VERSION) -> None:
        """Count an error."""
        self.metrics.counter("driftd_server_errors_total", version, reason).inc()


def _left_until(due: float | None) -> float | None:
    """Seconds until then. Raises `DeadlineError` if it has passed."""
    if due is None:
        return None
    seconds = due - time.monotonic()
    if seconds <= 0:
        raise DeadlineError("the request's deadline passed before any work on it")
    return seconds


async def aside(size: int, work: Callable[[], T]) -> T:
    """Do short work here, long work on a thread; size: of the request, in bytes."""
    if size > _LONG_BYTES:
        return await asyncio.to_thread(work)
    return work()
