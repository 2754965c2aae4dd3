"""A table's columns in bins: numbers by the reference's quantiles, categories by frequency.

Whatever a column brings falls into some bin, so that a missing value, a category never seen and a
number that is a word have a place in every comparison.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drift.distances import Layout
from drift.features import Column, Features, categorical, numbers
from drift.signal import State
from drift.windows import Floats

Integers = NDArray[np.int64]

# Quantile bins of a numeric column. A value that fills one alone has a bin of its own.
QUANTILES = 32
# Categories with a bin of their own: at most so many, each at least so frequent in the reference
# (share, and events). Those chosen for being frequent by chance would seem to become rarer.
CATEGORIES, FREQUENT, COUNTED = 30, 0.01, 5


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins of one column; bin 0 holds what is missing.

    edges: float64 [e], ascending; numbers from one edge to below the next share a bin, and below
    the first and from the last on there is one more. names: the categories with a bin of their own,
    followed by one for all others; None for numbers. gaps: float64 [size], how far the next bin is,
    in standard deviations; a missing value counts as one below the lowest number.
    """

    name: str
    edges: Floats
    names: tuple[str, ...] | None
    gaps: Floats

    @classmethod
    def fit(cls, name: str, column: Column, quantiles: int = QUANTILES) -> Self:
        """The bins for a column [n] like this one."""
        if categorical(column):
            words = [word for word in _words(column) if word is not None]
            found, counts = np.unique(np.array(words, dtype=object).astype(str), return_counts=True)
            order = np.argsort(-counts, kind="stable")[:CATEGORIES]
            least = max(COUNTED, FREQUENT * len(column))
            names = tuple(str(found[i]) for i in order.tolist() if counts[i] >= least)
            return cls(name, np.zeros(0), names, np.zeros(len(names) + 2))
        values = as_numbers(column)
        values = np.sort(values[~np.isnan(values)])
        edges = _edges(values, quantiles)
        return cls(name, edges, None, _gaps(values, edges))

    @property
    def size(self) -> int:
        """How many bins there are."""
        return (len(self.edges) if self.names is None else len(self.names)) + 2

    def codes(self, column: Column | None, events: int) -> NDArray[np.int32]:
        """int32 [events]: the bin of each value; a column that is not there is missing."""
        if column is None:
            return np.zeros(events, dtype=np.int32)
        if self.names is None:
            values = as_numbers(column)
            codes = 1 + np.searchsorted(self.edges, values, side="right")
            return np.where(np.isnan(values), 0, codes).astype(np.int32)
        index: dict[str | None, int] = {name: 1 + i for i, name in enumerate(self.names)}
        index[None] = 0
        other = 1 + len(self.names)
        return np.array([index.get(word, other) for word in _words(column)], dtype=np.int32)

    def text(self, code: int) -> str:
        """A bin in words: ``price 3 to 5``, ``colour red``, ``age missing``."""
        if code == 0:
            return f"{self.name} missing"
        if self.names is not None:
            named = code <= len(self.names)
            return f"{self.name} {self.names[code - 1] if named else 'any other'}"
        if not len(self.edges):
            return f"{self.name} any number"
        if code == 1:
            return f"{self.name} below {self.edges[0]:.4g}"
        low = self.edges[code - 2]
        if code == self.size - 1:
            return f"{self.name} {low:.4g} or more"
        high = self.edges[code - 1]
        if high == np.nextafter(low, np.inf):
            return f"{self.name} {low:.4g}"
        return f"{self.name} {low:.4g} to {high:.4g}"


