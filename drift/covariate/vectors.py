"""Events as vectors, for the detectors that look at all dimensions at once.

Embeddings where the encoder gives some; else a table's numeric columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drift.bins import as_numbers
from drift.features import categorical
from drift.signal import NotEnoughReference, Observations, ShapeMismatch, State
from drift.subspace import usable
from drift.windows import Floats

# Standardised numbers are cut off here, so that squares stay inside the range of a float32.
FURTHEST = 1e6


@dataclass(frozen=True, slots=True)
class Vectors:
    """Which vectors of dimension ``width`` are taken.

    names: the numeric columns, each less its centre and divided by its scale (float64 [width],
    median and interquartile range) and 0 where missing; none for embeddings.
    """

    width: int
    names: tuple[str, ...]
    centre: Floats
    scale: Floats

    @classmethod
    def fit(
        cls, detector: str, reference: Observations, minimum: int
    ) -> tuple[Self, NDArray[np.float32]]:
        """What a reference allows, and its vectors [m, width].

        Raises NotEnoughReference, in the name of ``detector``, with fewer of them than ``minimum``.
        """
        width = reference.embeddings.shape[1]
        names: list[str] = []
        centres, scales = [], []
        for name, column in sorted(reference.features.items() if width == 0 else ()):
            values = np.zeros(0) if categorical(column) else as_numbers(column)
            values = values[~np.isnan(values)]
            if len(values):
                low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
                names.append(name)
                centres.append(middle)
                scales.append((high - low) / 1.349 or values.std() or 1.0)
        found = cls(width or len(names), tuple(names), np.array(centres), np.array(scales))
        rows = found.of(detector, reference)[0] if found.width else np.zeros((0, 0), np.float32)
        if len(rows) < minimum:
            what = "finite embeddings" if width else "events with embeddings or numeric features"
            raise NotEnoughReference(detector, minimum, len(rows), what)
        return found, rows

    def of(
        self, detector: str, batch: Observations
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """float32 [m, width] and their positions in the batch: the events whose vector is usable.

        Raises ShapeMismatch, in the name of ``detector``, for embeddings of another width.
        """
        if self.names:
            values = np.zeros((len(batch), self.width), dtype=np.float32)
            for i, name in enumerate(self.names):
                column = batch.features.get(name)
                if column is not None:
                    standard = (as_numbers(column) - self.centre[i]) / self.scale[i]
                    values[:, i] = np.clip(np.nan_to_num(standard), -FURTHEST, FURTHEST)
            return values, np.arange(len(batch))
        if len(batch) == 0:
            return np.zeros((0, self.width), dtype=np.float32), np.arange(0)
        width = batch.embeddings.shape[1]
        if width != self.width:
            raise ShapeMismatch(
                f"{detector}: embeddings of width {width}, but the reference has {self.width}. "
                "Fit on a reference of this encoder first."
            )
        fine = usable(batch.embeddings)
        return batch.embeddings[fine], np.flatnonzero(fine)

    def state(self) -> State:
        """Plain arrays for `from_state`."""
        return {
            "vector_width": np.array(self.width, dtype=np.int64),
            "vector_names": np.frombuffer(json.dumps(self.names).encode(), dtype=np.uint8),
            "vector_centre": self.centre,
            "vector_scale": self.scale,
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        """What `state` describes."""
        return cls(
            int(state["vector_width"].item()),
            tuple(json.loads(state["vector_names"].tobytes())),
            np.array(state["vector_centre"], dtype=np.float64),
            np.array(state["vector_scale"], dtype=np.float64),
        )
