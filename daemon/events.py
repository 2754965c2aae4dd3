"""Events as columns: what a source hands to the loop.

Inputs are one numpy array whose first axis is the event, whatever the task: an object array of
``str`` for text, a structured array with one field a feature for tables. Slicing, masking and
``np.concatenate`` then work alike, and no per-event Python object is made on the hot path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class EventBatch:
    """``n`` events in the order they were read.

    ids: object [n] of str. times: float64 [n], seconds since the epoch (event time).
    inputs: [n], see the module's docstring. labels: object [n] of str, or None where the label
    has not arrived. topics: object [n] of str; partitions: int32 [n]; offsets: int64 [n].
    labellers: object [n] of str, or None where it is not known who gave the label.
    predictions: object [n] of str, or None where the event does not carry what was answered;
    versions: object [n] of str, who answered, or None for whoever serves.
    """

    ids: NDArray[np.object_]
    times: NDArray[np.float64]
    inputs: NDArray[np.generic]
    labels: NDArray[np.object_]
    topics: NDArray[np.object_]
    partitions: NDArray[np.int32]
    offsets: NDArray[np.int64]
    labellers: NDArray[np.object_] | None = None
    predictions: NDArray[np.object_] | None = None
    versions: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def features(self) -> dict[str, NDArray[np.generic]]:
        """The columns of a table by name, each [n]; none for text."""
        return columns(self.inputs)

    @classmethod
    def join(cls, parts: Sequence[EventBatch]) -> EventBatch:
        """All events of all parts, in order; labellers where every part has them."""
        joined: dict[str, Any] = {}
        for f in fields(cls):
            values = [getattr(part, f.name) for part in parts]
            joined[f.name] = None if any(v is None for v in values) else np.concatenate(values)
        return cls(**joined)

    def take(self, index: NDArray[np.generic]) -> EventBatch:
        """The events at ``index`` (integer positions or a boolean mask), as a new batch."""
        taken: dict[str, Any] = {}
        for f in fields(self):
            values = getattr(self, f.name)
            taken[f.name] = None if values is None else values[index]
        return EventBatch(**taken)


def columns(inputs: NDArray[Any]) -> dict[str, NDArray[np.generic]]:
    """The columns of a table's inputs by name, each [n]; none for text."""
    return {name: inputs[name] for name in inputs.dtype.names or ()}


_NONE: NDArray[np.object_] = np.empty(0, dtype=object)
EMPTY = EventBatch(
    ids=_NONE,
    times=np.empty(0),
    inputs=_NONE,
    labels=_NONE,
    topics=_NONE,
    partitions=np.empty(0, dtype=np.int32),
    offsets=np.empty(0, dtype=np.int64),
)


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """``n`` labels that came by themselves, in the order they were read.

    ids: object [n] of str, the events'. labels: object [n] of str. times: float64 [n], seconds
    since the epoch. labellers: object [n] of str, or None where nobody is named.
    """

    ids: NDArray[np.object_]
    labels: NDArray[np.object_]
    times: NDArray[np.float64]
    labellers: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def join(cls, parts: Sequence[LabelBatch]) -> LabelBatch:
        """All labels of all parts, in order."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


NO_LABELS = LabelBatch(_NONE, _NONE, np.empty(0), _NONE)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no event, on its way to the dead letters: the raw bytes and the reason."""

    reason: str
    detail: str
    value: bytes
    topic: str
    partition: int
    offset: int
