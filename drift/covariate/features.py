"""Single features moved: recent stretches of many lengths against the reference, bin by bin.

The default covariate detector of a table. Columns from `bins`, counts of the last 32, 64, 128, ...
events, a distance of each feature's; the threshold is simulated from the reference itself.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from drift.bins import Table
from drift.config import FeatureMeasure
from drift.distances import DISTANCES, Distance
from drift.signal import Kind, NotEnoughReference, NotFitted, Observations, Signal, State
from drift.windows import (
    BLOCK,
    Chance,
    Floats,
    Rows,
    Stretch,
    Windows,
    block_pool,
    levels_of,
    pooled_events,
    simulated_threshold,
)

# How many features the evidence names, each with at least such a score.
NAMED, SIGNIFICANT = 5, 3.1


class NoFeatures(NotEnoughReference):
    """The reference is no table: there is nothing to watch, however many events there are."""

    def __init__(self, detector: str, needed: int) -> None:
        super().__init__(detector, needed, 0, "events with named features")
        self.args = (f"{detector} has nothing to watch: these events have no named features",)


class FeatureShift:
    """Multi-window test of every feature's distribution, calibrated by simulation.

    At most one false alarm per ``false_alarm`` events on average, over all features together: the
    threshold is for the highest score of all, in a simulation that keeps features as dependent on
    one another as they are in the reference. Looks at the end of every 32nd event. The baseline
    goes on being learned from events that have left the longest window.

    ``measure`` is for numeric columns (`drift.distances`); categories have Pearson's chi-square.
    Missing values have a bin of their own, and so have categories that are rare or unseen
    together: a feature that vanishes is drift, one that the reference lacks is only named. Values
    of the wrong type count as missing among numbers, and as their text among categories.

    Score and threshold are standard deviations of a standard normal, whose tail the measures' are
    mapped to. Differences up to what a mean shifted by ``floor`` standard deviations makes alarm no
    more often than none. Evidence: ``moved`` (``feature``, ``measure``, ``effect`` in the measure's
    unit and corrected for chance, ``score``), ``window`` (events), ``unknown`` (features that the
    reference lacks), ``events`` of this batch.
    """

    name = "features"
    kind: Kind = "covariate"

    def __init__(
        self,
        false_alarm: int = 20_000,
        *,
        measure: FeatureMeasure = "ks",
        floor: float = 0.05,
        window: int = 2_048,
        minimum: int = 200,
        baseline_events: int = 50_000,
        seed: int = 0,
    ) -> None:
        self._false_alarm = false_alarm
        self._measure = measure
        self._floor = floor
        self._levels = levels_of(window)
        self._minimum = minimum
        self._baseline_events = baseline_events
        self._seed = seed
        self._windows = Windows(
            self._levels, baseline_events, self._summed, partial(self._scores, floor=True)
        )
        self._table: Table | None = None
        self._seen = 0

    def fit(self, reference: Observations) -> None:
        """Cut the columns and simulate the threshold (about a second for 8 columns).

        Raises NotEnoughReference with fewer events than ``minimum``, NoFeatures without a table.
        """
        events = len(reference)
        if not reference.features:
            raise NoFeatures(self.name, self._minimum)
        if events < self._minimum:
            raise NotEnoughReference(self.name, self._minimum, events, "events")
        random = np.random.default_rng(self._seed)
        self._prepare(Table.fit(reference.features))
        assert self._table is not None  # just prepared
        codes = self._table.codes(reference.features, events)
        pool = block_pool(codes, self._summed, random)
        blocks = max(1, round(events / BLOCK))
        squares = np.array([distance.squares for distance in self._distances])

        def least(pooled: float) -> Floats:
            return np.where(squares, 0.7, self._one_event / math.sqrt(pooled))

        baselines = blocks, self._baseline_events // BLOCK
        self._chance = Chance.drawn(
            pool, baselines, self._levels, self._roots, squares, least, random
        )
        score = partial(self._scores, floor=False)
        threshold = simulated_threshold(
            pool, blocks, self._levels, score, self._false_alarm, random
        )
        base = self._table.counts(codes[None])[0]
        self._windows.begin(threshold, base, float(events), codes[:0])
        self._seen = 0

    def observe(self, batch: Observations) -> Signal:
        """Take in the batch's features; a column that is not there is missing."""
        if self._table is None:
            raise NotFitted(f"{self.name}: call fit with a reference first")
        codes = self._table.codes(batch.features, len(batch))
        found = self._windows.take(codes)
        seen, self._seen = self._seen, self._seen + len(batch)
        return self._windows.signal(
            self.name,
            self.kind,
            found,
            seen,
            np.arange(len(batch)),
            len(batch),
            moved=self._moved(found[1]),
            unknown=sorted(batch.features.keys() - {b.name for b in self._table.bins})[:NAMED],
        )

    def state(self) -> State:
        """Plain arrays: the bins, and one byte for each of them and every 32 events."""
        if self._table is None:
            return {}
        windows = self._windows.state()
        return {
            **self._table.state(),
            **self._chance.state(),
            **windows,
            "blocks": windows["blocks"].astype(np.uint8),  # counts of at most BLOCK
            "seen": np.array(self._seen, dtype=np.int64),
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        if not state:
            self._table = None
            return
        self._prepare(Table.from_state(state))
        self._chance = Chance.from_state(state)
        self._windows.restore(state)
        self._seen = int(state["seen"].item())

    def _prepare(self, table: Table) -> None:
        numeric = table.numeric
        self._table = table
        self._split = int(table.starts[numeric])
        self._layouts = table.layout(slice(numeric)), table.layout(slice(numeric, None))
        names = [self._measure] * numeric + ["chi_square"] * (len(table.bins) - numeric)
        self._measures: list[str] = names
        self._distances: list[Distance] = [DISTANCES[name] for name in names]
        # Of the root's distance, what one odd event in a window of one makes.
        furthest = [bins.gaps.max() if self._measure == "wasserstein" else 1 for bins in table.bins]
        self._one_event: Floats = np.maximum(furthest, 1.0)
        self._floors: Floats = self._floor * np.array([d.per_deviation for d in self._distances])

    def _summed(self, rows: Rows) -> Floats:
        assert self._table is not None  # rows are only taken once fitted
        return self._table.counts(rows)

    def _roots(self, recent: Floats, events: int, base: Floats, base_events: Floats) -> Floats:
        """Roots [b, f] of every feature's distance."""
        numbers, categories = self._layouts
        split = self._split
        parts: list[Floats] = []
        if len(numbers.starts):
            measure = DISTANCES[self._measure].roots
            parts.append(measure(recent[:, :split], events, base[:, :split], base_events, numbers))
        if len(categories.starts):
            measure = DISTANCES["chi_square"].roots
            parts.append(
                measure(recent[:, split:], events, base[:, split:], base_events, categories)
            )
        return np.concatenate(parts, axis=1)

    def _scores(
        self, level: int, recent: Floats, bases: Floats, events: Floats, *, floor: bool
    ) -> tuple[Floats, Floats]:
        """Score and effect [b] of the feature that moved most; see `drift.windows.Score`."""
        roots = self._roots(recent, BLOCK << level, bases, events)
        pooled = pooled_events(BLOCK << level, events)
        floors = self._floors * np.sqrt(pooled)[:, None] if floor else 0.0
        highest: NDArray[np.float64] = self._chance.scores(level, roots, events, floors).max(axis=1)
        return highest, np.zeros_like(highest)

    def _moved(self, stretch: Stretch) -> list[dict[str, object]]:
        """The features that stand out of a stretch, those that do most first."""
        if not stretch.events:
            return []
        assert self._table is not None  # there is a stretch
        events = np.array([stretch.base_events])
        roots = self._roots(stretch.sums[None], stretch.events, stretch.base[None], events)
        pooled = pooled_events(stretch.events, events)
        floors = self._floors * math.sqrt(float(pooled[0]))
        scores = self._chance.scores(stretch.level, roots, events, floors)[0]
        effects = self._chance.effects(stretch.level, roots, events)[0]
        order = np.argsort(-scores, kind="stable")[:NAMED].tolist()
        found: list[dict[str, object]] = []
        for i in (i for i in order if scores[i] >= SIGNIFICANT):
            kind = self._distances[i]
            effect = kind.factor * float(effects[i]) ** kind.exponent
            found.append(
                {
                    "feature": self._table.bins[i].name,
                    "measure": self._measures[i],
                    "effect": effect,
                    "score": float(scores[i]),
                }
            )
        return found
