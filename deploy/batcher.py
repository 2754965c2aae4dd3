"""The queue between requests and the model: pulled by whichever worker is free.

A worker takes the oldest item, and with it those of the same model and of similar length, the
moment it is free; there is no timer to wait for company. The queue is bounded; work that waited
too long or whose client has left is dropped unstarted; an item that breaks its batch fails alone.
Beside it is a second one for work that nobody waits for, served when the first is empty.
The shape is that of text-embeddings-inference's queue.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from deploy.config import BatchConfig
from deploy.errors import (
    ClientGoneError,
    DeadlineError,
    DeployError,
    InferenceError,
    NotReadyError,
    QueueFullError,
)
from deploy.preprocess import Encoded
from deploy.session import Prediction

log = logging.getLogger("driftd.server")

# Spare work runs in batches of this many items: whoever asks meanwhile waits no longer than that.
_SPARE_ITEMS = 8


class Runner(Protocol):
    """What runs a batch; items of one runner share batches."""

    def run(self, encoded: Encoded) -> Prediction:
        """Predict all items in one pass."""


@dataclass(eq=False, slots=True)
class Job:
    """The items of one request: encoded for ``runner``, wanted before ``deadline`` (monotonic).

    ``cancelled`` may be set at any time, from any thread: what has not begun is then dropped.
    ``begun``: when a worker took the first of its items, 0 before. ``span``: where its trace goes
    on, if it has one.
    """

    runner: Runner
    items: Encoded
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    begun: float = 0.0
    span: Any = None


class Outcome(NamedTuple):
    """What became of the items at ``rows`` of a job: their prediction, in that order, or an error.

    Exactly one of ``prediction`` and ``error`` is given.
    """

    job: Job
    rows: list[int]
    prediction: Prediction | None = None
    error: DeployError | None = None


class Ran(NamedTuple):
    """One run of a model, for metrics and traces.

    waited: seconds in the queue, one an item. begun: by `time.monotonic`. jobs: whose items ran.
    """

    runner: Runner
    items: int
    seconds: float
    waited: list[float]
    begun: float
    jobs: Collection[Job]


class Batcher:
    """A bounded queue and its worker threads.

    ``deliver`` gets outcomes from worker threads, a whole batch at a time; ``observe`` gets each
    run. Neither may raise. Every submitted item has exactly one outcome.
    """

    def __init__(
        self,
        *,
        workers: int,
        batch: BatchConfig,
        queue_limit: int,
        spare_limit: int = 0,
        deliver: Callable[[list[Outcome]], None],
        observe: Callable[[Ran], None] = lambda ran: None,
    ) -> None:
        self._batch = batch
        self._queue_limit = queue_limit
        self._deliver = deliver
        self._observe = observe
        self._queue = _Queue(batch)
        few = min(batch.max_items, _SPARE_ITEMS)
        self._spare = _Queue(batch.model_copy(update={"max_items": few}))
        self._spare_limit = spare_limit
        self._wake = threading.Condition()
        self._stopping = False
        # Seconds of work an item costs, smoothed: tells a refused client when to come back.
        self._item_seconds = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"driftd-worker-{i}", daemon=True)
            for i in range(workers)
        ]

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """Take no more work, finish what waits, and end the workers.

        What is still unstarted after ``timeout`` seconds fails as not ready.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        end = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        with self._wake:
            left = self._queue.drain() + self._spare.drain()
        if left:
            error = NotReadyError("the server stopped before this request's turn came")
            self._deliver([Outcome(entry.job, [entry.row], error=error) for entry in left])

    @property
    def alive(self) -> bool:
        """Whether every worker runs."""
        return not self._stopping and all(thread.is_alive() for thread in self._threads)

    @property
    def depth(self) -> int:
        """Items waiting that somebody waits for."""
        return len(self._queue)

    def admit(self, within: float | None = None) -> None:
        """Raise `QueueFullError` if not even one more item would be taken, or be done in time.

        within: seconds after which its answer is of no use, if known. Cheap: takes no lock.
        """
        waiting = len(self._queue)
        if waiting >= self._queue_limit:
            raise self._full(waiting)
        if within is not None and waiting:
            seconds = waiting * self._item_seconds / len(self._threads)
            if seconds > within:
                raise QueueFullError(
                    f"the items that wait take about {seconds:.2g} seconds, and this request has "
                    f"{within:.2g}; try again later",
                    retry_after=self._retry_after(),
                )

    def submit(self, job: Job) -> None:
        """Queue all items of a job, or none.

        Raises `QueueFullError` (come back later) or `NotReadyError` (stopping).
        """
        with self._wake:
            if self._stopping:
                raise NotReadyError("the server is stopping")
            if len(self._queue) + len(job.items) > self._queue_limit:
                raise self._full(len(self._queue))
            self._queue.add(job)
            self._wake.notify(len(job.items))

    def submit_spare(self, job: Job) -> bool:
        """Queue a job that nobody waits for; False, and nothing queued, where there is no room."""
        with self._wake:
            if self._stopping or len(self._spare) + len(job.items) > self._spare_limit:
                return False
            self._spare.add(job)
            self._wake.notify(len(job.items))
        return True

    def _full(self, waiting: int) -> QueueFullError:
        return QueueFullError(
            f"{waiting} items wait already (limit {self._queue_limit}); try again later",
            retry_after=self._retry_after(),
        )

    def _retry_after(self) -> int:
        seconds = len(self._queue) * self._item_seconds / len(self._threads)
        return max(1, round(seconds))

    def _work(self) -> None:
        while True:
            with self._wake:
                while not len(self._queue):
                    if self._stopping:
                        return
                    if len(self._spare):
                        break
                    self._wake.wait()
                queue = self._queue if len(self._queue) else self._spare
                taken, dropped = queue.take()
            if dropped:
                self._deliver(dropped)
            if taken:
                self._deliver(list(self._run(taken)))

    def _run(self, entries: list[_Entry]) -> Iterator[Outcome]:
        runner = entries[0].job.runner
        shares = _by_job(entries)
        begin = time.monotonic()
        for job in shares:
            job.begun = job.begun or begin
        try:
            prediction = runner.run(_join(shares))
            if not np.isfinite(prediction.probabilities).all():
                raise ArithmeticError("the model answered probabilities that are no numbers")
        except Exception as error:
            if len(entries) > 1:  # one of them is to blame: find it, and answer the others
                for entry in entries:
                    yield from self._run([entry])
                return
            log.warning("inference failed on one item: %s", error)
            failure = InferenceError("the model failed on this input")
            yield Outcome(entries[0].job, [entries[0].row], error=failure)
            return
        seconds = time.monotonic() - begin
        self._item_seconds += 0.1 * (seconds / len(entries) - self._item_seconds)
        waited = [begin - entry.job.arrived for entry in entries]
        self._observe(Ran(runner, len(entries), seconds, waited, begin, shares.keys()))
        start = 0
        for job, rows in shares.items():
            end = start + len(rows)
            yield Outcome(job, rows, prediction.take(slice(start, end)))
            start = end


