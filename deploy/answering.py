"""From a question to its answer, whatever protocol it came by: limits, engine, counting.

HTTP and gRPC read a request and write an answer, each in its own way; what lies between is here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from deploy.config import ServerConfig
from deploy.engine import Asked, Engine, Left, Loaded
from deploy.errors import DeployError, TooLargeError, UnknownModelError
from deploy.metrics import NO_VERSION, Metrics
from deploy.preprocess import Encoded, Preprocessor
from deploy.protocol import Described
from deploy.session import Prediction

log = logging.getLogger("driftd.server")

T = TypeVar("T")

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
    "too_large": 413,
    "queue_full": 429,
    "client_gone": 499,
    "inference_failed": 500,
    "not_ready": 503,
    "deadline": 504,
}


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

    def described(self, loaded: Loaded) -> Described:
        """The metadata of a version."""
        return Described(
            self.config.name,
            self.engine.lineup.versions,
            loaded.preprocessor.tensors(),
            loaded.session.labels,
            loaded.session.head.weight.shape[0],
        )

    async def answer(
        self,
        loaded: Loaded,
        read: Callable[[Preprocessor], Encoded],
        *,
        items: int,
        size: int,
        left: Left | None = None,
        within: float | None = None,
    ) -> Prediction:
        """The answer of one version.

        read: encodes the items; it takes a while for a request of many bytes, its ``size``.
        left and within: see `Engine.predict`, whose errors this raises, beside `InputError`.
        """
        if items > self.config.max_items:
            limit = self.config.max_items
            raise TooLargeError(f"{items} items in one request; the limit is {limit}")
        encoded = await aside(size, lambda: read(loaded.preprocessor))
        return await self.engine.predict(loaded, encoded, left, within=within, asked=Asked(read))

    def done(
        self, protocol: str, version: str, begun: float, error: Exception | None = None
    ) -> int:
        """Count a request that ended; what it ended with, as an HTTP status.

        begun: when it began, by `time.perf_counter`. An error that is none of ours is logged.
        """
        status = 200
        if error is not None:
            reason = error.reason if isinstance(error, DeployError) else "internal"
            status = STATUS.get(reason, 500)
            self.refused(reason, version)
            if not isinstance(error, DeployError):
                self.engine.crashed(version)
                log.error("a request failed in an unforeseen way", exc_info=error)
        metrics = self.metrics
        metrics.counter("driftd_server_requests_total", version, protocol, str(status)).inc()
        metrics.histogram("driftd_server_request_seconds", version, protocol).observe(
            time.perf_counter() - begun
        )
        return status

    def refused(self, reason: str, version: str = NO_VERSION) -> None:
        """Count an error."""
        self.metrics.counter("driftd_server_errors_total", version, reason).inc()


async def aside(size: int, work: Callable[[], T]) -> T:
    """Do short work here, long work on a thread; size: of the request, in bytes."""
    if size > _LONG_BYTES:
        return await asyncio.to_thread(work)
    return work()
