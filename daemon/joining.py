"""What waits for its other half, on disk: events without a label, and labels without an event.

One SQLite file beside the checkpoints. A row is never changed: it ends, and another may follow it,
each marked with the *tick* in which that happened. A checkpoint ends a tick, and a restart takes
back whatever is younger than the checkpoint it begins from; so positions and join are one, though
they lie in two files.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from daemon.checkpoint import CheckpointError

log = logging.getLogger("driftd.joining")

CHUNK = 500  # ids in one query
CACHE_KIB = 8 * 1024

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, state INTEGER NOT NULL, number INTEGER NOT NULL,
    time REAL NOT NULL, arrived REAL NOT NULL, topic TEXT, part INTEGER, off INTEGER,
    version TEXT, predicted INTEGER, label TEXT, labelled REAL, encoder TEXT,
    size INTEGER NOT NULL, added INTEGER NOT NULL, ended INTEGER, input BLOB, embedding BLOB);
CREATE UNIQUE INDEX IF NOT EXISTS event_ids ON events (id) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS event_states ON events (state, seq) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS event_ends ON events (ended) WHERE ended IS NOT NULL;
CREATE TABLE IF NOT EXISTS labels (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, label TEXT NOT NULL, labeller TEXT,
    time REAL NOT NULL, arrived REAL NOT NULL, added INTEGER NOT NULL, ended INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS label_ids ON labels (id) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS label_ends ON labels (ended) WHERE ended IS NOT NULL;
"""

EVENT_COLUMNS = (
    "id, state, number, time, arrived, topic, part, off, version, predicted, label, labelled,"
    " encoder, size, input, embedding"
)


class JoinError(CheckpointError):
    """What waits cannot be read or is damaged; the message says what to do."""


class JoinFull(JoinError):  # noqa: N818 - a state, not a mistake
    """The disk takes no more for now; what was to be written is kept, and tried again."""


class Standing(IntEnum):
    """Where an event stands. Only a pending one has its input still."""

    PENDING = 0
    LABELLED = 1
    NEVER = 2


@dataclass(frozen=True, slots=True)
class Kept:
    """One event as it was kept. number: its place in the daemon's count; times: see the schema.

    version, predicted: who answered it with which of the daemon's class numbers, if anyone did.
    embedding: float32 [d] by the encoder named, or None. size: about its bytes on disk.
    """

    id: str
    standing: Standing
    number: int
    time: float
    arrived: float
    topic: str
    partition: int
    offset: int
    version: str | None
    predicted: int
    label: str | None
    labelled: float | None
    encoder: str
    size: int
    input: bytes | None
    embedding: bytes | None

    @property
    def row(self) -> tuple[Any, ...]:
        """The values of `EVENT_COLUMNS`."""
        return (
            self.id,
            int(self.standing),
            self.number,
            self.time,
            self.arrived,
            self.topic,
            self.partition,
            self.offset,
            self.version,
            self.predicted,
            self.label,
            self.labelled,
            self.encoder,
            self.size,
            self.input,
            self.embedding,
        )


@dataclass(frozen=True, slots=True)
class HeldLabel:
    """A label whose event has not come."""

    id: str
    label: str
    labeller: str | None
    time: float
    arrived: float


