"""The embeddings left the reference's subspace: PCA reconstruction error.

How far events lie from where the reference's principal directions can reach. Means over the last
32, 64, 128, ... events; the threshold is simulated from the reference itself.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from drift.covariate.vectors import Vectors
from drift.signal import Kind, NotFitted, Observations, Signal, State
from drift.subspace import Subspace
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

# No event counts for more standard deviations than this, so that a wild one is no drift.
FURTHEST = 4.0
NONE = np.zeros(1)


class ReconstructionError:
    """Multi-window test of the mean log reconstruction error, calibrated by simulation.

    Principal directions of a third of the reference (at most ``directions``, and at most half of
    the width: something must be left over), errors measured on the rest. The error may rise or
    fall. At most one false alarm per ``false_alarm`` events on average; looks at the end of every
    32nd usable event. Blind to what happens inside the subspace: `embedding` sees both.

    Score and threshold are standard deviations of a standard normal. Evidence: ``window`` (events),
    ``shift`` (of the mean log error, in standard deviations of an event, corrected for chance; up
    to ``floor`` raises no more alarms than none), ``events`` used and ``skipped``.
    """

    name = "reconstruction"
    kind: Kind = "covariate"

    def __init__(
        self,
        false_alarm: int = 20_000,
        *,
        floor: float = 0.05,
        directions: int = 32,
        window: int = 2_048,
        minimum: int = 200,
        baseline_events: int = 50_000,
        seed: int = 0,
    ) -> None:
        self._false_alarm = false_alarm
        self._floor = floor
        self._directions = directions
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
        """Find the subspace and simulate the threshold (half a second for 4,000 x 384).

        Raises NotEnoughReference with fewer usable vectors than ``minimum``.
        """
        vectors, rows = Vectors.fit(self.name, reference, self._minimum)
        space, kept, _ = Subspace.fit(rows, min(self._directions, vectors.width // 2))
        self._vectors = vectors
        self._centre, self._tiny = space.centre, space.tiny
        self._directions_found = space.directions * np.sqrt(space.variances)
        errors = self._log_errors(rows[kept])
        self._mean, spread = float(errors.mean()), float(errors.std())
        # Without any error there is no spread: a hundredth part more or less is then a deviation.
        self._spread = max(spread, 0.01)
        random = np.random.default_rng(self._seed)
        pool = block_pool(rows[kept], self._summed, random)
        blocks = max(1, round(len(kept) / BLOCK))

        def least(pooled: float) -> Floats:
            return np.array([FURTHEST / math.sqrt(pooled)]) if spread < self._spread else NONE

        baselines = blocks, self._baseline_events // BLOCK
        self._chance = Chance.drawn(
            pool, baselines, self._levels, self._roots, np.array([False]), least, random
        )
        score = partial(self._scores, floor=0.0)
        threshold = simulated_threshold(
            pool, blocks, self._levels, score, self._false_alarm, random
        )
        base = self._standard(errors).sum(keepdims=True)
        self._windows.begin(threshold, base, float(len(kept)), rows[:0].copy())
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
            self.name, self.kind, found, seen, positions, len(batch), shift=found[1].effect
        )

    def state(self) -> State:
        """Plain arrays: the directions, at most 31 rows, and a number for every 32 events."""
        if self._vectors is None:
            return {}
        return {
            **self._vectors.state(),
            **self._chance.state(),
            **self._windows.state(),
            "centre": self._centre,
            "directions": self._directions_found,
            "scale": np.array([self._mean, self._spread, self._tiny]),
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
        self._directions_found = np.array(state["directions"], dtype=np.float32)
        scale = np.asarray(state["scale"], dtype=np.float64).tolist()
        self._mean, self._spread, self._tiny = scale
        self._seen = int(state["seen"].item())

    def _log_errors(self, rows: Rows) -> Floats:
        """float64 [..., n] of vectors [..., n, d]: log of the squared distance."""
        centred = rows - self._centre
        along = centred @ self._directions_found
        whole = np.add.reduce(centred * centred, axis=-1, dtype=np.float64)
        inside = np.add.reduce(along * along, axis=-1, dtype=np.float64)
        errors: Floats = np.log(np.maximum(whole - inside, 0) + self._tiny)
        return errors

    def _standard(self, errors: Floats) -> Floats:
        return np.clip((errors - self._mean) / self._spread, -FURTHEST, FURTHEST)

    def _summed(self, rows: Rows) -> Floats:
        sums: Floats = np.add.reduce(self._standard(self._log_errors(rows)), axis=1, keepdims=True)
        return sums

    def _roots(self, recent: Floats, events: int, base: Floats, base_events: Floats) -> Floats:
        """Roots [b, 1] of the shift of the mean."""
        apart = np.abs(recent / events - base / base_events[:, None])
        root: Floats = apart * np.sqrt(pooled_events(events, base_events))[:, None]
        return root

    def _scores(
        self, level: int, recent: Floats, bases: Floats, events: Floats, *, floor: float
    ) -> tuple[Floats, Floats]:
        """Score and shift [b]; see `drift.windows.Score`."""
        roots = self._roots(recent, BLOCK << level, bases, events)
        return self._chance.single(level, roots, events, floor)
