"""The journal: every move and every decision, in order, for good."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .log import Entry
from .sealed import seal
from .store import Store

FOLLOW_SECONDS = 0.2
KIND_DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Row:
    """One row. ``seq`` counts from 1 without gaps; ``time``: UTC, ISO 8601."""

    seq: int
    time: str
    kind: str
    fields: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The row as one flat object."""
        return {"seq": self.seq, "time": self.time, "kind": self.kind, **self.fields}


class Journal:
    """Append-only rows in a store; several processes may write at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(self, kind: str, **fields: Any) -> Row:
        """Add a row and make it durable.

        Raises `registry.errors.StorageError` if the disk says no; nothing is written then.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")

        def line(seq: int) -> bytes:
            return seal({"seq": seq, "time": now, "kind": kind, **fields})

        seq = self._store.append(line)
        while seq is None:
            self._store.mend()
            seq = self._store.append(line)
        return Row(seq, now, kind, fields)

    def rows(
        self,
        since: int = 0,
        kinds: Collection[str] | None = None,
        limit: int | None = None,
        follow: bool = False,
    ) -> Iterator[Row]:
        """Rows numbered above ``since``, oldest first; of these ``kinds``; the last ``limit``.

        ``follow`` goes on with rows as they come, and never ends by itself.
        """
        last = since
        if limit:
            last = max(since, self._store.last_row())
            yield from self._newest(since, last, kinds, limit)
            if not follow:
                return
        while True:
            for entry in self._store.rows(last):
                last = entry.seq
                if row := _row(entry, kinds):
                    yield row
            if not follow:
                return
            time.sleep(FOLLOW_SECONDS)

    def _newest(
        self, since: int, last: int, kinds: Collection[str] | None, limit: int
    ) -> list[Row]:
        """The last ``limit`` rows up to number ``last``, without reading more than about them."""
        width = limit
        while True:
            start = max(since, last - width)
            entries = itertools.takewhile(lambda e: e.seq <= last, self._store.rows(start))
            found = [row for entry in entries if (row := _row(entry, kinds))]
            if len(found) >= limit or start == since:
                return found[-limit:]
            width *= 8


def _row(entry: Entry, kinds: Collection[str] | None) -> Row | None:
    fields = dict(entry.fields) if entry.fields is not None else {"kind": KIND_DAMAGED, "time": ""}
    kind, when = str(fields.pop("kind", "")), str(fields.pop("time", ""))
    if kinds and kind not in kinds:
        return None
    return Row(entry.seq, when, kind, fields)
