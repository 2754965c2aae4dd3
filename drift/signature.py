"""What a regime looks like, in a few numbers, and how far apart two regimes are.

Kept with every version's reference, so that at an alarm the archive can be searched for the
regime that came back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drift.signal import Observations, State
from drift.subspace import usable

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Signature:
    """Mean, spread and class mix of a regime's events.

    mean: float64 [d], the mean embedding (empty if no embedding was finite). spread: the mean
    squared distance from it. classes: int64 [c], ascending, and shares: float64 [c], how much of
    the traffic each was; by label, or by the model's answer where fewer than half have labels.
    events: how many events these rest on. space: names the encoder; signatures of different
    encoders cannot be compared.
    """

    mean: Floats
    spread: float
    classes: NDArray[np.int64]
    shares: Floats
    events: int
    space: str = ""

    @classmethod
    def of(cls, observations: Observations, space: str = "") -> Self:
        """The signature of these events; embeddings that are not finite are left out."""
        fine = usable(observations.embeddings)
        rows = observations.embeddings[fine].astype(np.float64)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(0)
        spread = float(((rows - mean) ** 2).sum(axis=1).mean()) if len(rows) else 0.0
        known = observations.labelled
        answers = observations.labels[known]
        if 2 * len(answers) < len(observations):
            answers = observations.predicted
        classes, counts = np.unique(answers[answers >= 0], return_counts=True)
        shares = counts / max(1, counts.sum())
        return cls(mean, spread, classes.astype(np.int64), shares, len(observations), space)

    def distance(self, other: Signature) -> float:
        """How far apart two regimes are: 0 the same, about 1 as far as unrelated topics.

        The root of three parts: squared distance of the means and difference of the spreads, both
        relative to the spread, and the Jensen-Shannon divergence (bits) of the class mixes; the
        first and the last less what chance alone would make of so few events. Infinite between
        different spaces or widths.
        """
        if self.space != other.space or len(self.mean) != len(other.mean):
            return math.inf
        if min(self.events, other.events) == 0:
            return math.inf
        scale = (self.spread + other.spread) / 2 or 1e-30
        chance = self.spread / self.events + other.spread / other.events
        apart = max(0.0, float(((self.mean - other.mean) ** 2).sum()) - chance) / scale
        wider = (math.sqrt(self.spread) - math.sqrt(other.spread)) ** 2 / scale
        return math.sqrt(apart + wider + self._divergence(other))

    def nearest(self, known: Mapping[str, Signature]) -> tuple[str, float] | None:
        """The name and distance of the nearest known regime; None if none can be compared."""
        distances = {name: self.distance(signature) for name, signature in known.items()}
        comparable = [name for name, distance in distances.items() if math.isfinite(distance)]
        if not comparable:
            return None
        name = min(comparable, key=lambda candidate: distances[candidate])
        return name, distances[name]

    def arrays(self) -> State:
        """Plain arrays for `from_arrays`."""
        return {
            "mean": self.mean,
            "spread": np.array(self.spread),
            "classes": self.classes,
            "shares": self.shares,
            "events": np.array(self.events, dtype=np.int64),
            "space": np.frombuffer(self.space.encode(), dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """The signature that `arrays` describes."""
        return cls(
            np.asarray(arrays["mean"], dtype=np.float64),
            float(arrays["spread"].item()),
            np.asarray(arrays["classes"], dtype=np.int64),
            np.asarray(arrays["shares"], dtype=np.float64),
            int(arrays["events"].item()),
            np.asarray(arrays["space"], dtype=np.uint8).tobytes().decode(),
        )

    def _divergence(self, other: Signature) -> float:
        classes = np.union1d(self.classes, other.classes)
        if len(classes) == 0:
            return 0.0
        mine, its = np.zeros(len(classes)), np.zeros(len(classes))
        mine[np.searchsorted(classes, self.classes)] = self.shares
        its[np.searchsorted(classes, other.classes)] = other.shares
        middle = (mine + its) / 2
        nats = 0.0
        for share in (mine, its):
            held = share > 0
            nats += float((share[held] * np.log(share[held] / middle[held])).sum()) / 2
        chance = (len(classes) - 1) / 8 * (1 / self.events + 1 / other.events)
        return max(0.0, nats - chance) / math.log(2)
