"""What answers requests, whatever protocol they came by: the versions at hand and the batcher.

The versions are one immutable `Lineup`, replaced in a single assignment: a request that has
picked its version keeps it to the end, so a swap fails nobody. HTTP is one caller of `predict`;
another protocol would be another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from deploy.batcher import Batcher, Job, Outcome, Ran
from deploy.config import ServerConfig
from deploy.errors import (
    ClientGoneError,
    DeployError,
    LoadError,
    NotReadyError,
    TooLargeError,
    UnknownVersionError,
)
from deploy.metrics import NO_VERSION, Metrics
from deploy.preprocess import Encoded, Preprocessor
from deploy.session import Prediction, Session

log = logging.getLogger("driftd.server")

# How long to wait before watching for a client that leaves: most answers are there by then.
_PATIENCE_SECONDS = 0.05

Left = Callable[[], Awaitable[None]]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version in memory, warm."""

    version: str
    session: Session

    @property
    def preprocessor(self) -> Preprocessor:
        """What encodes this version's inputs."""
        return self.session.preprocessor

    def run(self, encoded: Encoded) -> Prediction:
        """One batch; see `deploy.batcher.Runner`."""
        return self.session.run(encoded)


class Lineup(NamedTuple):
    """The versions in memory."""

    champion: Loaded | None = None
    previous: Loaded | None = None

    @property
    def versions(self) -> tuple[str, ...]:
        """Their names, the champion first."""
        return tuple(loaded.version for loaded in self if loaded is not None)


@dataclass(eq=False, slots=True)
class _Ticket(Job):
    """A job with somebody waiting for it."""

    future: asyncio.Future[Prediction] = field(kw_only=True)
    parts: list[tuple[list[int], Prediction]] = field(default_factory=list)
    left: asyncio.Task[None] | None = None


class Engine:
    """Answers on the event loop that started it; the model runs on the batcher's threads."""

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self.config = config
        self.metrics = metrics
        self._lineup = Lineup()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batcher = Batcher(
            workers=config.workers,
            batch=config.batch,
            queue_limit=config.queue_limit,
            deliver=self._deliver,
            observe=self._observe,
        )

    def start(self) -> None:
        """Start the workers; answers arrive on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._batcher.start()

    def close(self) -> None:
        """Say no to readiness from now on, but go on answering."""
        self._closing = True

    def stop(self) -> None:
        """End the workers; what still waits fails."""
        self.close()
        self._batcher.stop(timeout=self.config.deadline_seconds)

    @property
    def lineup(self) -> Lineup:
        """The versions in memory. Assigning replaces them all at once, from any thread."""
        return self._lineup

    @lineup.setter
    def lineup(self, lineup: Lineup) -> None:
        self._lineup = lineup
        if lineup.champion is not None:
            sizes = {each.version: each.session.size_bytes for each in lineup if each is not None}
            self.metrics.serving(lineup.champion.version, sizes)

    @property
    def ready(self) -> bool:
        """Whether a champion answers and the server is not going away."""
        return self._lineup.champion is not None and not self._closing and self._batcher.alive

    @property
    def closing(self) -> bool:
        """Whether the server is going away."""
        return self._closing

    @property
    def queued(self) -> int:
        """Items waiting for a worker."""
        return self._batcher.depth

    def pick(self, version: str | None = None) -> Loaded:
        """The champion, or the loaded version of that name.

        Raises `NotReadyError` (no champion yet) or `UnknownVersionError`.
        """
        lineup = self._lineup
        if version is None:
            if lineup.champion is None:
                raise NotReadyError("no version has been promoted and loaded yet; try again later")
            return lineup.champion
        for loaded in lineup:
            if loaded is not None and loaded.version == version:
                return loaded
        held = ", ".join(lineup.versions) or "none"
        raise UnknownVersionError(f"version {version!r} is not loaded here (loaded: {held})")

    def admit(self, within: float | None = None) -> None:
        """Refuse what could not be answered, before it is read; see `Batcher.admit`."""
        self._batcher.admit(within)

    async def predict(
        self,
        loaded: Loaded,
        items: Encoded,
        left: Left | None = None,
        *,
        within: float | None = None,
    ) -> Prediction:
        """Predict a request's items, in their order.

        left: returns when the client has left; the work is then dropped.
        within: seconds after which the answer is of no use to the client, if it said so.
        Raises `QueueFullError`, `DeadlineError`, `ClientGoneError`, `InferenceError`,
        `NotReadyError` or `TooLargeError`.
        """
        if len(items) > self.config.max_items:
            raise TooLargeError(
                f"{len(items)} items in one request; the limit is {self.config.max_items}"
            )
        loop = asyncio.get_running_loop()
        seconds = self.config.deadline_seconds
        deadline = time.monotonic() + (seconds if within is None else min(within, seconds))
        ticket = _Ticket(loaded, items, deadline, future=loop.create_future())
        self._batcher.submit(ticket)
        watch = loop.call_later(_PATIENCE_SECONDS, self._watch, ticket, left) if left else None
        try:
            return await ticket.future
        finally:
            ticket.cancelled = True
            if watch is not None:
                watch.cancel()
            if ticket.left is not None:
                ticket.left.cancel()

    def probe(self, loaded: Loaded, timeout: float) -> None:
        """Ask ``loaded`` as a request would, through queue and workers, from another thread.

        Raises `LoadError` if no answer comes.
        """
        if self._loop is None:
            raise LoadError("no_answer", "the server has not started")
        answer = asyncio.run_coroutine_threadsafe(
            self.predict(loaded, loaded.preprocessor.sample(1)), self._loop
        )
        try:
            answer.result(timeout)
        except (DeployError, TimeoutError) as error:
            answer.cancel()
            message = f"version {loaded.version} gave no answer: {error or 'timed out'}"
            raise LoadError("no_answer", message) from error

    def _watch(self, ticket: _Ticket, left: Left) -> None:
        # Of the ticket only the future: a cancelled task lives on until the garbage collector
        # comes by, and would keep a version's memory for as long.
        ticket.left = asyncio.ensure_future(_until_left(ticket.future, left))

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """From a worker thread to the event loop."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, outcomes)

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        for job, rows, prediction, error in outcomes:
            if not isinstance(job, _Ticket) or job.future.done():
                continue
            if prediction is None:
                job.cancelled = True  # its other items need not be worked on
                job.future.set_exception(error or NotReadyError("the work was lost"))
                continue
            job.parts.append((rows, prediction))
            if sum(len(rows) for rows, _ in job.parts) == len(job.items):
                job.future.set_result(_assemble(job.parts))

    def _observe(self, ran: Ran) -> None:
        version = ran.runner.version if isinstance(ran.runner, Loaded) else NO_VERSION
        metrics = self.metrics
        metrics.histogram("driftd_server_inference_seconds", version).observe(ran.seconds)
        metrics.histogram("driftd_server_batch_items", version).observe(ran.items)
        queue = metrics.histogram("driftd_server_queue_seconds", version)
        for seconds in ran.waited:
            queue.observe(seconds)


async def _until_left(future: asyncio.Future[Prediction], left: Left) -> None:
    await left()
    if not future.done():
        future.set_exception(ClientGoneError("the client left"))


def _assemble(parts: Sequence[tuple[list[int], Prediction]]) -> Prediction:
    """All parts in the order of their rows."""
    if len(parts) == 1 and len(parts[0][0]) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    return Prediction.join([prediction for _, prediction in parts]).take(order)
