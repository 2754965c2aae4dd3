"""The embeddings can be told from the reference's: a classifier two-sample test, by betting.

A small linear classifier is refitted every 32 events and bets on the events after them: as long as
it cannot tell them from the reference, it wins nothing. Needs no simulation.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from drift.covariate.vectors import Vectors
from drift.eprocess import Baseline, Bets, Floats
from drift.signal import Kind, NotFitted, Observations, Signal, State
from drift.subspace import Subspace
from drift.watch import Watch

# Events between two fits of the classifier, and how many of the last ones it learns from: enough
# to find a direction in some thirty coordinates, few enough to follow what is new.
BLOCK, LEARNED = 32, 512
# Neighbouring bets differ by this factor.
GROWTH = 1.6
# By how many standard errors the held events' median may be wrong.
MARGIN = 2.0


class ClassifierShift:
    """Sequential classifier two-sample test of embeddings (or numeric features).

    Linear discriminant analysis in whitened coordinates (`drift.subspace`) between the last 512
    events and one part of the reference. It answers "recent" for an event whose score is above the
    median of the other part's: half of the time, if nothing has moved, whatever the distribution.
    A `drift.watch.Watch` bets on that share being larger, always on events after those learned
    from. By proof, there is at most one false alarm per ``false_alarm`` events on average as long
    as the true share is below the baseline: a half and two standard errors of the median.

    Score and threshold are ``log(1 + evidence)``, in nats; alarms come at the end of a block of 32.
    Bets are on shares from ``floor`` above the baseline up; a share less than half of that above it
    never adds up to an alarm. Evidence: ``accuracy`` (of the classifier on new events and
    reference, with equal weight; 0.5 is chance), ``events`` used and ``skipped``.

    References: Lopez-Paz & Oquab, "Revisiting classifier two-sample tests", 2017; Podkopaev &
    Ramdas, "Sequential predictive two-sample and independence testing", 2023; `drift.eprocess`.
    """

    name = "classifier"
    kind: Kind = "covariate"

    def __init__(
        self,
        false_alarm: int = 20_000,
        *,
        floor: float = 0.05,
        directions: int = 32,
        minimum: int = 200,
    ) -> None:
        sizes = [floor * GROWTH**step for step in range(int(math.log(0.5 / floor, GROWTH)) + 1)]
        self._bets = Bets(np.array([sizes]), np.full((1, len(sizes)), 1 / len(sizes)))
        # The baseline does not learn: with every direction, the median errs in another way.
        self._watch = Watch(self._bets, float(false_alarm), learn_until=0.0)
        self._directions = directions
        self._minimum = minimum
        self._vectors: Vectors | None = None
        self._seen = 0

    def fit(self, reference: Observations) -> None:
        """Find the coordinates, and keep part of the reference to compare scores with.

        Raises NotEnoughReference with fewer usable vectors than ``minimum``.
        """
        vectors, rows = Vectors.fit(self.name, reference, self._minimum)
        self._vectors = vectors
        self._space, _, coordinates = Subspace.fit(rows, self._directions)
        # A third for the classifier to learn from, the rest to judge it by: on events that it
        # learned from, it would look better than it is.
        learned = np.arange(len(coordinates)) % 3 == 0
        self._mean = coordinates[learned].mean(axis=0)
        self._held = coordinates[~learned].astype(np.float32)
        events = len(self._held)
        share = 0.5 + MARGIN * 0.5 / math.sqrt(events)
        self._watch.begin(Baseline(np.array([share * events]), float(events)))
        self._learned = np.zeros((0, self._space.size))
        self._pending = rows[:0].copy()
        self._seen = 0

    def observe(self, batch: Observations) -> Signal:
        """Take in the batch's vectors, labelled or not.

        Raises ShapeMismatch when embeddings have another width than the reference's.
        """
        if self._vectors is None:
            raise NotFitted(f"{self.name}: call fit with a reference first")
        rows, positions = self._vectors.of(self.name, batch)
        before = len(self._pending)
        rows = np.concatenate([self._pending, rows])
        full = len(rows) // BLOCK * BLOCK
        self._pending = rows[full:].copy()
        answered = len(self._learned) > 0
        answers = self._answers(rows[:full].reshape(-1, BLOCK, rows.shape[1]))
        # The very first block finds no classifier yet.
        skipped = 0 if answered or not full else BLOCK
        found = self._watch.take(answers)
        ends = sorted({(place + skipped) // BLOCK * BLOCK + BLOCK - 1 for place in found.at})
        seen, self._seen = self._seen, self._seen + len(batch)
        evidence = {
            "seen": seen,
            "at": positions[np.array(ends, dtype=np.int64) - before].tolist(),
            "events": len(positions),
            "skipped": len(batch) - len(positions),
            "accuracy": self._accuracy(found.evidence, float(found.rates[0])),
        }
        score, threshold = math.log1p(found.highest), math.log1p(self._watch.threshold)
        return Signal(self.name, self.kind, score, threshold, bool(ends), evidence)

    def state(self) -> State:
        """Plain arrays: the coordinates, and those of part of the reference."""
        if self._vectors is None:
            return {}
        watch = {f"watch.{key}": value for key, value in self._watch.state().items()}
        return {
            **self._vectors.state(),
            **self._space.state(),
            **watch,
            "mean": self._mean,
            "held": self._held,
            "learned": self._learned.copy(),
            "pending": self._pending.copy(),
            "seen": np.array(self._seen, dtype=np.int64),
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        if not state:
            self._vectors = None
            return
        self._vectors = Vectors.from_state(state)
        self._space = Subspace.from_state(state)
        prefix = "watch."
        self._watch.restore({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
        self._mean = np.array(state["mean"], dtype=np.float64)
        self._held = np.array(state["held"], dtype=np.float32)
        self._learned = np.array(state["learned"], dtype=np.float64)
        self._pending = np.array(state["pending"], dtype=np.float32)
        self._seen = int(state["seen"].item())

    def _answers(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """int64 [m]: 0 for each event of rows [b, BLOCK, d] that is called recent, else -1.

        Every block is answered by the classifier of the blocks before it, then learned from.
        """
        if not len(rows):
            return np.zeros(0, dtype=np.int64)
        coordinates = self._space.coordinates(rows)
        blocks = np.add.reduce(coordinates, axis=1)
        answers = []
        for block, events in zip(blocks, coordinates, strict=True):
            if len(self._learned):
                count = BLOCK * len(self._learned)
                weights = np.add.reduce(self._learned, axis=0) / count - self._mean
                boundary = np.median(self._held @ weights.astype(np.float32))
                answers.append(np.where(events @ weights > boundary, 0, -1))
            self._learned = np.concatenate([self._learned, block[None]])[-LEARNED // BLOCK :]
        return np.concatenate(answers or [np.zeros(0)]).astype(np.int64)

    def _accuracy(self, evidence: Floats, baseline: float) -> float:
        """By what share the bets that won most have called events recent."""
        weights = self._bets.weights * evidence
        total = float(weights.sum())
        if total == 0:
            return 0.5
        alternatives = self._bets.alternatives(np.array([baseline]))
        return 0.5 + (float((weights * alternatives).sum()) / total - baseline) / 2
