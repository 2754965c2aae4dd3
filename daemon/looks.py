"""Which of the events that carry their prediction are also looked at: run through the model.

Counting an answer costs a microsecond, running a model a thousand of them. A steady budget of looks
shows a drift as well as all events would, within a minute, and fills the memory anew within two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daemon.clock import Clock

BURST = 32  # looked at together: a pass over few events costs almost as much as over these
SAVED_SECONDS = 1.0  # for how long unused looks are kept
TELL_SECONDS = 60.0  # between two looks at whether all events are looked at


class Looks:
    """A budget of ``rate`` looks a second.

    >>> from types import SimpleNamespace
    >>> clock = SimpleNamespace(monotonic=lambda: 0.0)
    >>> looks = Looks(50.0, clock)
    >>> len(looks.choose(10)), len(looks.choose(1000)), len(looks.choose(1000))
    (10, 40, 0)
    """

    def __init__(self, rate: float, clock: Clock) -> None:
        self.rate = rate
        self._clock = clock
        self._most = max(float(BURST), rate * SAVED_SECONDS)
        self._left = self._most
        self._at = self._told = clock.monotonic()
        self._passed = self._looked = 0
        #: Whether some events of the last minute were only counted.
        self.sampling = False

    def choose(self, count: int) -> NDArray[np.int64]:
        """Rows of ``count`` events to look at, int64, ascending and evenly spaced."""
        now = self._clock.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self.rate)
        self._at = now
        few = self._left < min(count, BURST)
        chosen = 0 if few else min(count, int(self._left))
        self._left -= chosen
        self._looked += chosen
        self._passed += count - chosen
        return np.arange(chosen) * count // max(1, chosen)

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
