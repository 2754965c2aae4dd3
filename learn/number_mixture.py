"""Experts' numbers into one, by online least squares over them, at several rates at once.

As `learn.mixture`, for a target that is a number: each rate keeps weights of its own, and the
squared error of late decides between them. A step is the implicit one, which cannot overshoot.
All of it is linear in the answers, so that a mixture of linear experts is one linear model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learn.mixture import DISCOUNT, share_of
from learn.moments import Arrays, Floats

RATES = (0.0, 0.003, 0.01, 0.03, 0.1)
HALF_LIFE = 1400.0  # events; of the target's usual level and spread, which set the step
ERROR_HALF_LIFE = 140.0  # events; of the usual squared error, which trust is measured in
CUT = 10.0  # deviations; what lies further is learned as if it lay there
SETTLED = 30  # events before that is known
MOST = 4.0  # deviations; an expert's answer, and an error, count for no more than this in a step


class NumberMixture:
    """Weights of ``experts`` for each of the rates, and the trust in each rate.

    Targets are numbers of any size: inside, all is relative to the first one.

    >>> mixture = NumberMixture(2)
    >>> y = np.sin(np.arange(400.0))
    >>> targets = mixture.targets(y)
    >>> answers = np.stack([targets, -targets], axis=1)
    >>> _ = mixture.learn(answers, y)
    >>> bool(mixture.weights[0] - mixture.weights[1] > 0.8)
    True
    """

    def __init__(self, experts: int) -> None:
        self._weights = np.full((len(RATES), experts), 1.0 / experts)
        self._trust = np.zeros(len(RATES))
        self._level = _Level()
        self._usual = 0.0
        self._levels = np.zeros((0, 2))  # mean and deviation before each event of a block
        self._origin: float | None = None

    @property
    def weights(self) -> Floats:
        """Float64 [e]: the experts' weights, the rates averaged by trust."""
        combined: Floats = share_of(self._trust) @ self._weights
        return combined

    @property
    def offset(self) -> Floats:
        """Float64 [1]: what is added to the weighted answers."""
        offset: Floats = np.atleast_1d(
            (self._origin or 0.0) + self._level.mean * (1.0 - self.weights.sum())
        )
        return offset

    def targets(self, labels: Floats) -> Floats:
        """What the experts are to learn of numbers [n]: float64 [n, 1]. Call before `learn`."""
        if self._origin is None and len(labels):
            self._origin = float(labels[0])
        centred = (labels - (self._origin or 0.0)).tolist()
        self._levels = np.empty((len(centred), 2))
        level = self._level
        for i, value in enumerate(centred):
            self._levels[i] = level.mean, level.spread
            centred[i] = level.observe(value)
        return np.array(centred)[:, None]

    def learn(self, answers: Floats, labels: Floats) -> Floats:
        """Learn ``n`` events in order: answers float64 [n, e, 1] or [n, e], labels float64 [n].

        Returns float64 [n, 1], the answer to each event before it was learned.
        """
        answers = answers.reshape(len(labels), -1)
        found = np.empty((len(labels), 1))
        weights, trust, origin = self._weights, self._trust, self._origin or 0.0
        rates = np.array(RATES)[:, None]
        for i, (given, label) in enumerate(zip(answers, labels.tolist(), strict=True)):
            mean, spread = self._levels[i]
            away = given - mean
            found[i] = share_of(trust) @ (weights @ away) + mean + origin
            if not spread:
                continue  # all targets so far are alike: there is nothing to weigh by
            z = np.clip(away / spread, -MOST, MOST)
            error = np.clip(weights @ z - (label - origin - mean) / spread, -MOST, MOST)
            square = error**2
            self._usual += (float(square.mean()) - self._usual) * (1 - 0.5 ** (1 / ERROR_HALF_LIFE))
            trust = DISCOUNT * trust - 0.5 * square / max(self._usual, 1e-12)
            weights = weights - rates * error[:, None] * z / (1.0 + rates * (z @ z))
        self._weights, self._trust = weights, trust
        return found

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        level = self._level
        return {
            "weights": self._weights.copy(),
            "trust": self._trust.copy(),
            "level": np.array([level.weight, level.mean, level.square, level.seen, self._usual]),
            "origin": np.array([] if self._origin is None else [self._origin]),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `state` was taken."""
        self._weights = state["weights"].astype(np.float64)
        self._trust = state["trust"].astype(np.float64)
        weight, mean, square, seen, self._usual = state["level"].astype(np.float64).tolist()
        self._level = _Level(weight, mean, square, int(seen))
        origin = state["origin"].astype(np.float64)
        self._origin = float(origin[0]) if len(origin) else None


@dataclass(slots=True)
class _Level:
    """Running mean and mean square around it, of values that are cut at what is usual."""

    weight: float = 0.0
    mean: float = 0.0
    square: float = 0.0
    seen: int = 0

    @property
    def spread(self) -> float:
        """The deviation; 0 where all were alike."""
        return math.sqrt(self.square)

    def observe(self, value: float) -> float:
        """Take in a value; it, or the furthest usual one in its place."""
        if self.seen >= SETTLED and self.square:
            reach = CUT * self.spread
            value = min(max(value, self.mean - reach), self.mean + reach)
        rate = 1 - 0.5 ** (1 / HALF_LIFE)
        self.weight += (1 - self.weight) * rate
        share = rate / self.weight
        before = value - self.mean
        self.mean += share * before
        self.square += share * (before * (value - self.mean) - self.square)
        self.seen += 1
        return value
