"""What moved in a table, and where in it the errors rose: the part of a diagnosis with names.

Two-sample tests of each feature since the onset, and error rates bin by bin; each corrected for
how many were looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drift.bins import Bins, Table, as_numbers
from drift.distances import DISTANCES, chi_square, ks
from drift.features import Column, Features, categorical
from drift.measures import Floats, Measure, chi_square_score, rise_test
from drift.signal import Observations, State

# One in a thousand under chance, one-sided, over all that is looked at.
UNLIKELY = 0.001
# A smaller change of a feature is not named: as if its mean had shifted by so many deviations.
SMALLEST = 0.2
# Fewer events than this say nothing.
ENOUGH = 20
# Bins of a numeric column that errors are counted in.
SLICES = 8
# How many features and slices are named.
NAMED = 5


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """A feature whose distribution moved: ``effect`` in the measure's unit, and what it looks like.

    effect: for ks the largest difference of the distribution functions, for chi_square Cohen's w;
    corrected for chance.
    """

    name: str
    measure: str
    effect: float
    description: str


@dataclass(frozen=True, slots=True)
class SliceChange:
    """Events alike in one feature (``where``) on which the errors rose more than on the others."""

    feature: str
    where: str
    reference: float
    recent: float
    events: int


class Slices:
    """The slices of a table: each category, or eighth of the numbers, of each feature.

    >>> table = {"price": np.arange(80.0), "colour": np.array(["red", "blue"] * 40, dtype=object)}
    >>> slices = Slices.fit(table, ["colour"])
    >>> [slices.text(code) for code in slices.codes(table)[:2, 0].tolist()]
    ['colour red', 'colour blue']
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    @classmethod
    def fit(cls, features: Features, names: Sequence[str] = ()) -> Self:
        """The slices of columns like these, of those ``names`` only if there are any."""
        chosen = {name: features[name] for name in names or features}
        return cls(Table.fit(chosen, SLICES))

    def __len__(self) -> int:
        return int(self._table.starts[-1])

    def codes(self, features: Features) -> NDArray[np.int32]:
        """int32 [events, features]: the slice of each event in each feature."""
        events = len(next(iter(features.values())))
        return self._table.codes(features, events)

    def text(self, code: int) -> str:
        """A slice in words."""
        place = int(np.searchsorted(self._table.starts, code, side="right")) - 1
        return self._table.bins[place].text(code - int(self._table.starts[place]))

    def state(self) -> State:
        """Plain arrays for `from_state`."""
        return self._table.state()

    @classmethod
    def from_state(cls, state: State) -> Self:
        """The slices that `state` describes."""
        return cls(Table.from_state(state))


def feature_changes(
    reference: Observations, recent: Observations
) -> tuple[Measure | None, tuple[FeatureChange, ...]]:
    """The strongest evidence that a feature moved, and those that did, most first.

    The measure's effect is in standard deviations of a mean's shift. None where there is too little
    to compare.
    """
    if not reference.features or min(len(reference), len(recent)) < ENOUGH:
        return None, ()
    table = Table.fit(reference.features)
    before = table.counts(table.codes(reference.features, len(reference))[None])
    now = table.counts(table.codes(recent.features, len(recent))[None])
    found: list[tuple[float, float, FeatureChange]] = []
    for i, bins in enumerate(table.bins):
        columns = slice(int(table.starts[i]), int(table.starts[i + 1]))
        measure = "ks" if bins.names is None else "chi_square"
        own = before[:, columns], now[:, columns]
        score, effect = _apart(table, i, *own, len(reference), len(recent))
        change = FeatureChange(
            bins.name, measure, effect, _description(bins, reference, recent, *own)
        )
        found.append((score, effect / DISTANCES[measure].per_deviation, change))
    strongest = max(found, key=lambda one: one[0])
    enough = _score(math.log(UNLIKELY))
    moved = [one for one in found if one[0] >= enough and one[1] >= SMALLEST]
    moved.sort(key=lambda one: -one[1])
    return Measure(strongest[0], strongest[1]), tuple(one[2] for one in moved[:NAMED])


