"""What a version has learned from, as stretches of the source, and what makes two versions alike.

A manifest's lineage lists the half-open offset ranges of its own training; what it inherited
stands in its parent's. `Registry` walks the parents; here are the questions to one manifest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from .errors import Invalid
from .manifest import Manifest


@dataclass(frozen=True, slots=True)
class Stretch:
    """The events of a partition from offset ``start`` up to, not including, ``end``.

    ``end`` None: and everything after.
    """

    topic: str
    partition: int
    start: int
    end: int | None = None

    @classmethod
    def parse(cls, text: str) -> Stretch:
        """``TOPIC:PARTITION:START-END``, or ``TOPIC:PARTITION:START`` for everything from there on.

        Raises `Invalid`.

        >>> Stretch.parse("orders:0:1200-1400")
        Stretch(topic='orders', partition=0, start=1200, end=1400)
        """
        try:
            topic, partition, offsets = text.rsplit(":", 2)
            start, dash, end = offsets.partition("-")
            made = cls(topic, int(partition), int(start), int(end) if dash else None)
        except ValueError:
            raise Invalid(
                f"{text!r} names no offsets: write TOPIC:PARTITION:OFFSET or "
                "TOPIC:PARTITION:START-END, such as orders:0:1200-1400"
            ) from None
        if not topic or (made.end is not None and made.end <= made.start):
            raise Invalid(f"{text!r} is empty: END is the first offset that is meant no longer")
        return made

    def __str__(self) -> str:
        end = "" if self.end is None else f"-{self.end}"
        return f"{self.topic}:{self.partition}:{self.start}{end}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as lineages hold them."""
        return asdict(self)

    def touches(self, manifest: Manifest) -> bool:
        """Whether the version's own training met an event of this stretch."""
        return any(
            place["topic"] == self.topic
            and place["partition"] == self.partition
            and place["end"] > self.start
            and (self.end is None or place["start"] < self.end)
            for place in manifest.lineage.get("trained_on") or ()
        )


def newest_event(manifest: Manifest) -> datetime:
    """The time of the newest event that the version's own training met.

    Where the lineage does not say, when the version was made: it cannot have met later ones.
    """
    return moment(str(manifest.lineage.get("newest_event") or manifest.created))


def moment(text: str) -> datetime:
    """A time in ISO 8601; without a zone it is UTC. Raises `Invalid`.

    >>> moment("2026-01-31T12:00").isoformat()
    '2026-01-31T12:00:00+00:00'
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"{text!r} is no time: write it as 2026-01-31T12:00, in UTC") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def alike(one: Manifest, other: Manifest) -> bool:
    """Whether two versions are the same thing: equal files, or made of the same in the same way."""
    if {k: f.sha256 for k, f in one.files.items()} == {k: f.sha256 for k, f in other.files.items()}:
        return True
    trained_on = one.lineage.get("trained_on")
    return bool(trained_on) and all(
        (
            trained_on == other.lineage.get("trained_on"),
            one.parent == other.parent,
            one.strategy == other.strategy,
            one.labels == other.labels,
        )
    )
