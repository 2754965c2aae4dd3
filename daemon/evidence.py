"""Paired evidence that may be looked at after every batch.

Two models answer the same events; only the events on which exactly one of them is right carry
information. On those, "A is no better than B" says that A wins each with probability at most one
half, and a bet against that claim is an e-process: by Ville's inequality it ever exceeds
``1 / alpha`` with probability at most ``alpha``, however often and whenever one looks. The gate
asks `PairedTest` before a promotion, probation after one. `Tally` asks the other question, whether
a loss is larger than what is allowed, and never says so of a few unlucky events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

#: The gain that `PairedTest` is tuned to find soonest, as a share of the events: the damage that
#: training starts for by default. Others are found too.
AIMED_GAIN = 0.02
#: The largest bet, as a share of what is at stake: a few lost bets must not ruin the bettor.
BOLDEST = 0.8
#: Bets of `log_e_above`: so many, each half as bold as the one before.
BETS = 8


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
    tail = float(betainc(losses + 1, wins + 1, 0.5))
    if not tail:
        # Losses dwarf wins so far that the mass above 1/2 underflows: no evidence at all.
        return -math.inf
    mixed = math.log(tail) + float(betaln(wins + 1, losses + 1))
    return math.log(2) + mixed + (wins + losses) * math.log(2)


def log_e_above(plus: int, zero: int, minus: int, mean: float, lowest: int = -1) -> float:
    """Log e-value against "scores of +1, 0 and -1 have a mean of at most ``mean``".

    ``lowest``: the lowest score there can be, -1 or 0. Each event multiplies a bet of size b by
    ``1 + b (score - mean)``; bets of several sizes are averaged, so that only the counts matter
    (Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B
    2024). A bet leaves something even after the worst score, so it is never ruined.

    >>> log_e_above(3, 17, 0, 0.1, lowest=0) < math.log(20) < log_e_above(60, 140, 0, 0.1, lowest=0)
    True
    """
    most = BOLDEST / max(mean - lowest, 1e-3)
    bets = most * 0.5 ** np.arange(BETS)
    logs = np.log1p(np.outer([1 - mean, -mean, -1 - mean][: 2 - lowest], bets))
    counts = np.array([plus, zero, minus][: 2 - lowest])
    return float(np.logaddexp.reduce(counts @ logs)) - math.log(BETS)


@dataclass(slots=True)
class PairedTest:
    """Model A against model B on the same labelled events, three-valued and anytime-valid.

    ``alpha`` bounds, separately, the chance of ever calling A better when it is not and of ever
    calling it worse when it is not.

    Half of the stake is on every size of a gain alike (`log_e_value`), which finds a large one
    within some ten decided events. The other half is on `AIMED_GAIN`: if a share ``d`` of the
    events is decided, such a gain wins ``1/2 + gain / 2d`` of these, and the best bet follows
    (Kelly). The share is estimated from the events so far and those of the batch, of which it is
    asked how many are decided before it is asked who won them; so the product of these bets is a
    supermartingale too, and the mean of both halves one more. Reference: Waudby-Smith & Ramdas,
    JRSS B 2024 (predictable bets, mixtures). ``bets``: logarithms of the second half, for "better"
    and for "worse".
    """

    alpha: float = 0.05
    events: int = 0
    right_a: int = 0
    right_b: int = 0
    wins: int = 0
    losses: int = 0
    bets: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def observe(self, a_right: NDArray[np.bool_], b_right: NDArray[np.bool_]) -> None:
        """Count a batch: bool [n] each, whether A and B were right on the same events."""
        if len(a_right) != len(b_right):
            raise ValueError(f"paired test needs pairs, got {len(a_right)} and {len(b_right)}")
        self.events += len(a_right)
        self.right_a += int(a_right.sum())
        self.right_b += int(b_right.sum())
        wins, losses = int((a_right & ~b_right).sum()), int((b_right & ~a_right).sum())
        self.wins += wins
        self.losses += losses
        decided = (self.wins + self.losses + 1) / (self.events + 10)
        bet = min(AIMED_GAIN / decided, BOLDEST)
        won, lost = math.log1p(bet), math.log1p(-bet)
        self.bets[0] += wins * won + losses * lost
        self.bets[1] += losses * won + wins * lost

    @property
    def better(self) -> float:
        """E-value for "A is better than B" (overflow is clipped to a large finite number)."""
        return _half_each(log_e_value(self.wins, self.losses), self.bets[0])

    @property
    def worse(self) -> float:
        """E-value for "A is worse than B"."""
        return _half_each(log_e_value(self.losses, self.wins), self.bets[1])

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

    def state(self) -> list[float]:
        """The counts and the bets, for the checkpoint."""
        return [self.events, self.right_a, self.right_b, self.wins, self.losses, *self.bets]

    @classmethod
    def restored(cls, alpha: float, state: Sequence[float]) -> PairedTest:
        """A test that goes on from `state`; one without bets, of an older release, begins them."""
        counts, bets = [int(count) for count in state[:5]], [float(bet) for bet in state[5:]]
        events, right_a, right_b, wins, losses = counts
        return cls(alpha, events, right_a, right_b, wins, losses, bets or [0.0, 0.0])


@dataclass(slots=True)
class Tally:
    """What model A won and lost against model B: is the loss larger than what is allowed?"""

    events: int = 0
    wins: int = 0
    losses: int = 0

    def observe(self, a_right: NDArray[np.bool_], b_right: NDArray[np.bool_]) -> None:
        """Count a batch: bool [n] each, whether A and B were right on the same events."""
        self.events += len(a_right)
        self.wins += int((a_right & ~b_right).sum())
        self.losses += int((b_right & ~a_right).sum())

    @property
    def lost(self) -> float:
        """Accuracy of A below that of B, in points (0 before the first event)."""
        return 100.0 * (self.losses - self.wins) / self.events if self.events else 0.0

    @property
    def flipped(self) -> float:
        """Share of the events that B has right and A wrong."""
        return self.losses / self.events if self.events else 0.0

    def loses_more(self, points: float, alpha: float) -> bool:
        """Whether A is shown to lose more than so many points; wrongly ever with ``alpha``."""
        ties = self.events - self.wins - self.losses
        return log_e_above(self.losses, ties, self.wins, points / 100) >= math.log(1 / alpha)

    def flips_more(self, share: float, alpha: float) -> bool:
        """Whether more than this share is shown to be flipped; wrongly ever with ``alpha``."""
        kept = self.events - self.losses
        return log_e_above(self.losses, kept, 0, share, lowest=0) >= math.log(1 / alpha)

    def as_dict(self) -> dict[str, float | int]:
        """The evidence as plain values, for the journal."""
        return {
            "events": self.events,
            "wins": self.wins,
            "losses": self.losses,
            "lost_points": round(self.lost, 2),
        }

    def state(self) -> list[int]:
        """The counts, for the checkpoint."""
        return [self.events, self.wins, self.losses]


def _half_each(one: float, other: float) -> float:
    return math.exp(min(float(np.logaddexp(one, other)) - math.log(2), 690.0))
