"""Running mean and deviation of columns, with exponential forgetting, a block at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

Arrays = dict[str, NDArray[np.generic]]
Floats = NDArray[np.float64]

FLAT = 1e-9  # a deviation below this share of the mean's size is no deviation


class Moments:
    """Mean and deviation of ``columns`` numbers; an event's weight halves every ``half_life``
    events. The mean weighs the events so far as if there had been none before them.

    >>> moments = Moments(1, half_life=1.0)
    >>> mean, _ = moments.observe(np.array([[0.0], [3.0]]))
    >>> mean.ravel().tolist()
    [0.0, 2.0]
    """

    def __init__(self, columns: int, half_life: float) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._weight = 0.0
        self._sum = np.zeros(columns)
        self._square = np.zeros(columns)

    @property
    def seen(self) -> bool:
        """Whether there was any event."""
        return self._weight > 0

    @property
    def mean(self) -> Floats:
        """Float64 [c]; zeros before the first event."""
        return self._sum / self._weight if self.seen else np.zeros_like(self._sum)

    @property
    def deviation(self) -> Floats:
        """Float64 [c]; 1 where a column has not moved."""
        if not self.seen:
            return np.ones_like(self._sum)
        return _deviation(self._square / self._weight, self.mean)

    def observe(self, x: Floats) -> tuple[Floats, Floats]:
        """Take in float64 [n, c]; mean and deviation as of each row, itself included."""
        if not len(x):
            return x, x
        weight = self._filter(np.ones(len(x)), self._weight)[:, None]
        sums = self._filter(x, self._sum)
        mean = sums / weight
        squares = self._filter((x - mean) ** 2, self._square)
        self._weight, self._sum, self._square = float(weight[-1, 0]), sums[-1], squares[-1]
        return mean, _deviation(squares / weight, mean)

    def _filter(self, x: Floats, last: Floats | float) -> Floats:
        """``y[t] = keep * y[t - 1] + (1 - keep) * x[t]``, from ``y[-1] = last``."""
        keep = self._keep
        start = keep * np.asarray(last, np.float64)[None]
        filtered, _ = lfilter([1 - keep], [1.0, -keep], x, axis=0, zi=start)
        found: Floats = filtered
        return found

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        return {
            "weight": np.array([self._weight]),
            "sum": self._sum.copy(),
            "square": self._square.copy(),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `state` was taken."""
        self._weight = float(state["weight"].astype(np.float64)[0])
        self._sum = state["sum"].astype(np.float64)
        self._square = state["square"].astype(np.float64)


def _deviation(variance: Floats, mean: Floats) -> Floats:
    deviation: Floats = np.sqrt(variance)
    return np.where(deviation > FLAT * np.maximum(np.abs(mean), 1.0), deviation, 1.0)