def slice_changes(reference: Observations, recent: Observations) -> tuple[SliceChange, ...]:
    """The slices whose error rate rose by more than that of all events, the largest rise first."""
    before, now = reference.take(reference.labelled), recent.take(recent.labelled)
    if not reference.features or min(len(before), len(now)) < ENOUGH:
        return ()
    was, wrong = before.errors, now.errors
    overall = float(wrong.mean() - was.mean())
    table = Table.fit(before.features, SLICES)
    old, new = table.codes(before.features, len(before)), table.codes(now.features, len(now))
    slices = int(table.starts[-1])
    enough = NormalDist().inv_cdf(1 - UNLIKELY / slices)
    found = []
    for i, bins in enumerate(table.bins):
        for code in range(int(table.starts[i]), int(table.starts[i + 1])):
            here, there = new[:, i] == code, old[:, i] == code
            events, known = int(here.sum()), int(there.sum())
            if min(events, known) < ENOUGH:
                continue
            rate = float((was[there].sum() + 0.5) / (known + 1))
            expected = min(1 - 1e-9, rate + max(0.0, overall))
            spread = math.sqrt(rate * (1 - rate) / known)
            if rise_test(int(wrong[here].sum()), events, expected, spread).score < enough:
                continue
            where = bins.text(code - int(table.starts[i]))
            recently = float(wrong[here].mean())
            found.append(SliceChange(bins.name, where, float(was[there].mean()), recently, events))
    found.sort(key=lambda change: change.reference - change.recent)
    return tuple(found[:NAMED])


def _apart(
    table: Table, i: int, before: Floats, now: Floats, known: int, events: int
) -> tuple[float, float]:
    """Score, corrected for the number of features, and effect, corrected for chance."""
    layout = table.layout(slice(i, i + 1))
    base = np.array([float(known)])
    pooled = 1 / (1 / events + 1 / known)
    if table.bins[i].names is None:
        root = float(ks(now, events, before, base, layout)[0, 0])
        chance = 0.75  # about the mean of Kolmogorov's squared distribution, 0.87 ** 2
        unlikely = math.log(2) - 2 * root**2  # Kolmogorov's tail
    else:
        root = float(chi_square(now, events, before, base, layout)[0, 0])
        size = max(1, int(((before + now) > 0).sum()) - 1)
        chance = float(size)
        z = float(chi_square_score(root**2, size))
        unlikely = math.log(max(0.5 * math.erfc(z / math.sqrt(2)), 1e-300))
    effect = math.sqrt(max(0.0, root**2 - chance) / pooled)
    return _score(unlikely + math.log(len(table.bins))), effect


def _score(log_probability: float) -> float:
    """Standard deviations of a normal that are exceeded with this probability."""
    return -NormalDist().inv_cdf(max(math.exp(min(log_probability, math.log(0.5))), 1e-300))


def _description(
    bins: Bins, reference: Observations, recent: Observations, before: Floats, now: Floats
) -> str:
    """What moved most: missing values, a quantile, or the share of a category."""
    column = recent.features.get(bins.name)
    if column is None:
        return "is not there any more"
    shares = before[0] / before.sum(), now[0] / now.sum()
    moved = shares[1] - shares[0]
    if bins.names is None:
        if abs(moved[0]) < 0.5 * float(np.abs(moved).sum() / 2):
            return _quantiles(reference.features[bins.name], column)
        code = 0
    else:
        code = int(np.abs(moved).argmax())
    what = bins.text(code).removeprefix(f"{bins.name} ")
    return f"{what} {shares[0][code]:.0%} -> {shares[1][code]:.0%}"


def _quantiles(before: Column, now: Column) -> str:
    """The median, or the tenth or ninetieth percentile if that moved more."""
    points = {"median": 0.5, "10th percentile": 0.1, "90th percentile": 0.9}
    was, is_now = (_known(column) for column in (before, now))
    if not len(was) or not len(is_now):
        return "no numbers before" if len(is_now) else "no numbers any more"
    old, new = (np.quantile(values, list(points.values())) for values in (was, is_now))
    most = int(np.abs(new - old).argmax())
    # The median is what a reader expects: another one must have moved clearly more.
    if abs(new[0] - old[0]) * 2 >= abs(new[most] - old[most]):
        most = 0
    return f"{list(points)[most]} {old[most]:.4g} -> {new[most]:.4g}"


def _known(column: Column) -> NDArray[np.float64]:
    if categorical(column):
        column = as_numbers(column)
    values = column.astype(np.float64)
    return values[np.isfinite(values)]
