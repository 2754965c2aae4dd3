"""Paired evidence that may be looked at after every batch.

Two models answer the same events; only the events on which exactly one of them is right carry
information. On those, "A is no better than B" says that A wins each with probability at most one
half, and a bet against that claim is an e-process: by Ville's inequality it ever exceeds
``1 / alpha`` with probability at most ``alpha``, however often and whenever one looks. The gate
asks `PairedTest` before a promotion, probation after one. With a margin it asks whether A loses
less than that, of a model that has to be no worse rather than better. `Tally` asks whether a loss
is larger than what is allowed, and never says so of a few unlucky events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
#: A loss of so much score on an event: right before and wrong now.
LARGE = 0.5

#: Of one model, for each event: whether it was right, or its score in [0, 1].
Outcomes = NDArray[Any]


def log_bets(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logs, float64 [`BETS`], of what bets of several sizes on "the mean is above 0" have become.

    scores: float64 [n] in [-1, 1]. Each event multiplies a bet of size b by ``1 + b score``; as in
    `log_e_above`, every one is a supermartingale if the mean is at most 0, whatever else the
    scores depend on.
    """
    sizes = BOLDEST * 0.5 ** np.arange(BETS)
    logs: NDArray[np.float64] = np.log1p(np.outer(scores, sizes)).sum(axis=0)
    return logs


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

    Answers that are not simply right or wrong have scores in [0, 1] instead. Then the difference of
    the two is bet on, by `log_bets`, at several sizes at once: ``sizes``, for "better" and then for
    "worse". As scores are bounded, so are the bets' gains, and no wild error decides the test.
    """

    alpha: float = 0.05
    events: int = 0
    right_a: float = 0
    right_b: float = 0
    wins: int = 0
    losses: int = 0
    bets: list[float] = field(default_factory=lambda: [0.0, 0.0])
    sizes: list[float] = field(default_factory=list)
    margin: float = 0.0

    def observe(self, a_right: Outcomes, b_right: Outcomes) -> None:
        """Count a batch: whether A and B were right on the same events, bool [n] each.

        Or their scores, float64 [n] in [0, 1]; a test is of one or the other.
        """
        if len(a_right) != len(b_right):
            raise ValueError(f"paired test needs pairs, got {len(a_right)} and {len(b_right)}")
        self.events += len(a_right)
        if a_right.dtype != np.bool_:
            self._scored(a_right.astype(np.float64), b_right.astype(np.float64))
            return
        self.right_a += int(a_right.sum())
        self.right_b += int(b_right.sum())
        wins, losses = int((a_right & ~b_right).sum()), int((b_right & ~a_right).sum())
        margin, ties = self.margin, len(a_right) - wins - losses
        # Where ties pay, how many there are is part of what is bet on: only those before count.
        decided = (self.wins + self.losses + 1) / (self.events - len(a_right) + 10)
        self.wins += wins
        self.losses += losses
        if not margin:
            decided = (self.wins + self.losses + 1) / (self.events + 10)
        bet = min((margin or AIMED_GAIN) / decided, BOLDEST / (1 + margin))
        for side, sign in enumerate((bet, -bet)):
            won, tied, lost = (math.log1p(sign * (d + margin)) for d in (1, 0, -1))
            self.bets[side] += wins * won + ties * tied + losses * lost

    def _scored(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        self.right_a += float(a.sum())
        self.right_b += float(b.sum())
        self.wins += int((a > b).sum())
        self.losses += int((b > a).sum())
        above = (a - b + self.margin) / (1 + self.margin)
        logs = np.concatenate([log_bets(above), log_bets(-above)])
        self.sizes = (logs + (self.sizes or 0.0)).tolist()

    @property
    def better(self) -> float:
        """E-value for "A is better than B" (overflow is clipped to a large finite number)."""
        if self.sizes:
            return _mean(self.sizes[:BETS])
        return _half_each(self._any_size(self.wins, self.losses, -self.margin), self.bets[0])

    @property
    def worse(self) -> float:
        """E-value for "A is worse than B"."""
        if self.sizes:
            return _mean(self.sizes[BETS:])
        return _half_each(self._any_size(self.losses, self.wins, self.margin), self.bets[1])

    def _any_size(self, wins: int, losses: int, mean: float) -> float:
        """Log e-value of the half that bets on every size of a difference above ``mean``."""
        if not self.margin:
            return log_e_value(wins, losses)
        return log_e_above(wins, self.events - wins - losses, losses, mean)

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
        """Accuracy (or mean score) of A minus that of B, in points (0 before the first event)."""
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
            **({"margin_points": 100 * self.margin} if self.margin else {}),
            "verdict": self.verdict,
        }

    def state(self) -> list[float]:
        """The counts and the bets, for the checkpoint."""
        counts = [self.events, self.right_a, self.right_b, self.wins, self.losses]
        return [*counts, *self.bets, *self.sizes]

    @classmethod
    def restored(cls, alpha: float, state: Sequence[float], margin: float = 0.0) -> PairedTest:
        """A test that goes on from `state`; one without bets, of an older release, begins them."""
        events, right_a, right_b, wins, losses = state[:5]
        bets, sizes = [float(bet) for bet in state[5:7]], [float(bet) for bet in state[7:]]
        if not sizes:
            right_a, right_b = int(right_a), int(right_b)
        counts = int(events), right_a, right_b, int(wins), int(losses)
        return cls(alpha, *counts, bets or [0.0, 0.0], sizes, margin)


@dataclass(slots=True)
class Tally:
    """What model A won and lost against model B: is the loss larger than what is allowed?

    Of scores, ``scored`` holds what A lost on each event, and a loss is counted from `LARGE` on.
    """

    events: int = 0
    wins: int = 0
    losses: int = 0
    scored: list[float] = field(default_factory=list)

    def observe(self, a_right: Outcomes, b_right: Outcomes) -> None:
        """Count a batch: whether A and B were right on the same events, or scores; [n] each."""
        self.events += len(a_right)
        if a_right.dtype != np.bool_:
            lost = b_right.astype(np.float64) - a_right
            self.scored += lost.tolist()
            self.wins += int((lost <= -LARGE).sum())
            self.losses += int((lost >= LARGE).sum())
            return
        self.wins += int((a_right & ~b_right).sum())
        self.losses += int((b_right & ~a_right).sum())

    @property
    def lost(self) -> float:
        """Accuracy (or mean score) of A below that of B, in points (0 before the first event)."""
        if self.scored:
            return 100.0 * float(np.mean(self.scored))
        return 100.0 * (self.losses - self.wins) / self.events if self.events else 0.0

    @property
    def flipped(self) -> float:
        """Share of the events that B has right and A wrong."""
        return self.losses / self.events if self.events else 0.0

    def loses_more(self, points: float, alpha: float) -> bool:
        """Whether A is shown to lose more than so many points; wrongly ever with ``alpha``."""
        if self.scored:
            away = (np.array(self.scored) - points / 100) / (1 + points / 100)
            return float(np.logaddexp.reduce(log_bets(away))) - math.log(BETS) >= -math.log(alpha)
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

    def state(self) -> list[Any]:
        """The counts, for the checkpoint; after them the losses of scores, where there are any."""
        counts: list[Any] = [self.events, self.wins, self.losses]
        return [*counts, self.scored] if self.scored else counts


def _mean(logs: Sequence[float]) -> float:
    """The mean of e-values whose logarithms these are."""
    return math.exp(min(float(np.logaddexp.reduce(logs)) - math.log(len(logs)), 690.0))


def _half_each(one: float, other: float) -> float:
    return math.exp(min(float(np.logaddexp(one, other)) - math.log(2), 690.0))
