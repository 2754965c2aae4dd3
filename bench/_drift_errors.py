"""Error streams with a known change, and the yardstick: a CUSUM that was told both rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench._drift_streams import REFERENCE, Bits, alarms, config, outcomes
from drift import Monitors

CALM, WORSE = 0.2, 0.4
SETTLED = 1_000  # events between the reference and the change

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trial:
    """Streams [s, n] of errors: a reference, `SETTLED` drift-free events, then the change."""

    errors: Bits

    @classmethod
    def of(cls, rates: Floats, runs: int, seed: int) -> Trial:
        """With the rates [h] after the change."""
        profile = np.concatenate([np.full(REFERENCE + SETTLED, CALM), rates])
        random = np.random.default_rng(seed)
        return cls((random.random((runs, len(profile))) < profile).astype(np.uint8))

    @property
    def horizon(self) -> int:
        """Events after the change."""
        return int(self.errors.shape[1]) - REFERENCE - SETTLED

    def delays(self, budget: int, detector: str = "error_rate") -> list[int | None]:
        """How many events of the change a detector needed in each run; None: all were too few."""
        found = []
        for errors in self.errors:
            at = alarmed(errors, budget, detector)
            found.append(next((a - SETTLED + 1 for a in at if a >= SETTLED), None))
        return found

    def cusum_delays(self, threshold: float) -> list[int | None]:
        """The same of the yardstick."""
        found = []
        for errors in self.errors:
            at = cusum_alarms(errors[REFERENCE:], threshold)
            found.append(next((a - SETTLED + 1 for a in at if a >= SETTLED), None))
        return found


def calm(streams: int, length: int, seed: int, rate: float = CALM) -> Bits:
    """Drift-free errors, uint8 [streams, REFERENCE + length]."""
    random = np.random.default_rng(seed)
    return (random.random((streams, REFERENCE + length)) < rate).astype(np.uint8)


def alarmed(errors: Bits, budget: int, detector: str = "error_rate") -> list[int]:
    """Where a detector, alone on the budget, alarmed: counted from the end of the reference."""
    monitors = Monitors(config(budget, detector))
    monitors.fit(outcomes(errors[:REFERENCE]))
    return alarms(monitors, outcomes(errors[REFERENCE:]))[detector]


def steps(before: float = CALM, after: float = WORSE) -> tuple[float, float]:
    """What a right answer and an error add to the CUSUM: their log likelihood ratios."""
    return math.log((1 - after) / (1 - before)), math.log(after / before)


def cusum_alarms(errors: Bits, threshold: float) -> list[int]:
    """Where the CUSUM of errors [n] reaches the threshold; it then starts again from zero."""
    up = steps()
    found, level = [], 0.0
    for at, error in enumerate(errors.tolist()):
        level = max(0.0, level + up[error])
        if level >= threshold:
            found.append(at)
            level = 0.0
    return found


@dataclass(frozen=True, slots=True)
class RunLengths:
    """How long the CUSUM runs between false alarms, by one simulation for all thresholds.

    A CUSUM begins anew whenever it is back at zero, so each excursion alarms on its own. peaks: the
    highest level of each excursion that went above `LOWEST`, ascending. events: all simulated.
    """

    peaks: Floats
    events: int

    LOWEST = 2.0

    @classmethod
    def simulated(cls, events: int, seed: int = 0, rate: float = CALM) -> RunLengths:
        """From so many drift-free events, in streams side by side."""
        streams = 4_000
        random = np.random.default_rng(seed)
        right, wrong = steps()
        level, peak = np.zeros(streams), np.zeros(streams)
        peaks = []
        length = events // streams
        for _ in range(length):
            level += np.where(random.random(streams) < rate, wrong, right)
            np.maximum(level, 0.0, out=level)
            np.maximum(peak, level, out=peak)
            over = level == 0.0
            ended = np.flatnonzero(over & (peak > cls.LOWEST))
            peaks.append(peak[ended])
            peak[over] = 0.0
        return cls(np.sort(np.concatenate(peaks)), length * streams)

    def threshold(self, run_length: float) -> float:
        """The threshold with one false alarm per ``run_length`` events."""
        alarms = self.events / run_length
        if not 1 <= alarms <= len(self.peaks):
            raise ValueError(f"a run length of {run_length:,.0f} is outside of what was simulated")
        return float(self.peaks[-round(alarms)])


def missing_as(delays: list[int | None], horizon: int) -> Floats:
    """Delays with those not found counted as the whole horizon."""
    return np.array([horizon if delay is None else delay for delay in delays], dtype=np.float64)
