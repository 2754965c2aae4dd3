"""The embeddings moved in any way: maximum mean discrepancy with random Fourier features.

As soon as `embedding` for a plain shift, and sees what leaves mean and spread alone. Means of
random waves over the last 32, 64, 128, ... events; the threshold is simulated from the reference.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from drift.covariate.vectors import Vectors
from drift.signal import Kind, NotFitted, Observations, Signal, State
from drift.windows import (
    BLOCK,
    Chance,
    Floats,
    Rows,
    Windows,
    block_pool,
    levels_of,
    pooled_events,
    simulated_threshold,
)

# Random frequencies; each gives a sine and a cosine. 64 know a kernel's value to within 0.1.
FREQUENCIES = 64
# The kernel's width is the median distance of so many pairs.
PAIRS = 2_000


class KernelShift:
    """Multi-window MMD test of embeddings (or numeric features), calibrated by simulation.

    A Gaussian kernel as wide as the median distance of two events, approximated by random Fourier
    features: its mean embedding is then a mean of `2 * FREQUENCIES` numbers. At most one false
    alarm per ``false_alarm`` events on average; looks at the end of every 32nd usable event. The
    baseline goes on being learned from events that have left the longest window.

    Score and threshold are standard deviations of a standard normal. Evidence: ``window`` (events),
    ``discrepancy`` (MMD in standard deviations of an event in the kernel's space, corrected for
    chance; up to ``floor`` raises no more alarms than none), ``events`` used and ``skipped``.

    References: Gretton et al., "A kernel two-sample test", 2012; Rahimi & Recht, "Random features
    for large-scale kernel machines", 2007.
    """

    name = "mmd"
    kind: Kind = "covariate"

    def __init__(
        self,
        false_alarm: int = 20_000,
        *,
        floor: float = 0.02,
        window: int = 2_048,
        minimum: int = 200,
        baseline_events: int = 50_000,
        seed: int = 0,
    ) -> None:
        self._false_alarm = false_alarm
        self._floor = floor
        self._levels = levels_of(window)
        self._minimum = minimum
        self._baseline_events = baseline_events
        self._seed = seed
        self._windows = Windows(
            self._levels, baseline_events, self._summed, partial(self._scores, floor=floor)
        )
        self._vectors: Vectors | None = None
        self._seen = 0

    def fit(self, reference: Observations) -> None:
        """Draw the frequencies and simulate the threshold (under a second for 4,000 x 384).

        Raises NotEnoughReference with fewer usable vectors than ``minimum``.
        """
        vectors, rows = Vectors.fit(self.name, reference, self._minimum)
        random = np.random.default_rng(self._seed)
        pairs = rows[random.integers(len(rows), size=(2, PAIRS))].astype(np.float64)
        distance = float(np.median(np.sqrt(((pairs[0] - pairs[1]) ** 2).sum(axis=1))))
        waves = random.standard_normal((rows.shape[1], FREQUENCIES)) / (distance or 1.0)
        self._vectors, self._waves = vectors, waves.astype(np.float32)
        self._centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        whole = len(rows) // BLOCK * BLOCK
        # In blocks, as all events are; the few beyond the last one are left out.
        sums = self._summed(rows[:whole].reshape(-1, BLOCK, rows.shape[1]))
        base = sums.sum(axis=0)
        # An event has length 1 in the kernel's space; what its mean lacks of that is variance.
        variance = 1 - float(((base / whole) ** 2).sum())
        same = variance < 1e-6
        self._scale = 1.0 if same else math.sqrt(variance)
        pool = block_pool(rows, self._summed, random)
        blocks = whole // BLOCK

        def least(pooled: float) -> Floats:
            return np.array([math.sqrt(2 / pooled) if same else 1e-6])

        baselines = blocks, self._baseline_events // BLOCK
        self._chance = Chance.drawn(
            pool, baselines, self._levels, self._roots, np.array([True]), least, random
        )
        score = partial(self._scores, floor=0.0)
        threshold = simulated_threshold(
            pool, blocks, self._levels, score, self._false_alarm, random
        )
        self._windows.begin(threshold, base, float(whole), rows[:0].copy())
        self._seen = 0

    def observe(self, batch: Observations) -> Signal:
        """Take in the batch's vectors, labelled or not.

        Raises ShapeMismatch when embeddings have another width than the reference's.
        """
        if self._vectors is None:
            raise NotFitted(f"{self.name}: call fit with a reference first")
        rows, positions = self._vectors.of(self.name, batch)
        found = self._windows.take(rows)
        seen, self._seen = self._seen, self._seen + len(batch)
        return self._windows.signal(
            self.name, self.kind, found, seen, positions, len(batch), discrepancy=found[1].effect
        )

    def state(self) -> State:
        """Plain arrays: the frequencies, at most 31 rows, and a block sum for every 32 events."""
        if self._vectors is None:
            return {}
        return {
            **self._vectors.state(),
            **self._chance.state(),
            **self._windows.state(),
            "centre": self._centre,
            "waves": self._waves,
            "scale": np.array(self._scale),
            "seen": np.array(self._seen, dtype=np.int64),
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        if not state:
            self._vectors = None
            return
        self._vectors = Vectors.from_state(state)
        self._chance = Chance.from_state(state)
        self._windows.restore(state)
        self._centre = np.array(state["centre"], dtype=np.float32)
        self._waves = np.array(state["waves"], dtype=np.float32)
        self._scale = float(state["scale"].item())
        self._seen = int(state["seen"].item())

    def _summed(self, rows: Rows) -> Floats:
        """Sums [b, c] of the waves of rows [b, BLOCK, d], each event of length 1."""
        # Around the centre: far from zero, a float32 knows too little of the phase.
        phase = (rows - self._centre) @ self._waves
        waves = np.empty((len(rows), 2 * FREQUENCIES))
        np.add.reduce(np.cos(phase), axis=1, dtype=np.float64, out=waves[:, :FREQUENCIES])
        np.add.reduce(np.sin(phase), axis=1, dtype=np.float64, out=waves[:, FREQUENCIES:])
        waves *= FREQUENCIES**-0.5
        return waves

    def _roots(self, recent: Floats, events: int, base: Floats, base_events: Floats) -> Floats:
        """Roots [b, 1] of the discrepancy, in the unit of an event's standard deviation."""
        apart = recent / events - base / base_events[:, None]
        length = np.sqrt(np.add.reduce(apart**2, axis=1)) / self._scale
        root: NDArray[np.float64] = length * np.sqrt(pooled_events(events, base_events))
        return root[:, None]

    def _scores(
        self, level: int, recent: Floats, bases: Floats, events: Floats, *, floor: float
    ) -> tuple[Floats, Floats]:
        """Score and discrepancy [b]; see `drift.windows.Score`."""
        roots = self._roots(recent, BLOCK << level, bases, events)
        return self._chance.single(level, roots, events, floor)
