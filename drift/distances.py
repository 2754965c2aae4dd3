"""How far apart two tables of counts are, feature by feature.

Every measure takes counts over bins, recent [b, c] and of the baseline [b, c] (or [1, c]), the
columns of one feature beside one another, and answers with roots [b, f]: the distance times the
square root of the pooled events (see `drift.windows.Chance`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.windows import Floats, pooled_events

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where features lie in a table of counts.

    starts: int64 [f], the first column of each. gaps: float64 [c], how far the next bin is, in
    standard deviations of the feature (used by `wasserstein` alone).
    """

    starts: Integers
    gaps: Floats


def ks(recent: Floats, events: int, base: Floats, base_events: Floats, layout: Layout) -> Floats:
    """Kolmogorov and Smirnov: the largest difference of the distribution functions."""
    apart = np.abs(_cumulated(recent, events, base, base_events))
    largest: Floats = np.maximum.reduceat(apart, layout.starts, axis=1)
    return largest * _root(events, base_events)


def wasserstein(
    recent: Floats, events: int, base: Floats, base_events: Floats, layout: Layout
) -> Floats:
    """The earth mover's distance, in standard deviations of the feature."""
    apart = np.abs(_cumulated(recent, events, base, base_events)) * layout.gaps
    moved: Floats = np.add.reduceat(apart, layout.starts, axis=1)
    return moved * _root(events, base_events)


def psi(recent: Floats, events: int, base: Floats, base_events: Floats, layout: Layout) -> Floats:
    """Population stability index, its square root; half an event more in every bin."""
    size = np.diff(np.append(layout.starts, recent.shape[1]))
    bins = np.repeat(size, size)
    now = (recent + 0.5) / (events + 0.5 * bins)
    was = (base + 0.5) / (base_events[:, None] + 0.5 * bins)
    index: Floats = np.add.reduceat((now - was) * np.log(now / was), layout.starts, axis=1)
    root: Floats = np.sqrt(index) * _root(events, base_events)
    return root


def jensen_shannon(
    recent: Floats, events: int, base: Floats, base_events: Floats, layout: Layout
) -> Floats:
    """Jensen-Shannon distance (Lin, 1991; nats), times the root of 8 to be like a chi-square's."""
    now, was = recent / events, base / base_events[:, None]
    middle = np.maximum((now + was) / 2, 1e-300)
    terms = now * np.log(np.maximum(now, 1e-300) / middle)
    terms += was * np.log(np.maximum(was, 1e-300) / middle)
    nats = np.add.reduceat(terms, layout.starts, axis=1) / 2
    root: Floats = np.sqrt(8 * np.maximum(nats, 0.0)) * _root(events, base_events)
    return root


def chi_square(
    recent: Floats, events: int, base: Floats, base_events: Floats, layout: Layout
) -> Floats:
    """Pearson's statistic, its square root, with one event more in what is expected of a bin.

    Without that, a single event of a bin that was all but empty would be an alarm.
    """
    pooled = pooled_events(events, base_events)[:, None]
    share = (recent + base) / (events + base_events[:, None])
    apart = recent / events - base / base_events[:, None]
    terms = apart**2 / (share + 1 / pooled)
    statistic: Floats = np.add.reduceat(terms, layout.starts, axis=1)
    return np.sqrt(statistic * pooled)


def _cumulated(recent: Floats, events: int, base: Floats, base_events: Floats) -> Floats:
    # Over all columns at once: what a feature's columns differ by sums to nothing.
    apart: Floats = np.add.accumulate(recent / events - base / base_events[:, None], axis=1)
    return apart


def _root(events: int, base_events: Floats) -> Floats:
    root: Floats = np.sqrt(pooled_events(events, base_events))[:, None]
    return root


@dataclass(frozen=True, slots=True)
class Distance:
    """A measure, and what it makes of a normal column whose mean shifts by little.

    per_deviation: the root's distance for a shift of one standard deviation. squares: whether the
    squared root is a sum of squares. exponent, factor: from the root's distance to the measure as
    it is usually given.
    """

    roots: Callable[[Floats, int, Floats, Floats, Layout], Floats]
    per_deviation: float
    squares: bool
    exponent: float = 1.0
    factor: float = 1.0


DISTANCES: Mapping[str, Distance] = {
    "ks": Distance(ks, 0.4, squares=False),
    "wasserstein": Distance(wasserstein, 1.0, squares=False),
    "psi": Distance(psi, 1.0, squares=True, exponent=2.0),
    "jensen_shannon": Distance(jensen_shannon, 1.0, squares=True, factor=8**-0.5),
    "chi_square": Distance(chi_square, 1.0, squares=True),
}