@dataclass(eq=False, slots=True)
class _Entry:
    job: Job
    row: int
    length: int
    taken: bool = False

    def dead(self, now: float) -> DeployError | None:
        """Why it is no longer worth working for."""
        if self.job.cancelled:
            return ClientGoneError("the client left")
        if now > self.job.deadline:
            waited = now - self.job.arrived
            return DeadlineError(f"dropped after waiting {waited:.1f} seconds: overloaded")
        return None


class _Queue:
    """Items in order of arrival, and by runner and length beside it. Not thread-safe.

    The oldest item of a bucket is also the oldest of its kind in the order, so a bucket is exact;
    the order still holds items taken through their bucket, marked so, until they come up.
    """

    def __init__(self, limits: BatchConfig) -> None:
        self._limits = limits
        self._order: deque[_Entry] = deque()
        self._buckets: dict[tuple[Runner, int], deque[_Entry]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, job: Job) -> None:
        """Append all items of a job."""
        for row, length in enumerate(job.items.lengths.tolist()):
            entry = _Entry(job, row, length)
            self._order.append(entry)
            self._buckets.setdefault((job.runner, length), deque()).append(entry)
        self._size += len(job.items)

    def take(self) -> tuple[list[_Entry], list[Outcome]]:
        """Remove the next batch; and, beside it, what was found not worth working for."""
        now = time.monotonic()
        dropped: list[Outcome] = []
        while self._order:
            oldest = self._order[0]
            if oldest.taken:
                self._order.popleft()
                continue
            batch = self._batch_of(oldest, now, dropped)
            if batch:
                return batch, dropped
        return [], dropped

    def drain(self) -> list[_Entry]:
        """Remove everything."""
        left = [entry for entry in self._order if not entry.taken]
        self._order.clear()
        self._buckets.clear()
        self._size = 0
        return left

    def _batch_of(self, oldest: _Entry, now: float, dropped: list[Outcome]) -> list[_Entry]:
        """The oldest item and its kind; empty if all that was looked at is dead."""
        batch: list[_Entry] = []
        longest = total = 0
        for length in self._similar(oldest.length):
            bucket = self._buckets.get((oldest.job.runner, length))
            while bucket and len(batch) < self._limits.max_items:
                wider = max(longest, length) * (len(batch) + 1)
                if batch and wider > self._limits.padding * (total + length):
                    break
                entry = bucket.popleft()
                entry.taken = True
                self._size -= 1
                if (error := entry.dead(now)) is not None:
                    dropped.append(Outcome(entry.job, [entry.row], error=error))
                    continue
                batch.append(entry)
                longest, total = max(longest, length), total + length
            if bucket is not None and not bucket:
                del self._buckets[oldest.job.runner, length]
        return batch

    def _similar(self, length: int) -> list[int]:
        """Lengths that may share a batch with this one, the nearest first."""
        padding = self._limits.padding
        others = range(math.ceil(length / padding), math.floor(length * padding) + 1)
        return sorted(others, key=lambda other: abs(other - length))


def _by_job(entries: Sequence[_Entry]) -> dict[Job, list[int]]:
    shares: dict[Job, list[int]] = {}
    for entry in entries:
        shares.setdefault(entry.job, []).append(entry.row)
    return shares


def _join(shares: Mapping[Job, list[int]]) -> Encoded:
    parts = [
        job.items if len(job.items) == 1 else job.items.take(rows) for job, rows in shares.items()
    ]
    return parts[0] if len(parts) == 1 else parts[0].join(parts[1:])
