"""Whether a challenger is as honest about its confidence as the champion.

The expected calibration error (ECE) is what the share of right answers differs from the mean
confidence, over bins of equal width of the confidence. Measured on few events it is too large by
chance; the bound here allows for that, and holds however often one looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 10
#: The bound is tightest at about so many events.
TIGHTEST = 500


@dataclass(slots=True)
class Calibration:
    """The ECE of one model, with bounds.

    residuals: float64 [BINS], the sum of confidence minus right answers (0 or 1) in each bin.
    squares: the sum of their squares.

    >>> honest = Calibration()
    >>> honest.observe(np.full(1000, 0.8), np.arange(1000) % 5 > 0)
    >>> honest.error < 0.001
    True
    >>> boaster = Calibration()
    >>> boaster.observe(np.full(1000, 0.99), np.arange(1000) % 5 > 0)
    >>> boaster.least(0.05) > honest.most(0.05)
    True
    """

    events: int = 0
    squares: float = 0.0
    residuals: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def observe(self, confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> None:
        """Count events: how sure of its answer the model was, [n], 0 to 1, and bool [n]."""
        residual = confidence.astype(np.float64) - right
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        self.events += len(right)
        self.squares += float((residual**2).sum())
        self.residuals += np.bincount(bins, residual, minlength=BINS)

    @property
    def error(self) -> float:
        """The ECE of the events counted, 0 to 1."""
        return float(np.abs(self.residuals).sum()) / self.events if self.events else 0.0

    def least(self, alpha: float) -> float:
        """What the true ECE is at least, at any time, but with probability ``alpha``.

        The ECE is the largest of the sums over bins, each with either sign: a bound for all of them
        at once (a union over the signs) bounds it.
        """
        return max(0.0, self.error - self._radius(math.log(1 / alpha) + BINS * math.log(2)))

    def most(self, alpha: float) -> float:
        """What the true ECE is at most, at any time, but with probability ``alpha``."""
        return min(1.0, self.error + self._radius(math.log(1 / alpha)))

    def _radius(self, log_odds: float) -> float:
        """Of the asymptotic confidence sequence for a mean.

        Waudby-Smith, Arbour, Sinha & Kennedy, "Time-uniform central limit theory and asymptotic
        confidence sequences", Annals of Statistics 2024, theorem 2.2; the mean square stands for
        the variance, which it is never below.
        """
        n = self.events
        if not n:
            return 1.0
        rho = (2 * log_odds + math.log(2 * log_odds) + 1) / TIGHTEST
        spread = 2 * (n * rho + 1) / (n * n * rho) * (0.5 * math.log(n * rho + 1) + log_odds)
        return math.sqrt(self.squares / n * spread)

    def state(self) -> list[float]:
        """The sums, for the checkpoint."""
        return [self.events, self.squares, *self.residuals.tolist()]

    @classmethod
    def restored(cls, state: Sequence[float]) -> Calibration:
        """One that goes on from `state`."""
        return cls(int(state[0]), state[1], np.array(state[2:], dtype=np.float64))
