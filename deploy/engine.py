"""What answers requests, whatever protocol they came by: the versions at hand and the batcher.

The versions are one immutable `Lineup`, replaced in a single assignment: a request that has
picked its version keeps it to the end, so a swap fails nobody. HTTP is one caller of `predict`;
another protocol would be another. While a challenger sees traffic, `route` says who answers, and
`predict` counts what became of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.batcher import Batcher, Job, Outcome, Ran
from deploy.config import ServerConfig
from deploy.connection import Left
from deploy.errors import (
    ClientGoneError,
    DeadlineError,
    DeployError,
    LoadError,
    NotReadyError,
    TooLargeError,
    UnknownVersionError,
)
from deploy.metrics import NO_VERSION, Metrics
from deploy.prediction_log import Answered, PredictionLog
from deploy.preprocess import Encoded, Preprocessor
from deploy.routing import Outcome as Became
from deploy.routing import Trial
from deploy.session import Prediction, Session

if TYPE_CHECKING:
    from deploy.tracing import Traces

log = logging.getLogger("driftd.server")


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


class Asked(NamedTuple):
    """What a request was about, beyond its items as one version encodes them.

    read: encodes its items for another version. Raises `InputError`.
    inputs: its items as plain JSON values, for the prediction log; None if not to be had.
    """

    id: str
    read: Callable[[Preprocessor], Encoded]
    inputs: Callable[[], Sequence[object] | None]


class Lineup(NamedTuple):
    """The versions in memory; ``trial``: the challenger that sees traffic, if one does."""

    champion: Loaded | None = None
    previous: Loaded | None = None
    trial: Trial | None = None

    @property
    def roles(self) -> dict[str, Loaded]:
        """Those that are loaded, by what they are, the champion first."""
        challenger = self.trial.loaded if self.trial else None
        held = {"champion": self.champion, "previous": self.previous, "challenger": challenger}
        return {role: loaded for role, loaded in held.items() if loaded is not None}

    @property
    def versions(self) -> tuple[str, ...]:
        """Their names, the champion first."""
        return tuple(dict.fromkeys(loaded.version for loaded in self.roles.values()))


@dataclass(eq=False, slots=True)
class _Ticket(Job):
    """A job with somebody waiting for it."""

    future: asyncio.Future[Prediction] = field(kw_only=True)
    parts: list[tuple[list[int], Prediction]] = field(default_factory=list)


class Engine:
    """Answers on the event loop that started it; the model runs on the batcher's threads."""

    def __init__(
        self,
        config: ServerConfig,
        metrics: Metrics,
        predictions: PredictionLog | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.traces = traces
        self._log = predictions
        self._lineup = Lineup()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batcher = Batcher(
            workers=config.workers,
            batch=config.batch,
            queue_limit=config.queue_limit,
            spare_limit=config.shadow_limit,
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
            roles = lineup.roles
            sizes = {each.version: each.session.size_bytes for each in roles.values()}
            self.metrics.serving({role: each.version for role, each in roles.items()}, sizes)
            split = lineup.trial.split if lineup.trial and lineup.trial.loaded else None
            self.metrics.gauge("driftd_server_canary_share").set(split.share / 100 if split else 0)

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

    @property
    def unlogged(self) -> int:
        """Items of the prediction log that wait for the broker."""
        return 0 if self._log is None else self._log.waiting

    def pick(self, version: str | None = None) -> Loaded:
        """The champion, or the loaded version of that name.

        Raises `NotReadyError` (no champion yet) or `UnknownVersionError`.
        """
        lineup = self._lineup
        if version is None:
            if lineup.champion is None:
                raise NotReadyError("no version has been promoted and loaded yet; try again later")
            return lineup.champion
        for loaded in lineup.roles.values():
            if loaded.version == version:
                return loaded
        held = ", ".join(lineup.versions) or "none"
        raise UnknownVersionError(f"version {version!r} is not loaded here (loaded: {held})")

    def route(self, key: str) -> Loaded:
        """Who answers a request that names no version: the same for the same key, while it may.

        key: what shall stay with one version, such as a user; empty where nothing shall.
        Raises `NotReadyError`.
        """
        champion = self.pick()
        trial = self._lineup.trial
        return champion if trial is None else trial.chosen(key) or champion

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
        asked: Asked | None = None,
    ) -> Prediction:
        """Predict a request's items, in their order.

        left: tells when the client has left; the work is then dropped.
        within: seconds after which the answer is of no use to the client, if it said so.
        asked: for the prediction log, and a challenger that encodes inputs in another way.
        Raises `QueueFullError`, `DeadlineError`, `ClientGoneError`, `InferenceError`,
        `NotReadyError` or `TooLargeError`.
        """
        if len(items) > self.config.max_items:
            raise TooLargeError(
                f"{len(items)} items in one request; the limit is {self.config.max_items}"
            )
        loop = asyncio.get_running_loop()
        limit = self.config.deadline_seconds
        deadline = time.monotonic() + (limit if within is None else min(within, limit))
        ticket = _Ticket(loaded, items, deadline, future=loop.create_future())
        if self.traces is not None:
            ticket.span = self.traces.current()
        self._batcher.submit(ticket)
        trial = self._lineup.trial
        if trial is not None and trial.split.mode == "shadow":
            self._shadow(trial, ticket, asked)
        if left is not None:
            left(partial(_gone, ticket.future))
        failed: DeployError | None = None
        try:
            prediction = await ticket.future
        except asyncio.CancelledError:
            failed = ClientGoneError("the client left")
            raise
        except DeployError as error:
            failed = error
            if isinstance(error, DeadlineError) and within is not None and within < limit:
                failed = ClientGoneError("the client had less patience than the server")
            raise
        else:
            if self._log is not None and asked is not None:
                classes, now = loaded.session.classes, time.time()
                self._log.write(
                    Answered(asked.id, now, loaded.version, classes, prediction, asked.inputs)
                )
            return prediction
        finally:
            ticket.cancelled = True
            if trial is not None:
                seconds = time.monotonic() - ticket.arrived
                self._count(trial, loaded, trial.split.outcome(failed, seconds))
            if left is not None:
                left(None)  # a quiet connection would keep the ticket, and its version's memory

    def crashed(self, version: str) -> None:
        """A request that this version should have answered failed, by no fault of its client's."""
        trial = self._lineup.trial
        if trial is not None:
            for loaded in self._lineup.roles.values():
                if loaded.version == version:
                    self._count(trial, loaded, "error")
                    return

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

    def _count(self, trial: Trial, loaded: Loaded, outcome: Became | None) -> None:
        challenger = loaded is trial.loaded
        if outcome is None or not (challenger or loaded is self._lineup.champion):
            return
        trial.count(challenger, outcome)
        self._routed(loaded.version, "challenger" if challenger else "champion", outcome)

    def _routed(self, version: str, role: str, outcome: str) -> None:
        name = "driftd_server_routed_requests_total"
        self.metrics.counter(name, version, role, outcome).inc()

    def _shadow(self, trial: Trial, ticket: _Ticket, asked: Asked | None) -> None:
        """Give the challenger a copy, which nobody waits for and which is the first to be dropped.

        Only of what the champion answers.
        """
        challenger, champion = trial.loaded, self._lineup.champion
        if challenger is None or champion is None or ticket.runner is not champion:
            return
        items = ticket.items
        if challenger.preprocessor is not champion.preprocessor:
            try:
                items = asked.read(challenger.preprocessor) if asked else items
            except Exception as error:
                log.info("version %s cannot read an input: %s", challenger.version, error)
                self._count(trial, challenger, "error")
                return
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        copy = _Ticket(challenger, items, ticket.deadline, future=future)
        future.add_done_callback(
            partial(self._copied, trial, copy, champion.session, ticket.future)
        )
        if not self._batcher.submit_spare(copy):
            future.set_exception(DeadlineError("dropped under load"))

    def _copied(
        self,
        trial: Trial,
        copy: _Ticket,
        served: Session,
        original: asyncio.Future[Prediction],
        future: asyncio.Future[Prediction],
    ) -> None:
        """A copy's end: count it, and compare it with the answer that was given."""
        challenger = trial.loaded
        if challenger is None or future.cancelled():
            return
        error = future.exception()
        if isinstance(error, DeadlineError | NotReadyError):
            self._routed(challenger.version, "shadow", "dropped")
            return
        # Of its own work only: a copy waits for everybody else.
        seconds = time.monotonic() - copy.begun
        outcome = trial.split.outcome(error if isinstance(error, DeployError) else None, seconds)
        if outcome is not None:
            trial.count(True, outcome)
            self._routed(challenger.version, "shadow", outcome)
        if error is None:
            ours = _said(challenger.session, future)
            # Where the answer is given already, the event loop calls back at once.
            original.add_done_callback(
                lambda done: self._compare(
                    challenger.version, _said(served, done), ours, served.tolerance
                )
            )

    def _compare(
        self,
        version: str,
        theirs: NDArray[Any] | None,
        ours: NDArray[Any] | None,
        tolerance: float,
    ) -> None:
        if theirs is None or ours is None:
            return  # the champion gave no answer
        numbers = theirs.dtype != object and ours.dtype != object
        alike = np.abs(theirs - ours) <= tolerance if numbers else theirs == ours
        same = int(np.count_nonzero(alike))
        for outcome, items in (("same", same), ("differs", len(ours) - same)):
            if items:
                self.metrics.counter("driftd_server_shadow_items_total", version, outcome).inc(
                    items
                )

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
        if self.traces is not None:
            self.traces.ran(version, ran)
        trial = self._lineup.trial
        if trial is not None and trial.split.mode == "shadow" and ran.runner is trial.loaded:
            return  # nobody waited for these
        queue = metrics.histogram("driftd_server_queue_seconds", version)
        for seconds in ran.waited:
            queue.observe(seconds)


def _gone(future: asyncio.Future[Prediction]) -> None:
    if not future.done():
        future.set_exception(ClientGoneError("the client left"))


def _said(session: Session, future: asyncio.Future[Prediction]) -> NDArray[Any] | None:
    """The labels, object [n], that a prediction chose, or its numbers; None where there is none."""
    if future.cancelled() or future.exception() is not None:
        return None
    prediction = future.result()
    if session.number:
        return prediction.logits[:, 0]
    labels = np.array(session.labels, dtype=object)
    chosen: NDArray[Any] = labels[prediction.probabilities.argmax(axis=1)]
    return chosen


def _assemble(parts: Sequence[tuple[list[int], Prediction]]) -> Prediction:
    """All parts in the order of their rows."""
    if len(parts) == 1 and len(parts[0][0]) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    return Prediction.join([prediction for _, prediction in parts]).take(order)
