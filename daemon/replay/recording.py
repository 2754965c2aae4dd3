"""A recorded stream: all of its events in memory, the clock they set, and a source that plays them.

The recording is read once, through the source and the decoder that the daemon itself uses, and
put in the order of time. `Player` then lets the events arrive one batch after another; the loop
gets each when its label is known, which is later where there is a label delay.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from daemon.config import Config
from daemon.events import EMPTY, EventBatch
from daemon.plain import objects
from daemon.sources import Partition, Poll, Source, SourceError, open_source
from daemon.sources.source import Positions
from daemon.stream_config import KafkaSourceConfig

READ_EVENTS = 10_000
READ_SECONDS = 1.0
QUIET_POLLS = 5  # without anything new, before a topic counts as read to its end
PLAYED: Partition = ("replay", 0)
UNITS = {"s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class Recording:
    """Events in the order of time.

    clock: float64 [n], seconds, ascending: what a clock showed when each arrived. truth: object
    [n] of str or None: each event's label, also where it came in a later record of the same id.
    first: bool [n], false for records that only repeat an id. rejected: records that were none.
    """

    events: EventBatch
    clock: NDArray[np.float64]
    truth: NDArray[np.object_]
    first: NDArray[np.bool_]
    rejected: int

    def __len__(self) -> int:
        return len(self.events)

    def digest(self) -> str:
        """What identifies the recording: two with the same digest replay alike."""
        found = hashlib.sha256(self.clock.tobytes())
        for column in (self.events.ids, self.events.labels, self.events.inputs):
            found.update("\x1f".join(map(str, column.tolist())).encode())
        return found.hexdigest()


def read(config: Config, rate: float | None = None) -> Recording:
    """Everything that the configured source holds now.

    ``rate``: events a second, for the clock; None takes the recorded times. A topic is read from
    its beginning in a consumer group of its own, and nothing is committed.

    Raises:
        SourceError: it cannot be read, holds no events, or tells no times where none were given.
    """
    source = open_source(config)
    batches, rejected, quiet = [], 0, 0
    later: dict[str, str] = {}  # labels that came on a topic of their own
    source.start({})
    try:
        while not source.ended and quiet < QUIET_POLLS:
            found = source.poll(READ_EVENTS, READ_SECONDS)
            rejected += len(found.rejected)
            later |= zip(found.labels.ids.tolist(), found.labels.labels.tolist(), strict=True)
            if len(found.batch):
                batches.append(found.batch)
            read_up = source.connected and source.lag() in (0, None)
            quiet = 0 if found or not read_up else quiet + 1
    finally:
        source.close()
    if not batches:
        raise SourceError("there are no events to replay: nothing in the source could be decoded")
    events = EventBatch.join(batches)
    if later:
        pairs = zip(events.ids.tolist(), events.labels.tolist(), strict=True)
        events = replace(events, labels=objects([later.get(i, label) for i, label in pairs]))
    timed = config.fields.time is not None or isinstance(config.source, KafkaSourceConfig)
    if rate is None and not timed:
        raise SourceError(
            "the file's events have no times: name their field in fields.time, or give the pace of"
            " the stream with --rate EVENTS_A_SECOND"
        )
    # A file without times was given the time of reading, which is not the stream's.
    return arranged(events if timed else _untimed(events), rejected, rate)


def _untimed(events: EventBatch) -> EventBatch:
    return replace(events, times=np.zeros(len(events)))


def arranged(events: EventBatch, rejected: int = 0, rate: float | None = None) -> Recording:
    """The recording of these events: ordered by time, or at a steady ``rate`` as they stand."""
    if rate is None:
        # Partitions come in any order; ties keep the order in which each was written.
        order = np.lexsort((events.offsets, events.partitions, events.times))
        events = events.take(order)
        clock = events.times.astype(np.float64)
    else:
        clock = float(events.times[0]) + np.arange(len(events)) / rate
        events = replace(events, times=clock)
    last = {i: label for i, label in zip(events.ids, events.labels, strict=True) if label}
    truth: NDArray[np.object_] = np.empty(len(events), dtype=object)
    truth[:] = [last.get(i) for i in events.ids]
    first = np.zeros(len(events), dtype=np.bool_)
    first[np.unique(events.ids.astype(str), return_index=True)[1]] = True
    return Recording(events, clock, truth, first, rejected)


@dataclass(frozen=True, slots=True)
class Delay:
    """How long a label takes: ``events`` further events, or ``seconds`` on the stream's clock.

    >>> Delay.parse("500"), Delay.parse("2h")
    (Delay(events=500, seconds=0.0), Delay(events=0, seconds=7200.0))
    """

    events: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Delay:
        """A number of events, or of ``s``, ``min``, ``h``, ``d``. Raises ValueError."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)?", text.strip())
        if not found or (found[2] is None and "." in found[1]):
            raise ValueError(f"{text!r} is no delay: give events (500) or a time (30min, 2h, 1d)")
        if found[2] is None:
            return cls(events=int(found[1]))
        return cls(seconds=float(found[1]) * UNITS[found[2]])

    def known(self, recording: Recording) -> NDArray[np.int64]:
        """Int64 [n]: how many labels are known by the time that each event has arrived."""
        count = len(recording)
        if self.seconds:
            moments = recording.clock - self.seconds
            return np.searchsorted(recording.clock, moments, side="right").astype(np.int64)
        return np.maximum(0, np.arange(1, count + 1) - self.events)


