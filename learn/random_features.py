"""Random Fourier features of a table's row, most of them of a few columns only.

Cosines of random projections make a linear model a kernel machine (Rahimi & Recht 2007). A
projection of one, two or three columns sees thresholds and small interactions, one of all
columns the whole; each kind suits some tables, and together they suit most.

Frequencies lie on the grid of INT8 weights and the rows they see on one of INT8 activations: being
random, and a twenty-fifth of a deviation fine, they lose nothing by it, and the INT8 graph
computes them exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

CUT = 5.0  # standard deviations; one wild value shall not throw a linear model off
STEPS = 25.5  # of the grid, in a standard deviation
LOWEST, HIGHEST = -128 / STEPS, 127 / STEPS
CATEGORY_WIDTH = 16
FEW = (1, 2, 3)
# Radians a standard deviation, drawn log-uniformly.
SLOWEST, FASTEST = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table, as its preprocessor feeds them.

    numbers: columns of ``numeric``. categories: number of indices of each column of
    ``category``. context: how many of each, the last ones, tell of the stream's past.
    """

    numbers: int
    categories: tuple[int, ...] = ()
    context: tuple[int, int] = (0, 0)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each category's vector."""
        return tuple(min(size, CATEGORY_WIDTH) for size in self.categories)

    @property
    def width(self) -> int:
        """The length of a row: numbers, then the vectors of the categories."""
        return self.numbers + sum(self.widths)

    @property
    def own(self) -> NDArray[np.int64]:
        """Positions in a row, int64, that tell of the event itself and not of the past."""
        numbers, categories = self.context
        told = self.widths[: len(self.widths) - categories]
        first = np.arange(self.numbers - numbers)
        return np.concatenate([first, self.numbers + np.arange(sum(told))])


def columns_of(description: Mapping[str, Any]) -> Columns:
    """The columns that a version's ``model.json`` describes."""
    numbers, categories = description["context"]
    sizes = tuple(description["categories"])
    return Columns(description["numbers"], sizes, (numbers, categories))


@dataclass(frozen=True, slots=True)
class RandomFeatures:
    """``cos(coarse(row) @ frequencies + phases)``: of the event's own columns, then of all.

    frequencies: float32 [width, 2 m]. phases: float32 [2 m]. vectors: for each category float32
    [indices, width]; few indices have a unit vector each, more are projected at random.
    """

    frequencies: FloatArray
    phases: FloatArray
    vectors: tuple[FloatArray, ...]

    @classmethod
    def draw(cls, columns: Columns, features: int, seed: int) -> RandomFeatures:
        """``features`` of the own columns and as many of all columns, the same for one seed."""
        generator = np.random.default_rng(seed)
        parts = [
            _frequencies(generator, which, columns.width, features)
            for which in (columns.own, np.arange(columns.width))
        ]
        drawn = np.hstack(parts)
        step = np.maximum(np.abs(drawn).max(axis=0), 1e-9) / 127
        frequencies = np.round(drawn / step) * step
        phases = generator.uniform(0.0, 2 * np.pi, 2 * features)
        vectors = tuple(_vectors(generator, size) for size in columns.categories)
        return cls(frequencies.astype(np.float32), phases.astype(np.float32), vectors)

    @classmethod
    def of(cls, weights: Mapping[str, NDArray[Any]], columns: Columns) -> RandomFeatures:
        """Those of a version's encoder, from its weights by name."""
        vectors = [
            weights[f"encoder.categories.{i}.weight"] for i in range(len(columns.categories))
        ]
        # The encoder's last two columns are the bounds of the grid, and weigh nothing.
        frequencies = np.ascontiguousarray(weights["encoder.waves.weight"].T[: columns.width])
        return cls(frequencies, weights["encoder.waves.bias"], tuple(vectors))

    def waves(self, row: NDArray[np.floating]) -> FloatArray:
        """Float32 [n, 2 m] for a row [n, width]."""
        coarse = np.clip(np.round(row * STEPS) / STEPS, LOWEST, HIGHEST).astype(np.float32)
        waves: FloatArray = np.cos(coarse @ self.frequencies + self.phases)
        return waves * np.float32(np.sqrt(2.0))


def _frequencies(
    generator: np.random.Generator, which: NDArray[np.int64], width: int, features: int
) -> NDArray[np.float64]:
    drawn = np.zeros((width, features))
    for column in range(features):
        few = (*FEW, len(which))[generator.integers(len(FEW) + 1)]
        chosen = generator.choice(which, min(few, len(which)), replace=False)
        scale = np.exp(generator.uniform(np.log(SLOWEST), np.log(FASTEST)))
        drawn[chosen, column] = generator.normal(size=len(chosen)) * scale / np.sqrt(len(chosen))
    return drawn


def _vectors(generator: np.random.Generator, size: int) -> FloatArray:
    if size <= CATEGORY_WIDTH:
        return np.eye(size, dtype=np.float32)
    signs = generator.choice([-1.0, 1.0], (size, CATEGORY_WIDTH))
    vectors: FloatArray = np.asarray(signs / np.sqrt(CATEGORY_WIDTH), np.float32)
    return vectors