class Waiting:
    """The two tables. Changes are gathered in memory and written by `flush`, all or none.

    What was not flushed is not found: read only when nothing is `unwritten`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tick = 1
        self._writes: list[tuple[str, Sequence[tuple[Any, ...]]]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _opened(path)
        except sqlite3.DatabaseError as error:
            raise JoinError(
                f"{path} cannot be used ({error}). If it is damaged, move it away: the events that"
                " wait in it then stay without a label"
            ) from error
        except OSError as error:
            raise JoinError(f"cannot create {path.parent}: {error.strerror}") from error
        self.pending = self.pending_bytes = self.held = self.remembered = 0

    @property
    def unwritten(self) -> bool:
        """Whether changes wait for `flush`."""
        return bool(self._writes)

    # ---------------------------------------------------------------- life and ticks

    def restore(self, tick: int) -> int:
        """Go back to the end of ``tick`` (0: before everything); how many rows that took back."""
        self._writes = []
        changed = 0
        with self._reading(), self._db:
            for table in ("events", "labels"):
                undone = self._db.execute(f"DELETE FROM {table} WHERE added > ?", (tick,))
                again = self._db.execute(
                    f"UPDATE {table} SET ended = NULL WHERE ended > ?", (tick,)
                )
                changed += undone.rowcount + again.rowcount
            self._count()
        self.tick = tick + 1
        return changed

    def seal(self) -> int:
        """Make everything so far durable; the tick that a checkpoint must name."""
        self.flush()
        try:
            # The log goes to the disk with the file: after it, a power cut loses nothing.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise self._full(error) from error
        return self.tick

    def pages(self) -> NDArray[np.uint8]:
        """The file as it was sealed, uint8 [pages, bytes]: for a checkpoint that lies elsewhere."""
        with self._reading():
            (size,) = self._db.execute("PRAGMA page_size").fetchone()
            return np.frombuffer(self._db.serialize(), dtype=np.uint8).reshape(-1, size)

    def replace(self, pages: NDArray[np.uint8]) -> None:
        """Put back what `pages` gave, in place of all that is there."""
        self._db.close()
        try:
            for beside in ("-wal", "-shm"):
                Path(f"{self.path}{beside}").unlink(missing_ok=True)
            self.path.write_bytes(pages.tobytes())
        except OSError as error:
            raise JoinError(f"cannot write {self.path}: {error.strerror}") from error
        with self._reading():
            self._db = _opened(self.path)

    def sealed(self) -> None:
        """The checkpoint is written: begin a tick, and forget what no kept checkpoint needs."""
        for table in ("events", "labels"):
            self._writes.append((f"DELETE FROM {table} WHERE ended < ?", [(self.tick,)]))
        self.tick += 1

    def flush(self) -> None:
        """Write what was gathered. Raises JoinFull; then it is gathered still."""
        if not self._writes:
            return
        try:
            with self._db:
                for statement, rows in self._writes:
                    self._db.executemany(statement, rows)
        except sqlite3.Error as error:
            raise self._full(error) from error
        self._writes = []

    def close(self) -> None:
        """Let go of the file; what was not sealed is taken back by the next start."""
        self._db.close()

    # ---------------------------------------------------------------- events

    def keep(self, events: Sequence[Kept]) -> None:
        """New events, of any standing."""
        marks = ", ".join("?" * 16)
        statement = f"INSERT INTO events ({EVENT_COLUMNS}, added) VALUES ({marks}, ?)"
        self._writes.append((statement, [(*event.row, self.tick) for event in events]))
        for event in events:
            self._counted(event, 1)

    def end(self, events: Sequence[Kept]) -> None:
        """These rows hold no longer; others for the same ids may be kept now."""
        statement = "UPDATE events SET ended = ? WHERE id = ? AND ended IS NULL"
        self._writes.append((statement, [(self.tick, event.id) for event in events]))
        for event in events:
            self._counted(event, -1)

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that an event had already."""
        return {row[0] for row in self._among("SELECT id FROM events", ids)}

    def events(self, ids: Sequence[str]) -> dict[str, Kept]:
        """The events of these ids, with their input where they have it still."""
        found = self._among(f"SELECT {EVENT_COLUMNS} FROM events", ids)
        return {row[0]: _kept(row) for row in found}

    def oldest(self, standing: Standing, limit: int) -> list[Kept]:
        """The first ``limit`` events of that standing, in the order in which they were kept."""
        # The inputs are not needed, and may be large.
        columns = EVENT_COLUMNS.replace("input, embedding", "NULL, NULL")
        query = (
            f"SELECT {columns} FROM events WHERE ended IS NULL AND state = ? ORDER BY seq LIMIT ?"
        )
        with self._reading():
            return [_kept(row) for row in self._db.execute(query, (int(standing), limit))]

    # ---------------------------------------------------------------- labels

    def hold(self, labels: Sequence[HeldLabel]) -> None:
        """Labels that wait for their event; one label an id."""
        statement = (
            "INSERT INTO labels (id, label, labeller, time, arrived, added)"
            " VALUES (?, ?, ?, ?, ?, ?)"
        )
        rows = [(x.id, x.label, x.labeller, x.time, x.arrived, self.tick) for x in labels]
        self._writes.append((statement, rows))
        self.held += len(labels)

    def drop(self, labels: Sequence[HeldLabel]) -> None:
        """These labels wait no longer."""
        statement = "UPDATE labels SET ended = ? WHERE id = ? AND ended IS NULL"
        self._writes.append((statement, [(self.tick, label.id) for label in labels]))
        self.held -= len(labels)

    def labels(self, ids: Sequence[str]) -> dict[str, HeldLabel]:
        """The labels that wait for events of these ids."""
        found = self._among("SELECT id, label, labeller, time, arrived FROM labels", ids)
        return {row[0]: HeldLabel(*row) for row in found}

    def oldest_labels(self, limit: int) -> list[HeldLabel]:
        """The first ``limit`` labels that wait, in the order in which they came."""
        query = (
            "SELECT id, label, labeller, time, arrived FROM labels WHERE ended IS NULL"
            " ORDER BY seq LIMIT ?"
        )
        with self._reading():
            return [HeldLabel(*row) for row in self._db.execute(query, (limit,))]

    # ---------------------------------------------------------------- within

    def _among(self, select: str, ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        with self._reading():
            for start in range(0, len(ids), CHUNK):
                some = ids[start : start + CHUNK]
                where = f" WHERE ended IS NULL AND id IN ({', '.join('?' * len(some))})"
                yield from self._db.execute(select + where, some)

    def _counted(self, event: Kept, sign: int) -> None:
        if event.standing is Standing.PENDING:
            self.pending += sign
            self.pending_bytes += sign * event.size
        else:
            self.remembered += sign

    def _count(self) -> None:
        query = "SELECT state = 0, COUNT(*), SUM(size) FROM events WHERE ended IS NULL GROUP BY 1"
        found = {bool(row[0]): row[1:] for row in self._db.execute(query)}
        self.pending, self.pending_bytes = found.get(True, (0, 0))
        self.remembered = found.get(False, (0, 0))[0]
        query = "SELECT COUNT(*) FROM labels WHERE ended IS NULL"
        self.held = self._db.execute(query).fetchone()[0]

    def _reading(self) -> _Reading:
        return _Reading(self.path)

    def _full(self, error: sqlite3.Error) -> JoinFull:
        return JoinFull(
            f"{self.path} takes no more ({error}); reading goes on once it does. Make room on its"
            " disk, or lower source.labels.max_bytes"
        )


class _Reading:
    """Turns SQLite's errors into ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise JoinError(
                f"{self._path} cannot be read ({error}). If it is damaged, move it away: the"
                " events that wait in it then stay without a label"
            ) from error


def _opened(path: Path) -> sqlite3.Connection:
    # The loop's thread opens it or another that hands it over; never two at once.
    db = sqlite3.connect(path, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    # A crash of the process loses no commit; a power cut may, up to the last `seal`.
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    db.executescript(SCHEMA)
    os.chmod(path, 0o600)
    with closing(db.execute("PRAGMA quick_check(1)")) as found:
        if (first := found.fetchone()) != ("ok",):
            raise sqlite3.DatabaseError(str(first))
    return db


def _kept(row: Sequence[Any]) -> Kept:
    return Kept(row[0], Standing(row[1]), *row[2:])


def packed(inputs: NDArray[Any]) -> list[bytes]:
    """Each input, [n], as bytes: text as UTF-8, a table's row as a JSON list.

    >>> packed(np.array(["hi"], dtype=object))
    [b'hi']
    """
    if inputs.dtype.names is None:
        return [text.encode("utf-8", "surrogatepass") for text in inputs.tolist()]
    return [orjson.dumps(row) for row in inputs.tolist()]  # NaN becomes null


def unpacked(values: Iterable[bytes], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The inputs, [n], that `packed` wrote.

    >>> kind = np.dtype([("a", "<f8"), ("b", object)])
    >>> unpacked(packed(np.array([(1.5, "x"), (float("nan"), None)], dtype=kind)), kind).tolist()
    [(1.5, 'x'), (nan, None)]
    """
    if dtype.names is None:
        texts = [value.decode("utf-8", "surrogatepass") for value in values]
        column: NDArray[Any] = np.empty(len(texts), dtype=object)
        column[:] = texts
        return column
    numeric = [dtype[name].kind != "O" for name in dtype.names]
    rows = [
        tuple(
            np.nan if field is None and number else field
            for field, number in zip(orjson.loads(value), numeric, strict=True)
        )
        for value in values
    ]
    return np.array(rows, dtype=dtype)
