"""Which of the events that carry their prediction are also looked at: run through the model.

Counting an answer costs a microsecond, running a text model a thousand of them. So looks have a
budget, a share of the loop's time: of a slow stream every event is looked at, of a fast one as many
as cost no more than that, evenly spaced. Some tens a second show a drift within a minute or two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daemon.clock import Clock

BURST = 32  # looked at together: a pass over few events costs almost as much as over these
SAVED_SECONDS = 1.0  # of the loop's time, whose share is kept while it is not used
FIRST_COST = 2e-3  # seconds a look, before one was measured: a text's
TELL_SECONDS = 60.0  # between two looks at whether all events are looked at


class Looks:
    """A budget of ``share`` of the time that the clock shows.

    >>> from types import SimpleNamespace
    >>> looks = Looks(0.1, SimpleNamespace(monotonic=lambda: 0.0))
    >>> rows = looks.choose(1000)
    >>> len(rows), rows[:3].tolist()
    (50, [0, 20, 40])
    >>> looks.spent(0.1, 50)
    >>> len(looks.choose(1000))
    0
    """

    def __init__(self, share: float, clock: Clock) -> None:
        self.share = share
        self._clock = clock
        self._cost = FIRST_COST
        self._left = self._most
        self._at = self._told = clock.monotonic()
        self._passed = self._looked = 0
        #: Whether some events of the last minute were only counted.
        self.sampling = False

    @property
    def _most(self) -> float:
        return max(self.share * SAVED_SECONDS, BURST * self._cost)

    def choose(self, count: int) -> NDArray[np.int64]:
        """Rows of ``count`` events to look at, int64, ascending and evenly spaced."""
        now = self._clock.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self.share)
        self._at = now
        affordable = max(0, round(self._left / self._cost))
        chosen = min(count, affordable) if affordable >= min(count, BURST) else 0
        self._looked += chosen
        self._passed += count - chosen
        return np.arange(chosen) * count // max(1, chosen)

    def spent(self, seconds: float, count: int) -> None:
        """``count`` events were looked at, which took so long."""
        self._left -= seconds
        self._cost += (max(seconds, 1e-9) / count - self._cost) * min(1.0, count / BURST) / 2

    def news(self) -> float | None:
        """The share looked at, once a minute if it is news: partial from now on, or whole again."""
        now = self._clock.monotonic()
        total = self._looked + self._passed
        if now - self._told < TELL_SECONDS or not total:
            return None
        share, partial = self._looked / total, self._passed > 0
        self._told, self._looked, self._passed = now, 0, 0
        if partial == self.sampling:
            return None
        self.sampling = partial
        return share
