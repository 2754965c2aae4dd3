"""The ledger: which events were taken in, one line each, always as long as the checkpoint says.

For audits, and for tests of the promise that each event counts once. Lines are written just before
a checkpoint, which holds the file's length; after a crash the file is cut back to the length in the
checkpoint that the daemon resumes from, so that the two never disagree.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from daemon.checkpoint import CheckpointError
from daemon.events import EventBatch

log = logging.getLogger("driftd.ledger")

MOST_BYTES = 16 * 1024 * 1024  # of lines that wait for the disk, before reading pauses


class Ledger:
    """A file of JSON lines: ``[id, topic, partition, offset, fate]``, in the order of learning.

    fate: "labelled" (its label counted), "unlabelled", or "held" (its label went to the
    quarantine). A label that comes later, by itself, has a line of its own: "joined", or "held".
    Not thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        self._waiting: list[bytes] = []
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether the loop should stop reading until a `sync` succeeds."""
        return self._bytes >= MOST_BYTES

    def note(self, batch: EventBatch, labelled: NDArray[np.bool_], held: NDArray[np.bool_]) -> None:
        """Take down ``n`` events; labelled and held: bool [n]."""
        fates = np.where(held, "held", np.where(labelled, "labelled", "unlabelled")).tolist()
        self._write(batch, fates)

    def later(self, batch: EventBatch, held: NDArray[np.bool_]) -> None:
        """Labels came of ``n`` events noted before; held: bool [n]."""
        self._write(batch, np.where(held, "held", "joined").tolist())

    def _write(self, batch: EventBatch, fates: list[str]) -> None:
        columns = (batch.ids, batch.topics, batch.partitions, batch.offsets)
        rows = zip(*(column.tolist() for column in columns), fates, strict=True)
        lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        self._waiting.append(lines)
        self._bytes += len(lines)

    def sync(self) -> int:
        """Bring all lines to disk; the file's length, for the checkpoint.

        Raises:
            CheckpointError: the disk is full or not writable; the lines are kept.
        """
        lines = b"".join(self._waiting)
        try:
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                file.truncate(self._size)  # a try that failed half-way may have left a part
                file.seek(self._size)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise CheckpointError(
                f"cannot write the ledger {self.path}: {what}; free space there, move "
                "checkpoint.path, or turn checkpoint.ledger off"
            ) from error
        self._size += len(lines)
        self._waiting, self._bytes = [], 0
        return self._size

    def restore(self, size: int) -> None:
        """Go on where a checkpoint was taken; what was noted after it is read again."""
        there = self.path.stat().st_size if self.path.exists() else 0
        if there < size:
            log.error("%s has %d bytes, the checkpoint knows %d", self.path, there, size)
        self._size = min(size, there)
        self._waiting, self._bytes = [], 0
