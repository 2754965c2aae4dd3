"""The embeddings moved: recent stretches of many lengths against the reference.

The default covariate detector. Coordinates from `subspace`, means of the last 32, 64, 128, ...
events, Hotelling's statistic of each; the threshold is simulated from the reference itself.
"""

from __future__ import annotations

import math
from statistics import NormalDist

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

# Events are taken in blocks of this many, wherever batches are cut. It is also the shortest
# stretch that is looked at: about the least in which a strong change of topic can be told.
BLOCK = 32
# The simulated drift-free streams: so many, each so many blocks long. 100,000 blocks in all place
# a threshold of one alarm in 2,000 blocks to within a tenth of its rate, in about half a second.
STREAMS, LENGTH = 400, 256
# Blocks drawn from the reference for the simulation to compose its streams of.
POOL = 8_192


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
        # Windows of 1, 2, 4, ... blocks.
        self._levels = max(1, int(math.log2(window // BLOCK)) + 1)
        self._minimum = minimum
        self._baseline_events = baseline_events
        self._seed = seed
        self._space: Subspace | None = None
        self._threshold = math.inf
        self._shrink = 1.0

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
        self._threshold = self._calibrate(coordinates)
        self._base = np.zeros(space.size)
        self._base_events = float(len(coordinates))
        self._pending = np.zeros((0, rows.shape[1]), dtype=np.float32)
        self._blocks = np.zeros((0, space.size))
        self._standing = (0.0, 0, 0.0)
        self._seen = 0

    def observe(self, batch: Observations) -> Signal:
        """Take in the batch's embeddings, labelled or not.

        Raises ShapeMismatch when they have another width than the reference's.
        """
        if self._space is None:
            raise NotFitted(f"{self.name}: call fit with a reference first")
        if len(batch) and batch.embeddings.shape[1:] != self._pending.shape[1:]:
            raise ShapeMismatch(
                f"{self.name}: embeddings of width {batch.embeddings.shape[1]}, but the reference "
                f"has {self._pending.shape[1]}. Fit on a reference of this encoder first."
            )
        fine = usable(batch.embeddings)
        positions = np.flatnonzero(fine)
        before = len(self._pending)
        rows = self._pending
        if len(positions):
            rows = np.concatenate([rows, batch.embeddings[fine]])
        full = len(rows) // BLOCK
        at: list[int] = []
        best = self._standing
        if full:
            shaped = rows[: full * BLOCK].reshape(full, BLOCK, -1)
            sums = np.add.reduce(self._space.coordinates(shaped), axis=1)
            alarms, best = self._take(sums)
            at = [int(positions[(block + 1) * BLOCK - 1 - before]) for block in alarms]
        self._pending = rows[full * BLOCK :].copy()
        score, window, shift = best
        evidence = {
            "seen": self._seen,
            "at": at,
            "events": len(positions),
            "skipped": len(batch) - len(positions),
            "window": window,
            "shift": shift,
        }
        self._seen += len(batch)
        return Signal(self.name, self.kind, score, self._threshold, bool(at), evidence)

    def state(self) -> State:
        """Plain arrays: the coordinates, at most 31 rows, and a block sum for every 32 events."""
        if self._space is None:
            return {}
        return {
            **self._space.state(),
            "threshold": np.array(self._threshold),
            "shrink": np.array(self._shrink),
            "base": self._base.copy(),
            "base_events": np.array(self._base_events),
            "pending": self._pending.copy(),
            "blocks": self._blocks.copy(),
            "standing": np.array(self._standing),
            "seen": np.array(self._seen, dtype=np.int64),
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        if not state:
            self._space = None
            return
        self._space = Subspace.from_state(state)
        self._threshold = float(state["threshold"].item())
        self._shrink = float(state["shrink"].item())
        self._base = np.array(state["base"], dtype=np.float64)
        self._base_events = float(state["base_events"].item())
        self._pending = np.array(state["pending"], dtype=np.float32)
        self._blocks = np.array(state["blocks"], dtype=np.float64)
        score, window, shift = np.asarray(state["standing"], dtype=np.float64).tolist()
        self._standing = (score, int(window), shift)
        self._seen = int(state["seen"].item())

    def _take(self, sums: Floats) -> tuple[list[int], tuple[float, int, float]]:
        """Take in block sums [b, c]; which of them alarmed, and the highest (score, window, shift).

        After an alarm, everything before it is forgotten: the next must rest on new events.
        """
        alarms: list[int] = []
        best = (-1.0, 0, 0.0)
        begin = 0
        while begin < len(sums):
            history = np.concatenate([self._blocks, sums[begin:]])
            old = len(self._blocks)
            bases, events = self._bases(history, old)
            scores, shifts = self._scores(history, old, bases, events)
            over = scores.max(axis=1) >= self._threshold
            end = int(over.argmax()) + 1 if over.any() else len(over)
            block, level = np.unravel_index(int(scores[:end].argmax()), scores[:end].shape)
            highest = float(scores[block, level])
            if highest > best[0]:
                best = (highest, BLOCK << int(level), float(shifts[block, level]))
            if over.any():
                alarms.append(begin + end - 1)
                self._blocks = np.zeros((0, sums.shape[1]))
                self._standing = (0.0, 0, 0.0)
            else:
                self._blocks = history[-self._longest :].copy()
                last = int(scores[-1].argmax())
                self._standing = (float(scores[-1, last]), BLOCK << last, float(shifts[-1, last]))
            self._base, self._base_events = bases[end - 1].copy(), float(events[end - 1])
            begin += end
        return alarms, best

    @property
    def _longest(self) -> int:
        return 1 << (self._levels - 1)

    def _bases(self, history: Floats, old: int) -> tuple[Floats, Floats]:
        """The sum [b, c] and number [b] of events that say what is normal, at each new block.

        A block counts once the longest window has left it behind.
        """
        new = len(history) - old
        left = np.zeros((new, history.shape[1]))
        gone = np.arange(old, len(history)) - self._longest
        counts = gone >= 0
        room = math.ceil((self._baseline_events - self._base_events) / BLOCK)
        counts &= np.cumsum(counts) <= room
        left[counts] = history[gone[counts]]
        left[0] += self._base
        sums: Floats = np.add.accumulate(left, axis=0)
        events: Floats = self._base_events + BLOCK * np.cumsum(counts).astype(np.float64)
        return sums, events

    def _scores(
        self, history: Floats, old: int, bases: Floats, events: Floats
    ) -> tuple[Floats, Floats]:
        """Score and shift [b, levels] of every window at each new block; 0 where it is too long."""
        new = len(history) - old
        scores, shifts = np.zeros((new, self._levels)), np.zeros((new, self._levels))
        normal = bases / events[:, None]
        for level, sums in enumerate(_windows(history, self._levels)):
            lacking = max(0, len(history) - len(sums) - old)  # new blocks with too little behind
            if lacking >= new:
                break
            length = BLOCK << level
            recent = sums[len(sums) - (new - lacking) :] / length
            distance = np.add.reduce((recent - normal[lacking:]) ** 2, axis=1) * self._shrink
            chance = 1 / length + 1 / events[lacking:]
            size = history.shape[1]
            # Against a shift of the floor instead of none: what matters must be shown to matter.
            score = chi_square_score(distance / chance, size, self._floor**2 / chance)
            scores[lacking:, level] = np.maximum(score, 0.0)
            shifts[lacking:, level] = np.sqrt(np.maximum(distance - size * chance, 0.0))
        return scores, shifts

    def _calibrate(self, coordinates: Floats) -> float:
        """The threshold that drift-free streams made of the reference reach once per budget."""
        random = np.random.default_rng(self._seed)
        size = coordinates.shape[1]
        narrow = coordinates.astype(np.float32)
        pool = np.empty((POOL, size), dtype=np.float32)
        for begin in range(0, POOL, 512):
            drawn = random.integers(len(narrow), size=(512, BLOCK))
            pool[begin : begin + 512] = narrow[drawn].sum(axis=1)
        length = max(LENGTH, 2 * self._longest)
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
            for level, sums in enumerate(_windows(blocks, self._levels)):
                events = BLOCK << level
                distance = ((sums / events) ** 2).sum(axis=1).max() * self._shrink
                chance = 1 / events + 1 / len(narrow)
                score = float(chi_square_score(np.float64(distance / chance), size))
                highest[stream] = max(highest[stream], score)
        simulated = _tail_quantile(highest, -math.expm1(-length * BLOCK / self._false_alarm))
        # Never below what a single look needs: a constant reference has no chance to simulate.
        return max(simulated, NormalDist().inv_cdf(max(0.9, 1 - BLOCK / self._false_alarm)))


def _windows(blocks: Floats, levels: int) -> list[Floats]:
    """Sums over the last 1, 2, 4, ... blocks, each [b - window + 1, c], for as many as fit.

    Each doubles the one before, so the order of additions depends on the blocks alone.
    """
    sums = [blocks]
    for level in range(levels - 1):
        half, last = 1 << level, sums[-1]
        if len(last) <= half:
            break
        sums.append(last[half:] + last[:-half])
    return sums


def _tail_quantile(maxima: Floats, probability: float) -> float:
    """The level that a maximum exceeds with ``probability``.

    Read off where the simulation has ten cases beyond; further out, the tail of a squared normal
    score is exponential, with the mean excess of the top fifth.
    """
    if probability * len(maxima) >= 10:
        return float(np.quantile(maxima, 1 - probability, method="higher"))
    squared = np.sort(maxima) ** 2
    top = squared[-len(squared) // 5 :]
    excess = float((top - top[0]).mean())
    return math.sqrt(top[0] + excess * math.log(0.2 / probability))
