"""Prequential accuracy: every event tests the model before anything learns from it.

Keeps what the metrics, the policy and the operator's status need: totals for good, and a bounded
window of the last outcomes, each with its event number, for "since when is it worse".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW = 8192
RECENT = 500


class Prequential:
    """Counts of right and wrong answers: overall, since a version serves, and lately.

    >>> score = Prequential()
    >>> score.observe(np.array([0, 1, 3]), np.array([True, False, True]))
    >>> score.labelled, score.since(1).tolist()
    (3, [False, True])
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.labelled = 0
        self.right = 0
        self.since_labelled = 0
        self.since_right = 0
        self._numbers = np.full(window, -1, dtype=np.int64)
        self._outcomes = np.zeros(window, dtype=np.bool_)

    def observe(self, numbers: NDArray[np.int64], right: NDArray[np.bool_]) -> None:
        """Count labelled events: their numbers, int64 [m], and outcomes, bool [m]."""
        window = len(self._outcomes)
        slots = (self.labelled + np.arange(len(right)))[-window:] % window
        self._numbers[slots] = numbers[-window:]
        self._outcomes[slots] = right[-window:]
        self.labelled += len(right)
        self.right += int(right.sum())
        self.since_labelled += len(right)
        self.since_right += int(right.sum())

    def restart(self) -> None:
        """A new version serves: the counts "since" begin again."""
        self.since_labelled = self.since_right = 0

    @property
    def accuracy(self) -> float:
        """Over all labelled events, 0 to 1; NaN before the first."""
        return self.right / self.labelled if self.labelled else float("nan")

    @property
    def since_accuracy(self) -> float:
        """Over the labelled events since `restart`, 0 to 1; NaN before the first."""
        return self.since_right / self.since_labelled if self.since_labelled else float("nan")

    @property
    def recent_accuracy(self) -> float:
        """Over the last 500 labelled events at most, 0 to 1; NaN before the first."""
        last = self._ordered()[1][-RECENT:]
        return float(last.mean()) if len(last) else float("nan")

    def since(self, number: int) -> NDArray[np.bool_]:
        """Bool [m]: outcomes of the labelled events from ``number`` on, in the order of labels.

        Reaches back as far as the window (8,192 labelled events by default).
        """
        numbers, outcomes = self._ordered()
        return outcomes[numbers >= number]  # labels that come late are not in the events' order

    def number(self, ago: int) -> int:
        """The number of the event of the ``ago``-th outcome from the end; 1 is the last."""
        return int(self._ordered()[0][-ago])

    def _ordered(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        window = len(self._outcomes)
        filled = min(self.labelled, window)
        slots = (self.labelled - filled + np.arange(filled)) % window
        return self._numbers[slots], self._outcomes[slots]

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Plain arrays, for the checkpoint."""
        counts = [self.labelled, self.right, self.since_labelled, self.since_right]
        return {
            "counts": np.array(counts, dtype=np.int64),
            "numbers": self._numbers.copy(),
            "outcomes": self._outcomes.copy(),
        }

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Go on where `state` was taken."""
        counts = [int(c) for c in state["counts"]]
        self.labelled, self.right, self.since_labelled, self.since_right = counts
        self._numbers = state["numbers"].astype(np.int64)
        self._outcomes = state["outcomes"].astype(np.bool_)
