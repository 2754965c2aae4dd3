"""What a stream's own past says of an event, as further columns of its table.

Two kinds, both known before the event's label is: each number against its running mean of late,
at several half-lives, in running deviations (a price says little, a price above yesterday's mean
much); and the last labels that have arrived. A caller who asks the server keeps a `Past` of its
own beside the stream, or sends null: then nothing is known of the past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learn.config import HALF_LIVES, ModelConfig
from learn.moments import Floats, Moments

Arrays = dict[str, NDArray[np.generic]]

# The deviation needs more events than the mean before it is steady.
STEADIER = 4
CUT = 5.0


class Relative:
    """Numbers against their running means; float64 [n, c] to [n, c * len(HALF_LIVES)].

    A row is compared with the rows before it, at each half-life in turn.

    >>> Relative(1).observe(np.array([[1.0], [1.0], [2.0]]))[:, 0].tolist()[:2]
    [0.0, 0.0]
    """

    def __init__(self, columns: int) -> None:
        self._last = np.zeros(columns)
        self._means = [Moments(columns, h) for h in HALF_LIVES]
        self._squares = [Moments(columns, STEADIER * h) for h in HALF_LIVES]

    def observe(self, numbers: Floats) -> Floats:
        """Take in float64 [n, c] in order; a missing number (NaN) is what it was last."""
        filled = self._filled(numbers)
        found = [
            self._at(filled, mean, square)
            for mean, square in zip(self._means, self._squares, strict=True)
        ]
        return np.concatenate(found, axis=1)

    def _filled(self, numbers: Floats) -> Floats:
        rows = np.vstack([self._last, numbers])
        known = np.where(np.isnan(rows), 0, np.arange(len(rows))[:, None])
        filled: Floats = np.take_along_axis(rows, np.maximum.accumulate(known), axis=0)
        self._last = filled[-1]
        return filled[1:]

    def _at(self, filled: Floats, mean: Moments, square: Moments) -> Floats:
        if not len(filled):
            return filled
        before = mean.mean if mean.seen else filled[0]
        after, _ = mean.observe(filled)
        moved = filled - np.vstack([before, after[:-1]])
        size = np.sqrt(np.maximum(square.observe(moved**2)[0], 0.0))
        away: Floats = np.divide(moved, size, out=np.zeros_like(moved), where=size > 0)
        return away.clip(-CUT, CUT)

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        pieces = [*self._means, *self._squares]
        state: Arrays = {"last": self._last.copy()}
        return state | {f"{i}/{k}": a for i, m in enumerate(pieces) for k, a in m.state().items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `state` was taken."""
        self._last = state["last"].astype(np.float64)
        for i, piece in enumerate([*self._means, *self._squares]):
            head = f"{i}/"
            piece.restore({k.removeprefix(head): a for k, a in state.items() if k.startswith(head)})


class Past:
    """Adds the columns that ``config`` asks for to batches of events in their order."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._numbers = config.numbers
        self._relative = Relative(len(self._numbers)) if config.relative else None
        self._labels: list[str | None] = [None] * config.lagged_labels

    def extend(self, inputs: NDArray[Any], labels: NDArray[np.object_]) -> NDArray[Any]:
        """Structured [n] with the columns of `ModelConfig.columns`.

        labels: object [n] of str, None where none arrived; an event sees those before it only.
        """
        added = self._config.context
        if not added:
            return inputs
        dtype = [(f.name, "O" if f.named else "<f8") for f in added]
        table = np.empty(len(inputs), inputs.dtype.descr + dtype)
        for name in inputs.dtype.names or ():
            table[name] = inputs[name]
        names = [feature.name for feature in added]
        if self._relative is not None:
            numbers = np.column_stack([inputs[name] for name in self._numbers])
            relative = self._relative.observe(numbers)
            for name, column in zip(names, relative.T, strict=False):
                table[name] = column
            names = names[relative.shape[1] :]
        for i, label in enumerate(labels.tolist()):
            for name, earlier in zip(names, self._labels, strict=True):
                table[name][i] = earlier
            if names and label is not None:
                self._labels = [label, *self._labels[:-1]]
        return table

    def values(self) -> list[str | None]:
        """The JSON-able half of the state: the last labels, newest first."""
        return list(self._labels)

    def arrays(self) -> Arrays:
        """The other half."""
        return self._relative.state() if self._relative is not None else {}

    def restore(
        self, labels: Sequence[str | None], arrays: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Go on where `values` and `arrays` were taken; what the configuration added starts now."""
        kept = len(self._labels)
        self._labels = [*labels[:kept], *self._labels[len(labels) :]]
        if self._relative is not None and arrays:
            self._relative.restore(arrays)
