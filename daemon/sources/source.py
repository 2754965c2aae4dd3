"""The contract of a source: poll for events, know the positions, say when they are safe.

A source decodes what it reads, so that one `Poll` carries the events, the records that are none,
and the positions after both. Nothing is acknowledged by polling: `checkpointed` tells a source
what a checkpoint holds, and a restart begins there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from daemon.events import NO_LABELS, EventBatch, LabelBatch, Rejected

Partition = tuple[str, int]
Positions = Mapping[Partition, int]


class SourceError(Exception):
    """The source cannot go on without a person; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Poll:
    """What one poll found. ``positions``: next offset of every partition that moved.

    ``labels``: those that came on a topic of their own; they may belong to events of ``batch``.
    """

    batch: EventBatch
    rejected: list[Rejected]
    positions: dict[Partition, int]
    labels: LabelBatch = NO_LABELS

    def __bool__(self) -> bool:
        """Whether anything was read at all."""
        return bool(self.positions)


class Source(Protocol):
    """A stream of events in partitions, each with ascending offsets.

    Not thread-safe: one loop polls it. An outage is no exception: `poll` returns nothing,
    `connected` is false, and the source goes on trying by itself.
    """

    @property
    def connected(self) -> bool:
        """Whether the origin answers, as far as is known."""

    @property
    def ended(self) -> bool:
        """Whether everything was read and nothing more can come."""

    @property
    def caught_up(self) -> bool:
        """Whether all that there was at the last look is read; false where that is not known."""

    def start(self, positions: Positions) -> None:
        """Begin at these next offsets; elsewhere as configured. Raises `SourceError`."""

    def poll(self, max_events: int, timeout: float) -> Poll:
        """At most ``max_events`` records, after at most about ``timeout`` seconds of waiting.

        Returns as soon as there is anything. Raises `SourceError`.
        """

    def hold(self) -> None:
        """In place of `poll`, where what was read before must first be dealt with.

        Nothing is read, and the source stays what it is: a member of its group, above all.
        """

    def positions(self) -> dict[Partition, int]:
        """Next offset of each partition, after everything that `poll` has returned so far."""

    def checkpointed(self, positions: Positions) -> None:
        """A checkpoint holds these positions. Never blocks and never raises."""

    def lag(self) -> int | None:
        """Events that wait to be read, None where that is not known."""

    def lags(self) -> dict[Partition, int]:
        """The same by partition, for those where it is known."""

    def know(self, labels: Iterable[str]) -> None:
        """Tell the decoder which classes the model has, for the limits on new labels."""

    def moves(self) -> tuple[set[Partition], set[Partition]]:
        """Where partitions are shared: those that came and that went since the last call.

        What came is not read before `begin`.
        """

    def begin(self, place: Partition, position: int | None) -> None:
        """Read a partition that came, from there on; None: as one that nobody knows."""

    def leave(self, place: Partition) -> None:
        """Read no more of a partition that turned out to be another's."""

    def close(self) -> None:
        """Let go of everything; safe to call twice."""
