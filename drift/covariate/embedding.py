"""The embeddings moved: recent stretches of many lengths against the reference.

The default covariate detector. Coordinates from `subspace`, means of the last 32, 64, 128, ...
events, Hotelling's statistic of each; the threshold is simulated from the reference itself.
"""

from __future__ import annotations

import numpy as np

from drift.measures import chi_square_score
from drift.signal import (
    Kind,
    NotEnoughReference,
    NotFitted,
    Observations,
    ShapeMismatch,
    Signal,
    State,
)
from drift.subspace import Floats, Subspace, usable
from drift.windows import (
    BLOCK,
    LENGTH,
    POOL,
    STREAMS,
    Rows,
    Windows,
    levels_of,
    threshold_of,
    window_sums,
)


class EmbeddingShift:
    """Multi-window Hotelling test on whitened embeddings, calibrated by simulation.

    At most one false alarm per ``false_alarm`` events on average; looks at the end of every 32nd
    usable event (a row with NaN, infinities or absurd numbers is skipped and counted). The
    reference's mean goes on being learned from events that have left the longest window.

    Score and threshold are in standard deviations of a standard normal (Wilson and Hilferty's
    transform of the chi-square statistic), the largest over the windows. What is tested is that the
    mean has shifted by more than ``floor``: smaller shifts alarm no more often than none, however
    many events there are. Evidence: ``window`` (events),
    ``shift`` (of the mean, in standard deviations of the reference, corrected for chance),
    ``events`` used and ``skipped`` of this batch.
    """

    name = "embedding"
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
        self._seed = seed
        self._space: Subspace | None = None
        self._shrink = 1.0
        self._windows = Windows(self._levels, baseline_events, self._summed, self._scores)
        self._seen = 0

    def fit(self, reference: Observations) -> None:
        """Find the coordinates and simulate the threshold (about a second for 4,000 x 384).

        Raises NotEnoughReference with fewer usable embeddings than ``minimum``.
        """
        rows = reference.embeddings[usable(reference.embeddings)]
        if len(rows) < self._minimum:
            raise NotEnoughReference(self.name, self._minimum, len(rows), "finite embeddings")
        space, _, coordinates = Subspace.fit(rows, self._directions)
        self._space = space
        self._shrink = space.shrinkage(len(coordinates))
        self._windows.begin(
            self._calibrate(coordinates),
            np.zeros(space.size),
            float(len(coordinates)),
            np.zeros((0, rows.shape[1]), dtype=np.float32),
        )
        self._seen = 0

    def observe(self, batch: Observations) -> Signal:
        """Take in the batch's embeddings, labelled or not.

        Raises ShapeMismatch when they have another width than the reference's.
        """
        if self._space is None:
            raise NotFitted(f"{self.name}: call fit with a reference first")
        width = self._windows.pending.shape[1]
        if len(batch) and batch.embeddings.shape[1] != width:
            raise ShapeMismatch(
                f"{self.name}: embeddings of width {batch.embeddings.shape[1]}, but the reference "
                f"has {width}. Fit on a reference of this encoder first."
            )
        fine = usable(batch.embeddings)
        positions = np.flatnonzero(fine)
        found = self._windows.take(batch.embeddings[fine])
        seen, self._seen = self._seen, self._seen + len(batch)
        return self._windows.signal(
            self.name, self.kind, found, seen, positions, len(batch), shift=found[1].effect
        )

    def state(self) -> State:
        """Plain arrays: the coordinates, at most 31 rows, and a block sum for every 32 events."""
        if self._space is None:
            return {}
        return {
            **self._space.state(),
            **self._windows.state(),
            "shrink": np.array(self._shrink),
            "seen": np.array(self._seen, dtype=np.int64),
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        if not state:
            self._space = None
            return
        self._space = Subspace.from_state(state)
        self._windows.restore(state)
        self._shrink = float(state["shrink"].item())
        self._seen = int(state["seen"].item())

    def _summed(self, rows: Rows) -> Floats:
        """Sums [b, c] of the coordinates of rows [b, BLOCK, d]."""
        assert self._space is not None  # rows are only taken once fitted
        sums: Floats = np.add.reduce(self._space.coordinates(rows), axis=1)
        return sums

    def _scores(
        self, level: int, recent: Floats, bases: Floats, events: Floats
    ) -> tuple[Floats, Floats]:
        """Score and shift [b] of stretches of this level; see `drift.windows.Score`."""
        length, size = BLOCK << level, recent.shape[1]
        apart = recent / length - bases / events[:, None]
        distance = np.add.reduce(apart**2, axis=1) * self._shrink
        chance = 1 / length + 1 / events
        # Against a shift of the floor instead of none: what matters must be shown to matter.
        score = chi_square_score(distance / chance, size, self._floor**2 / chance)
        return np.maximum(score, 0.0), np.sqrt(np.maximum(distance - size * chance, 0.0))

    def _calibrate(self, coordinates: Floats) -> float:
        """The threshold that drift-free streams made of the reference reach once per budget."""
        random = np.random.default_rng(self._seed)
        size = coordinates.shape[1]
        narrow = coordinates.astype(np.float32)
        pool = np.empty((POOL, size), dtype=np.float32)
        for begin in range(0, POOL, 512):
            drawn = random.integers(len(narrow), size=(512, BLOCK))
            pool[begin : begin + 512] = narrow[drawn].sum(axis=1)
        length = max(LENGTH, 2 << (self._levels - 1))
        streams = max(50, STREAMS * LENGTH // length)
        highest = np.zeros(streams)
        for stream in range(streams):
            # What a reference says of mean and covariance is off by chance, in one way for a whole
            # stream: each stream is judged by a reference of its own, drawn from this one.
            redrawn = narrow[random.integers(len(narrow), size=len(narrow))]
            mean = redrawn.mean(axis=0)
            covariance = redrawn.T @ redrawn / len(redrawn) - np.outer(mean, mean)
            scale: Floats = np.linalg.inv(np.linalg.cholesky(covariance + 1e-4 * np.eye(size))).T
            blocks = (pool[random.integers(POOL, size=length)] - BLOCK * mean) @ scale
            for level, sums in enumerate(window_sums(blocks, self._levels)):
                events = BLOCK << level
                distance = ((sums / events) ** 2).sum(axis=1).max() * self._shrink
                chance = 1 / events + 1 / len(narrow)
                score = float(chi_square_score(np.float64(distance / chance), size))
                highest[stream] = max(highest[stream], score)
        return threshold_of(highest, length, self._false_alarm)