@dataclass(frozen=True, slots=True)
class Table:
    """The bins of several columns, numeric ones first, beside one another."""

    bins: tuple[Bins, ...]

    @classmethod
    def fit(cls, features: Features, quantiles: int = QUANTILES) -> Self:
        """The bins of every column of a reference."""
        order = sorted(features, key=lambda name: (categorical(features[name]), name))
        return cls(tuple(Bins.fit(name, features[name], quantiles) for name in order))

    @property
    def starts(self) -> Integers:
        """int64 [f + 1]: where the bins of each column begin, and where the last ones end."""
        return np.concatenate([[0], np.cumsum([bins.size for bins in self.bins])]).astype(np.int64)

    @property
    def numeric(self) -> int:
        """How many of the columns are numeric."""
        return sum(bins.names is None for bins in self.bins)

    def layout(self, columns: slice) -> Layout:
        """Of the counts of some of the columns only."""
        some = self.bins[columns]
        starts = Table(some).starts[:-1]
        return Layout(starts, np.concatenate([bins.gaps for bins in some] or [np.zeros(0)]))

    def codes(self, features: Features, events: int) -> NDArray[np.int32]:
        """int32 [events, f]: the bin of every value, counted through the whole table."""
        codes = np.empty((events, len(self.bins)), dtype=np.int32)
        for i, (bins, start) in enumerate(zip(self.bins, self.starts.tolist(), strict=False)):
            codes[:, i] = bins.codes(features.get(bins.name), events) + start
        return codes

    def counts(self, codes: NDArray[np.int32]) -> Floats:
        """float64 [b, c]: how often each bin is met in codes [b, n, f]."""
        blocks, width = len(codes), int(self.starts[-1])
        flat = codes + (np.arange(blocks) * width)[:, None, None]
        counts = np.bincount(flat.reshape(-1), minlength=blocks * width)
        return counts.reshape(blocks, width).astype(np.float64)

    def state(self) -> State:
        """Plain arrays for `from_state`."""
        listed = json.dumps([[bins.name, len(bins.edges), bins.names] for bins in self.bins])
        return {
            "bins": np.frombuffer(listed.encode(), dtype=np.uint8),
            "edges": np.concatenate([bins.edges for bins in self.bins]),
            "gaps": np.concatenate([bins.gaps for bins in self.bins]),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        """The bins that `state` describes."""
        edges = np.array(state["edges"], dtype=np.float64)
        gaps = np.array(state["gaps"], dtype=np.float64)
        found = []
        for name, length, names in json.loads(state["bins"].tobytes()):
            own, edges = edges[:length], edges[length:]
            size = (length if names is None else len(names)) + 2
            listed = None if names is None else tuple(names)
            found.append(Bins(name, own, listed, gaps[:size]))
            gaps = gaps[size:]
        return cls(tuple(found))


def as_numbers(column: Column) -> Floats:
    """float64 [n]; what is no finite number is NaN."""
    if not categorical(column):
        return numbers(column)
    return numbers(np.array([_number(word) for word in _words(column)], dtype=np.float64))


def _number(word: str | None) -> float:
    try:
        return float(word) if word is not None else np.nan
    except ValueError:
        return np.nan


def _words(column: Column) -> Sequence[str | None]:
    return [
        value if type(value) is str else None if value is None or value != value else str(value)
        for value in column.tolist()
    ]


def _edges(values: Floats, quantiles: int) -> Floats:
    """Of sorted values [n]; a value that fills a whole bin has an edge on either side."""
    if not len(values):
        return np.zeros(0)
    wanted = np.arange(1, quantiles) / quantiles
    cuts = np.unique(np.quantile(values, wanted, method="inverted_cdf"))
    held = np.searchsorted(values, cuts, side="right") - np.searchsorted(values, cuts)
    alone = cuts[held * quantiles >= len(values)]
    edges: Floats = np.union1d(cuts, np.nextafter(alone, np.inf))
    return edges


def _gaps(values: Floats, edges: Floats) -> Floats:
    """How far each bin's median lies below the next one's; an empty outer bin is one away."""
    size = len(edges) + 2
    places = np.full(size, np.nan)
    ends = np.concatenate([[0], np.searchsorted(values, edges), [len(values)]])
    for code in range(1, size):
        own = values[ends[code - 1] : ends[code]]
        if len(own):
            places[code] = own[len(own) // 2]
        elif 1 < code < size - 1:
            places[code] = edges[code - 2] / 2 + edges[code - 1] / 2
    counts = np.diff(ends)
    met = np.flatnonzero(counts) + 1
    if not len(met):
        return np.append(np.ones(size - 1), 0.0)
    middle = np.average(places[met], weights=counts[met - 1])
    deviation = np.sqrt(np.average((places[met] - middle) ** 2, weights=counts[met - 1]))
    gaps = np.diff(places) / (deviation or 1.0)
    return np.append(np.where(np.isfinite(gaps), gaps, 1.0), 0.0)
