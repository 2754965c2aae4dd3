"""Whether learning keeps up with the stream; if not, a sample of the events is learned from.

Every event is predicted, watched and counted as before. What is left out is chosen by a hash of the
id, so that a restart chooses alike, and the journal says from when to when, and how many.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daemon.journal import JournalWriter
from daemon.metrics import Metrics
from daemon.sampling import unit_hash
from daemon.stream_config import EventsConfig

CAUGHT_UP = 0.5  # of the events at which it began: a lag in between changes nothing


class Pace:
    """Decides, at each turn, whether all labelled events are learned from or a sample."""

    def __init__(self, config: EventsConfig, journal: JournalWriter, metrics: Metrics) -> None:
        self._most = config.behind_events
        self._share = config.behind_share
        self._journal = journal
        self._metrics = metrics
        self._skipped = 0
        self.behind = False
        metrics.learning_share().set(1)

    def look(self, lag: int | None) -> None:
        """How many events wait now; None where that is not known."""
        if self._most is None or lag is None:
            return
        if not self.behind and lag > self._most:
            self.behind = True
            self._journal.write("learning-sampled", lag_events=lag, share=self._share)
            self._metrics.learning_share().set(self._share)
        elif self.behind and lag <= self._most * CAUGHT_UP:
            self.behind = False
            self._journal.write("learning-whole", lag_events=lag, left_out=self._skipped)
            self._metrics.learning_share().set(1)
            self._skipped = 0

    def learned(self, ids: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Bool [n]: which of the labelled events are learned from."""
        chosen = np.ones(len(ids), dtype=np.bool_)
        if self.behind:
            chosen[:] = [unit_hash("pace", name) < self._share for name in ids]
            self._skipped += int((~chosen).sum())
        return chosen
