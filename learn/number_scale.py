"""What is a small error, and a large number, of one target: fixed with the first version.

All later versions are judged by the same measure, so that they can be compared: an answer is right
when it lies within the tolerance, and its score falls from 1 to 0 over four tolerances.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

# The first version is right in four of five held-out examples: room for better and for worse.
USUAL = 0.8
# Tolerances from which on an error is no worse: one wild value shall not decide a test.
WORST = 4.0
QUANTILES = (0.2, 0.4, 0.6, 0.8)
LEAST = 1e-6  # of the targets' deviation; a tolerance below would judge rounding


@dataclass(frozen=True, slots=True)
class NumberScale:
    """tolerance: in the target's unit. edges: ascending, between the parts of its range.

    >>> scale = NumberScale(0.5, (0.0, 10.0))
    >>> scale.right(np.array([1.0, 1.0]), np.array([1.4, 1.6])).tolist()
    [True, False]
    >>> scale.score(np.array([1.0, 1.0]), np.array([2.0, 99.0])).tolist()
    [0.5, 0.0]
    >>> scale.parts(np.array([-3.0, 4.0, np.nan])).tolist(), scale.names[1]
    ([0, 1, -1], '0 to 10')
    """

    tolerance: float
    edges: tuple[float, ...]

    @classmethod
    def fit(cls, targets: Floats, errors: Floats) -> NumberScale:
        """From a first version's training targets [n], and its errors [m] on unseen ones."""
        least = LEAST * float(np.std(targets)) or 1e-12
        tolerance = float(np.quantile(np.abs(errors), USUAL))
        edges = np.unique(np.quantile(targets, QUANTILES))
        return cls(max(tolerance, least), tuple(edges.tolist()))

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> NumberScale | None:
        """The scale in a version's ``model.json``, None where it predicts classes."""
        found = description.get("scale")
        return cls(found["tolerance"], tuple(found["edges"])) if found else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``model.json``."""
        return asdict(self)

    def right(self, given: Floats, truth: Floats) -> NDArray[np.bool_]:
        """Bool [n]: which answers lie within the tolerance of the truth [n]."""
        near: NDArray[np.bool_] = np.abs(given - truth) <= self.tolerance
        return near

    def score(self, given: Floats, truth: Floats) -> NDArray[np.float64]:
        """Float64 [n], 1 for no error, 0 for `WORST` tolerances or more."""
        away = np.abs(given.astype(np.float64) - truth) / (WORST * self.tolerance)
        scores: NDArray[np.float64] = 1.0 - np.minimum(away, 1.0)
        return scores

    def parts(self, truth: Floats) -> NDArray[np.int64]:
        """Int64 [n]: the part of the range in which each number lies, -1 for NaN."""
        place = np.searchsorted(np.array(self.edges), truth, side="right")
        return np.where(np.isnan(truth), -1, place).astype(np.int64)

    @property
    def names(self) -> list[str]:
        """The parts in words."""
        ends = [f"{edge:.4g}" for edge in self.edges]
        between = [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
        return [f"below {ends[0]}", *between, f"from {ends[-1]}"]


def errors(given: Floats, truth: Floats) -> dict[str, float]:
    """Mean absolute error, its root mean square, and R2 of answers [n]; R2 is NaN if all are alike.

    >>> {k: round(v, 3) for k, v in errors(np.array([1.0, 2.0]), np.array([1.0, 4.0])).items()}
    {'mae': 1.0, 'rmse': 1.414, 'r2': 0.111}
    """
    away = given.astype(np.float64) - truth
    spread = float(np.square(truth - truth.mean()).sum())
    return {
        "mae": float(np.abs(away).mean()),
        "rmse": float(np.sqrt(np.square(away).mean())),
        "r2": 1.0 - float(np.square(away).sum()) / spread if spread else float("nan"),
    }
