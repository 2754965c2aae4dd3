"""Paired evidence that may be looked at after every batch.

Two models answer the same events; only the events on which exactly one of them is right carry
information. On those, "A is no better than B" says that A wins each with probability at most one
half, and a bet against that claim is an e-process: by Ville's inequality it ever exceeds
``1 / alpha`` with probability at most ``alpha``, however often and whenever one looks. The gate
asks it before a promotion, probation after one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln
from scipy.stats import beta


def log_e_value(wins: int, losses: int) -> float:
    """Log e-value against "a win has probability at most 1/2", after ``wins`` and ``losses``.

    The bet is the likelihood ratio mixed uniformly over win probabilities in (1/2, 1]
    (Robbins' method of mixtures; Ramdas et al., "Game-theoretic statistics and safe
    anytime-valid inference", 2023). For every true probability of at most 1/2 it is a
    non-negative supermartingale that starts at 1.

    >>> round(log_e_value(0, 0), 6)
    0.0
    >>> log_e_value(12, 1) > math.log(20) > log_e_value(7, 6)
    True
    """
    a, b = wins + 1, losses + 1
    tail = float(beta.logsf(0.5, a, b))
    if not math.isfinite(tail):
        # Losses dwarf wins so far that the mass above 1/2 underflows: no evidence at all.
        return -math.inf
    return math.log(2) + float(betaln(a, b)) + tail + (wins + losses) * math.log(2)


@dataclass(slots=True)
class PairedTest:
    """Model A against model B on the same labelled events, three-valued and anytime-valid.

    ``alpha`` bounds, separately, the chance of ever calling A better when it is not and of ever
    calling it worse when it is not.
    """

    alpha: float = 0.05
    events: int = 0
    right_a: int = 0
    right_b: int = 0
    wins: int = 0
    losses: int = 0

    def observe(self, a_right: NDArray[np.bool_], b_right: NDArray[np.bool_]) -> None:
        """Count a batch: bool [n] each, whether A and B were right on the same events."""
        if len(a_right) != len(b_right):
            raise ValueError(f"paired test needs pairs, got {len(a_right)} and {len(b_right)}")
        self.events += len(a_right)
        self.right_a += int(a_right.sum())
        self.right_b += int(b_right.sum())
        self.wins += int((a_right & ~b_right).sum())
        self.losses += int((b_right & ~a_right).sum())

    @property
    def better(self) -> float:
        """E-value for "A is better than B" (overflow is clipped to a large finite number)."""
        return math.exp(min(log_e_value(self.wins, self.losses), 690.0))

    @property
    def worse(self) -> float:
        """E-value for "A is worse than B"."""
        return math.exp(min(log_e_value(self.losses, self.wins), 690.0))

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``undecided``."""
        if self.better >= 1 / self.alpha:
            return "better"
        if self.worse >= 1 / self.alpha:
            return "worse"
        return "undecided"

    @property
    def gain(self) -> float:
        """Accuracy of A minus accuracy of B, in points (0 before the first event)."""
        return 100.0 * (self.right_a - self.right_b) / self.events if self.events else 0.0

    def as_dict(self) -> dict[str, float | int | str]:
        """The evidence as plain values, for the journal."""
        return {
            "events": self.events,
            "accuracy": round(self.right_a / self.events, 4) if self.events else 0.0,
            "accuracy_other": round(self.right_b / self.events, 4) if self.events else 0.0,
            "gain_points": round(self.gain, 2),
            "wins": self.wins,
            "losses": self.losses,
            "e_better": round(self.better, 3),
            "e_worse": round(self.worse, 3),
            "needed": round(1 / self.alpha, 1),
            "verdict": self.verdict,
        }

    def state(self) -> list[int]:
        """The counts, for the checkpoint."""
        return [self.events, self.right_a, self.right_b, self.wins, self.losses]

    @classmethod
    def restored(cls, alpha: float, counts: list[int]) -> PairedTest:
        """A test that goes on from `state`."""
        return cls(alpha, *counts)
