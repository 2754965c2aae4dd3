"""Labels that come later, on a topic of their own: which event is met by which label, and when.

An event is predicted and watched as it comes, and kept (`daemon.joining`); its label makes it an
example. Four things can become of an event: its label was there before it (*early*), comes within
the window (*joined*), after it (*late*: it counts for the version that answered, but its input is
gone), or not at all (*never*). A label that comes again may repeat or correct the one before.

The window's clock is the stream's: how far both topics have been read. Where both are read to
their ends it is also the wall clock, counted from when the event was read; so neither a replayed
history nor an hour of silence is mistaken for a missing label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.clock import Clock
from daemon.config import Config
from daemon.decode import features_dtype
from daemon.events import NO_LABELS, EventBatch, LabelBatch
from daemon.joining import HeldLabel, JoinFull, Kept, Standing, Waiting, packed, unpacked
from daemon.journal import JournalWriter
from daemon.metrics import Metrics
from daemon.plain import objects
from daemon.served import Answer, Served
from daemon.state import Record, State
from daemon.stream_config import LabelsConfig

FILE = "waiting.sqlite"
OUTCOMES = ("early", "joined", "late", "never", "corrected", "repeated", "unmatched")
SWEEP_SECONDS = 1.0  # between two looks at what has waited too long
SWEEP_EVENTS = 2_000  # looked at each time
# Turns in a row at the topics' ends before the wall clock counts: what came in while the daemon or
# the broker stood still is read first.
QUIET_TURNS = 25
TELL_SECONDS = 600.0  # between two journal rows about events that were never labelled
ROW_BYTES = 200  # of a row on disk, without its input

Made = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Joined:
    """``n`` events whose label has come, in the order of the labels.

    events: with their labels. numbers: int64 [n], their places in the daemon's count.
    made: for each who answered it with which class, or None. encoders: of the embeddings, each
    float32 [d] or None.
    """

    events: EventBatch
    numbers: NDArray[np.int64]
    made: list[Made | None]
    encoders: list[str]
    embeddings: list[NDArray[np.float32] | None]

    def answer(self, champion: Served) -> Answer:
        """What the champion says of them now; the embeddings at hand spare the encoder."""
        known = [
            i
            for i, (encoder, embedding) in enumerate(
                zip(self.encoders, self.embeddings, strict=True)
            )
            if embedding is not None and encoder == champion.encoder
        ]
        if len(known) < len(self.made):
            return champion.answer(self.events.inputs)
        return champion.answer_from(np.stack([e for e in self.embeddings if e is not None]))


class Delayed:
    """The join of events and labels: what the loop asks at each turn."""

    def __init__(
        self,
        config: Config,
        settings: LabelsConfig,
        waiting: Waiting,
        state: State,
        journal: JournalWriter,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.waiting = waiting
        self._state = state
        self._journal = journal
        self._metrics = metrics
        self._clock = clock
        self._dtype = _dtype(config)
        self._labelled_by = bool(settings.labeller or config.fields.labeller)
        self._queue = NO_LABELS
        #: The latest time of an event and of a label, in seconds since the epoch.
        self._reached = [-math.inf, -math.inf]
        self._counts = dict.fromkeys(OUTCOMES, 0)
        self._untold = 0
        self._told = self._swept = -math.inf
        self._quiet = 0
        self._early: dict[str, float] = {}  # of the batch just met: the times of its labels
        for outcome in OUTCOMES:
            metrics.delayed_labels(outcome)  # at 0 from the start: the first is an increase

    @property
    def queued(self) -> int:
        """Labels that were read and not seen to yet."""
        return len(self._queue)

    # ---------------------------------------------------------------- the checkpoint

    def restore(self, values: Mapping[str, Any] | None) -> None:
        """Go back to where the checkpoint with ``values`` (of `seal`) was; None: to nothing."""
        self.waiting.restore(int(values["tick"]) if values else 0)
        self._queue = NO_LABELS
        if not values:
            return
        self._reached = [-math.inf if at is None else at for at in values["reached"]]
        self._counts |= values["counts"]
        self._untold = values["untold"]
        if values["columns"] != self._columns and self.waiting.pending:
            # Their inputs are no inputs of this model.
            while pending := self.waiting.oldest(Standing.PENDING, SWEEP_EVENTS):
                self._never(pending)
                self.waiting.flush()

    def seal(self) -> dict[str, Any]:
        """Make the join durable; what the checkpoint must hold of it. Raises JoinError."""
        if len(self._queue):
            raise JoinFull("labels were read that are not joined yet: see the error before")
        return {
            "tick": self.waiting.seal(),
            "reached": [None if math.isinf(at) else at for at in self._reached],
            "counts": self._counts,
            "untold": self._untold,
            "columns": self._columns,
        }

    def sealed(self) -> None:
        """The checkpoint is written."""
        self.waiting.sealed()

    def close(self) -> None:
        """Let go of the file."""
        self.waiting.close()

    # ---------------------------------------------------------------- events

    def meet(self, batch: EventBatch) -> EventBatch:
        """The events that are new, with the labels that were there before them.

        An event that was read before is left out; a label that it carries counts as one that came.
        """
        ids = batch.ids.tolist()
        seen = self.waiting.known(ids)
        fresh = np.ones(len(batch), dtype=np.bool_)
        for i, name in enumerate(ids):
            fresh[i] = name not in seen
            seen.add(name)
        if not fresh.all():
            repeated = batch.take(~fresh)
            self._metrics.events("repeated").inc(len(repeated))
            self._requeue(repeated.take(np.array([x is not None for x in repeated.labels])))
            batch = batch.take(fresh)
        if len(batch):
            self._reached[0] = max(self._reached[0], float(batch.times.max()))
        self._early = {}
        held = self.waiting.labels(batch.ids.tolist()) if self.waiting.held else {}
        if not held and not self._labelled_by:
            return batch
        labels, labellers = batch.labels.copy(), batch.labellers
        labellers = objects([None] * len(batch)) if labellers is None else labellers.copy()
        for i, name in enumerate(batch.ids):
            if name in held and labels[i] is None:
                labels[i], labellers[i] = held[name].label, held[name].labeller
        self._early = {name: label.time for name, label in held.items()}
        self.waiting.drop(list(held.values()))
        self._count("early", len(held))
        return replace(
            batch, labels=labels, labellers=labellers if self._labelled_by else batch.labellers
        )

    def keep(
        self,
        batch: EventBatch,
        numbers: NDArray[np.int64],
        answer: Answer | None = None,
        champion: Served | None = None,
    ) -> None:
        """Keep these events, in the form in which they would be learned from.

        ``numbers``: int64 [n]. ``answer`` is the champion's, where there is one.
        """
        now = self._clock.time()
        inputs = packed(batch.inputs)
        kept = []
        for i, label in enumerate(batch.labels.tolist()):
            embedding = answer.embeddings[i].tobytes() if answer and label is None else None
            size = len(inputs[i]) + len(embedding or b"") + ROW_BYTES
            kept.append(
                Kept(
                    id=batch.ids[i],
                    standing=Standing.PENDING if label is None else Standing.LABELLED,
                    number=int(numbers[i]),
                    time=float(batch.times[i]),
                    arrived=now,
                    topic=batch.topics[i],
                    partition=int(batch.partitions[i]),
                    offset=int(batch.offsets[i]),
                    version=champion.version if champion else None,
                    predicted=int(answer.predicted[i]) if answer else -1,
                    label=label,
                    labelled=self._early.get(batch.ids[i]),
                    encoder=champion.encoder if champion and embedding else "",
                    size=size if label is None else 0,
                    input=inputs[i] if label is None else None,
                    embedding=embedding,
                )
            )
        self.waiting.keep(kept)

    # ---------------------------------------------------------------- labels

    def queue(self, labels: LabelBatch) -> None:
        """Labels were read; `arrive` sees to them."""
        if len(labels):
            self._queue = LabelBatch.join([self._queue, labels]) if len(self._queue) else labels
            self._reached[1] = max(self._reached[1], float(labels.times.max()))

    def arrive(self) -> Joined | None:
        """Join the labels that were read; the events that are examples now. Raises JoinError."""
        self.waiting.flush()
        labels, self._queue = self._queue, NO_LABELS
        if not len(labels):
            return None
        try:
            return self._arrive(labels)
        except Exception:
            self._queue = labels
            raise

    def _arrive(self, labels: LabelBatch) -> Joined | None:
        ids = labels.ids.tolist()
        before, held_before = self.waiting.events(ids), self.waiting.labels(ids)
        events, held = dict(before), dict(held_before)
        joined: dict[str, tuple[Kept, str | None]] = {}
        corrected: dict[str, int] = {}
        now = self._clock.time()
        for name, label, at, labeller in zip(
            ids, labels.labels, labels.times.tolist(), labels.labellers, strict=True
        ):
            event = events.get(name)
            if event is None:
                if name in held:
                    self._count("repeated")
                if name not in held or held[name].time <= at:
                    held[name] = HeldLabel(name, label, labeller, at, now)
                continue
            if event.standing is Standing.LABELLED:
                older = event.labelled is not None and at < event.labelled
                if older or label == event.label:
                    self._count("repeated")
                    continue
                self._count("corrected")
                if name not in joined:  # else the example is not made yet
                    self._credit(event, event.label, -1)
                    self._credit(event, label, 1)
                    corrected[name] = self._state.classes.add(label)
            elif event.standing is Standing.PENDING:
                self._count("joined")
            else:
                self._count("late")
                if event.version is not None:
                    mine = event.version == self._state.champion
                    self._metrics.late_labels("champion" if mine else "earlier").inc()
                    self._credit(event, label, 1, new=True)
            if event.standing is Standing.PENDING or name in joined:
                joined[name] = before[name], labeller
            events[name] = _slim(event, Standing.LABELLED, label, at)
        if corrected:
            self._state.memory.relabel(corrected)
        changed = [name for name, event in events.items() if event is not before[name]]
        self.waiting.end([before[name] for name in changed])
        self.waiting.keep([events[name] for name in changed])
        stale = [old for name, old in held_before.items() if held[name] is not old]
        self.waiting.drop(stale)
        self.waiting.hold([x for name, x in held.items() if x is not held_before.get(name)])
        return self._joined([(events[n].label, *found) for n, found in joined.items()])

    def _joined(self, found: Sequence[tuple[str | None, Kept, str | None]]) -> Joined | None:
        if not found:
            return None
        events = [event for _, event, _ in found]
        batch = EventBatch(
            ids=objects([event.id for event in events]),
            times=np.array([event.time for event in events], dtype=np.float64),
            inputs=unpacked([event.input or b"" for event in events], self._dtype),
            labels=objects([label for label, _, _ in found]),
            topics=objects([event.topic for event in events]),
            partitions=np.array([event.partition for event in events], dtype=np.int32),
            offsets=np.array([event.offset for event in events], dtype=np.int64),
            labellers=objects([who for _, _, who in found]) if self._labelled_by else None,
        )
        return Joined(
            batch,
            np.array([event.number for event in events], dtype=np.int64),
            [None if e.version is None else (e.version, e.predicted) for e in events],
            [event.encoder for event in events],
            [
                None if e.embedding is None else np.frombuffer(e.embedding, dtype=np.float32)
                for e in events
            ],
        )

    def _credit(self, event: Kept, label: str | None, sign: int, *, new: bool = False) -> None:
        """Correct the record of the version that answered; ``new``: a label more was seen."""
        if event.version is None or label is None:
            return
        record = self._state.records.get(event.version)
        if record is None:
            if not new:
                return
            record = self._state.records[event.version] = Record()
        record.labelled += new
        record.right += sign * (self._state.classes.add(label) == event.predicted)

    # ---------------------------------------------------------------- what waits too long

    def sweep(self, caught_up: bool) -> None:
        """Give up on what has waited for the window, or is one too many.

        To be called each turn. ``caught_up``: both topics are read to their ends.
        """
        self._quiet = self._quiet + 1 if caught_up else 0
        if self._clock.monotonic() - self._swept < SWEEP_SECONDS:
            return
        self._swept = self._clock.monotonic()
        now, window, limit = self._clock.time(), self.settings.window_seconds, self.settings
        reached = min(self._reached) - window

        def over(item: Kept | HeldLabel) -> bool:
            return item.time < reached or (
                self._quiet >= QUIET_TURNS and item.arrived < now - window
            )

        waiting = self.waiting
        pending = waiting.oldest(Standing.PENDING, SWEEP_EVENTS)
        surplus = waiting.pending_bytes - limit.max_bytes
        sizes = np.cumsum([event.size for event in pending])
        many = int(np.searchsorted(sizes, surplus)) + 1 if surplus > 0 else 0
        many = max(many, waiting.pending - limit.max_events)
        self._never([e for i, e in enumerate(pending) if i < many or over(e)])
        labels = waiting.oldest_labels(SWEEP_EVENTS)
        many = waiting.held - limit.max_events
        unmatched = [label for i, label in enumerate(labels) if i < many or over(label)]
        waiting.drop(unmatched)
        self._count("unmatched", len(unmatched))
        if (many := waiting.remembered - limit.max_events) > 0:
            known = waiting.oldest(Standing.LABELLED, many) + waiting.oldest(Standing.NEVER, many)
            waiting.end(sorted(known, key=lambda event: event.number)[:many])
        self._tell()
        self._report(pending[0].arrived if pending else now, now)

    def _never(self, events: Sequence[Kept]) -> None:
        self.waiting.end(events)
        self.waiting.keep([_slim(event, Standing.NEVER) for event in events])
        self._count("never", len(events))
        self._untold += len(events)

    def _tell(self) -> None:
        """Journal the events that were never labelled: in sum, as there may be many."""
        now = self._clock.monotonic()
        if self._untold and now - self._told >= TELL_SECONDS:
            self._journal.write(
                "labels-never",
                events=self._untold,
                total=self._counts["never"],
                waiting=self.waiting.pending,
                window_seconds=self.settings.window_seconds,
            )
            self._untold, self._told = 0, now

    def _report(self, oldest: float, now: float) -> None:
        self._metrics.labels_pending().set(self.waiting.pending)
        self._metrics.labels_pending_bytes().set(self.waiting.pending_bytes)
        self._metrics.labels_held().set(self.waiting.held)
        self._metrics.labels_oldest_pending().set(max(0.0, now - oldest))

    def status(self) -> dict[str, Any]:
        """Plain values, for the status."""
        waits = {"pending": self.waiting.pending, "held": self.waiting.held}
        return {**waits, "bytes": self.waiting.pending_bytes, **self._counts}

    @property
    def _columns(self) -> list[str] | None:
        return list(self._dtype.names) if self._dtype.names else None

    def _requeue(self, repeated: EventBatch) -> None:
        if len(repeated):
            who = repeated.labellers
            who = objects([None] * len(repeated)) if who is None else who
            self.queue(LabelBatch(repeated.ids, repeated.labels, repeated.times, who))

    def _count(self, outcome: str, number: int = 1) -> None:
        self._counts[outcome] += number
        self._metrics.delayed_labels(outcome).inc(number)


def open_waiting(config: Config) -> Waiting:
    """The file of what waits, in the folder of the checkpoints. Raises JoinError."""
    return Waiting(Path(config.checkpoint.path) / FILE)


def _slim(
    event: Kept, standing: Standing, label: str | None = None, at: float | None = None
) -> Kept:
    """The event without its input."""
    return replace(
        event,
        standing=standing,
        label=label,
        labelled=at,
        encoder="",
        size=0,
        input=None,
        embedding=None,
    )


def _dtype(config: Config) -> np.dtype[Any]:
    """Of the inputs as the model sees them."""
    if config.model.task != "tabular":
        return np.dtype(object)
    return features_dtype(config.model.columns)