NO_DELAY = Delay()


class SimulatedClock:
    """A `daemon.clock.Clock` that shows what the player sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        """Seconds since 1970, on the recorded stream's clock."""
        return self.now

    def monotonic(self) -> float:
        """The same: recorded time does not go back."""
        return self.now


class Player(Source):
    """The recording as a source. Events arrive by `arrive`; `poll` hands out those with labels.

    Its one position counts the events handed out, so that a checkpoint tells where to go on.
    """

    def __init__(self, recording: Recording, delay: Delay, clock: SimulatedClock) -> None:
        self.recording = recording
        self.clock = clock
        self._known = delay.known(recording)
        self._next = self._released = 0

    @property
    def connected(self) -> bool:
        """Always: the recording is in memory."""
        return True

    @property
    def ended(self) -> bool:
        """Whether every event that has arrived was handed out."""
        return self._next >= self._released

    @property
    def caught_up(self) -> bool:
        """Whether every event that has arrived was handed out."""
        return self.ended

    def arrive(self, until: int) -> None:
        """Let time pass until the event before position ``until`` has arrived."""
        self.clock.now = float(self.recording.clock[until - 1])
        self._released = int(self._known[until - 1])

    def start(self, positions: Positions) -> None:
        """Go on after what was handed out."""
        self._next = positions.get(PLAYED, 0)

    def poll(self, max_events: int, timeout: float) -> Poll:
        """The next of the events whose labels are known; never waits."""
        end = min(self._next + max_events, self._released)
        if end <= self._next:
            return Poll(EMPTY, [], {})
        batch = self.recording.events.take(np.arange(self._next, end))
        self._next = end
        return Poll(batch, [], {PLAYED: end})

    def hold(self) -> None:
        """Nothing needs to be kept alive."""

    def positions(self) -> dict[Partition, int]:
        """How many events were handed out."""
        return {PLAYED: self._next}

    def checkpointed(self, positions: Positions) -> None:
        """A recording keeps no offsets: nothing to do."""

    def lag(self) -> int | None:
        """Events that wait to be handed out."""
        return max(0, self._released - self._next)

    def lags(self) -> dict[Partition, int]:
        """The same, for the only partition."""
        return {PLAYED: max(0, self._released - self._next)}

    def know(self, labels: Iterable[str]) -> None:
        """The events are decoded already: nothing to tell."""

    def moves(self) -> tuple[set[Partition], set[Partition]]:
        """Nothing of it is shared."""
        return set(), set()

    def begin(self, place: Partition, position: int | None) -> None:
        """Nothing of it is shared."""

    def leave(self, place: Partition) -> None:
        """Nothing of it is shared."""

    def close(self) -> None:
        """Nothing is held open."""
