"""The daemon's pen: journal rows that wait, in order, while the disk will not take them.

The journal explains decisions; it must never be the reason that an event is lost. Rows that
cannot be written now are held in memory, bounded, and written first as soon as it works again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from registry import Journal, StorageError

log = logging.getLogger("driftd.journal")

HELD_ROWS = 10_000


class JournalWriter:
    """Writes rows to the registry's journal; ``event`` says which event the loop is at."""

    def __init__(self, journal: Journal, event: Callable[[], int]) -> None:
        self._journal = journal
        self._event = event
        self._held: deque[tuple[str, dict[str, Any]]] = deque(maxlen=HELD_ROWS)

    @property
    def held(self) -> int:
        """Rows that wait to be written."""
        return len(self._held)

    def write(self, kind: str, **fields: Any) -> None:
        """Append a row of ``kind``; never raises for a full or absent disk."""
        self._held.append((kind, {"event": self._event(), **fields}))
        self.flush()

    def flush(self) -> None:
        """Write the rows that wait, as many as go."""
        while self._held:
            kind, fields = self._held[0]
            try:
                self._journal.append(kind, **fields)
            except StorageError as error:
                if len(self._held) == 1:
                    log.error("journal rows are held in memory for now: %s", error)
                return
            self._held.popleft()
