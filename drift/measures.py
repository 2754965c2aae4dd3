"""The few tests that a diagnosis rests on, each with an effect beside its significance.

Plain functions of arrays; `diagnosis` decides what they mean together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Measure:
    """score: standard deviations away from what chance would do. effect: corrected for chance."""

    score: float
    effect: float


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


def chi_square_score(
    statistic: Floats | float, size: int, noncentrality: Floats | float = 0.0
) -> Floats:
    """Chi-square values of ``size`` degrees of freedom as standard normal ones.

    Wilson and Hilferty's cube root; with a noncentrality, on Patnaik's approximation.
    """
    freedom = (size + noncentrality) ** 2 / (size + 2 * noncentrality)
    statistic = statistic * (size + noncentrality) / (size + 2 * noncentrality)
    step = 2 / (9 * freedom)
    score: Floats = (np.cbrt(statistic / freedom) - (1 - step)) / np.sqrt(step)
    return score


def mean_test(white: Floats, chance: float) -> Measure:
    """Is the mean of rows [n, c], whose covariance is 1, further from 0 than chance?

    chance: the variance of a coordinate of the mean, 1/n plus what the zero itself is uncertain by.
    The effect is the shift in standard deviations.
    """
    size = white.shape[1]
    distance = float((white.mean(axis=0) ** 2).sum())
    shift = math.sqrt(max(0.0, distance - size * chance))
    return Measure(float(chi_square_score(distance / chance, size)), shift)


def share_test(
    reference: Integers, recent: Integers, *, draws: int = 400, seed: int = 0
) -> Measure:
    """Do class counts [c] differ from a reference's? By simulation, so that rare classes may be in.

    The effect is the total variation distance.
    """
    random = np.random.default_rng(seed)
    before, now = int(reference.sum()), int(recent.sum())
    shares = (reference + 0.5 / len(reference)) / (before + 0.5)
    # The reference's shares are themselves uncertain: each draw is from a mix it might have been.
    likely = random.dirichlet(reference + 0.5 / len(reference), size=draws)
    drawn = np.stack([random.multinomial(now, mix) for mix in likely])

    def deviance(counts: NDArray[np.integer]) -> Floats:
        terms = np.where(counts > 0, counts * np.log(np.maximum(counts, 1) / (now * shares)), 0.0)
        total: Floats = 2 * terms.sum(axis=-1)
        return total

    by_chance = deviance(drawn)
    spread = float(by_chance.std()) or 1.0
    score = (float(deviance(recent)) - float(by_chance.mean())) / spread
    apart = np.abs(drawn / now - shares).sum(axis=1).mean() / 2
    variation = float(np.abs(recent / now - shares).sum()) / 2
    return Measure(score, max(0.0, variation - float(apart)))


def rise_test(wrong: int, events: int, expected: float, uncertainty: float) -> Measure:
    """Is an error rate above ``expected``, which is known to ``uncertainty`` (one sd)?"""
    rate = wrong / events
    pooled = min(max((wrong + 1) / (events + 2), expected), 1 - 1e-9)
    spread = math.sqrt(pooled * (1 - pooled) / events + uncertainty**2)
    return Measure((rate - expected) / max(spread, 1e-9), rate - expected)


def wilson(wrong: int, events: int, z: float = 1.96) -> Interval:
    """Wilson's score interval of a share."""
    rate = wrong / events
    middle = (rate + z * z / (2 * events)) / (1 + z * z / events)
    half = z * math.sqrt(rate * (1 - rate) / events + z * z / (4 * events**2))
    half /= 1 + z * z / events
    return Interval(rate, max(0.0, middle - half), min(1.0, middle + half))


def difference(now: Interval, before: Interval) -> Interval:
    """Newcombe's interval of the difference of two shares, from their Wilson intervals."""
    estimate = now.estimate - before.estimate
    low = math.hypot(now.estimate - now.low, before.high - before.estimate)
    high = math.hypot(now.high - now.estimate, before.estimate - before.low)
    return Interval(estimate, estimate - low, estimate + high)


def suffix_sums(values: Floats) -> Floats:
    """Sums of values [n, ...] from each position to the end."""
    total: Floats = np.add.accumulate(values[::-1], axis=0)[::-1]
    return total


def mix_change(members: Floats, shares: Floats) -> Floats:
    """Nats [n] by which the mix from each event to the end differs from ``shares`` [c].

    members: [n, c], 1 in the column of each event's class. Each class seen costs half a nat of
    overfitting.
    """
    counts = suffix_sums(members)
    length = np.arange(len(counts), 0, -1)[:, None]
    terms = np.where(counts > 0, counts * np.log(np.maximum(counts, 1) / (length * shares)), 0)
    nats: Floats = terms.sum(axis=1) - (counts > 0).sum(axis=1) / 2
    return nats


def shape(series: Floats, shortest: int = 10) -> tuple[str, int]:
    """Whether a series [n] with mean 0 before its change stepped or climbed, and since where.

    The better of a step to the end and a ramp to the end, each fitted by least squares; "unclear"
    when their likelihoods differ by less than a factor of twenty.
    """
    n = len(series)
    if n < 2 * shortest:
        return "unclear", 0
    starts = np.arange(n - shortest)
    length = (n - starts).astype(np.float64)
    sums = suffix_sums(series)[: len(starts)]
    stepped = sums**2 / length
    moments = suffix_sums(series * np.arange(n))[: len(starts)]
    # Sum of y (t - a + 1) over t >= a, against sum of squares of 1 .. n - a.
    climbs = moments - (starts - 1) * sums
    climbed = climbs**2 / (length * (length + 1) * (2 * length + 1) / 6)
    total = float((series**2).sum())
    step, ramp = int(stepped.argmax()), int(climbed.argmax())
    left_step = max(total - float(stepped[step]), 1e-12)
    left_ramp = max(total - float(climbed[ramp]), 1e-12)
    favour = n / 2 * math.log(left_ramp / left_step)
    if abs(favour) < math.log(20):
        return "unclear", step
    return ("abrupt", step) if favour > 0 else ("gradual", ramp)
