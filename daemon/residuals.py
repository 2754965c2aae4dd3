"""Prequential errors of a number: mean absolute error, root mean square and R2, in its own unit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from daemon.prequential import RECENT
from learn.number_scale import errors

Arrays = dict[str, NDArray[np.generic]]


class Residuals:
    """What was answered and what was true: the last 500 labelled events, and sums over all.

    >>> residuals = Residuals()
    >>> residuals.observe(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    >>> residuals.total["mae"], round(residuals.recent["r2"], 3)
    (1.0, 0.111)
    """

    def __init__(self) -> None:
        self._last = np.empty((0, 2))
        #: Events, and of them the sums of |error|, error squared, truth, and truth squared, both
        #: relative to the first truth, so that a high level costs no digits.
        self._sums = np.zeros(5)
        self._first = 0.0

    def observe(self, given: NDArray[np.float64], truth: NDArray[np.float64]) -> None:
        """Count ``n`` labelled events: what was answered and what was true, float64 [n] each."""
        if not len(truth):
            return
        if not self._sums[0]:
            self._first = float(truth[0])
        self._last = np.concatenate([self._last, np.column_stack([given, truth])])[-RECENT:]
        away, level = given - truth, truth - self._first
        terms = (np.abs(away), away**2, level, level**2)
        self._sums += [len(truth), *(float(term.sum()) for term in terms)]

    @property
    def recent(self) -> dict[str, float]:
        """``mae``, ``rmse``, ``r2`` of the last 500 labelled events at most; empty before any."""
        return errors(*self._last.T) if len(self._last) else {}

    @property
    def total(self) -> dict[str, float]:
        """The same of all; empty before any."""
        count, absolute, square, level, squares = self._sums
        if not count:
            return {}
        spread = squares - level**2 / count
        r2 = 1.0 - square / spread if spread > 0 else float("nan")
        return {
            "mae": float(absolute / count),
            "rmse": float(np.sqrt(square / count)),
            "r2": float(r2),
        }

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        sums = np.append(self._sums, self._first)
        return {"last": self._last.copy(), "sums": sums}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `state` was taken."""
        self._last = state["last"].astype(np.float64)
        sums = state["sums"].astype(np.float64)
        self._sums, self._first = sums[:5].copy(), float(sums[5])
