"""Predictions whose label has not come yet.

A label may come long after its event, when another version serves. It then says something about
the version that answered, not about the one that serves now. Bounded: the oldest are forgotten,
and a label that comes later still counts for whoever serves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]


class Awaiting:
    """At most ``limit`` predictions by the event's id, the oldest first.

    >>> awaiting = Awaiting(100)
    >>> ids = np.array(["a", "b"], dtype=object)
    >>> awaiting.remember(ids, np.array([3, 4]), np.array(["v0001", "v0001"], dtype=object))
    >>> awaiting.settle(np.array(["b", "c"], dtype=object))
    [('v0001', 4), None]
    >>> len(awaiting)
    1
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._made: dict[str, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._made)

    def remember(
        self, ids: NDArray[np.object_], predicted: NDArray[Any], versions: NDArray[np.object_]
    ) -> None:
        """``versions`` answered the events of these ids, object [n]; a first answer stands.

        predicted: int64 [n] of classes, or float64 [n] of numbers.
        """
        made = zip(versions.tolist(), predicted.tolist(), strict=True)
        for event_id, answer in zip(ids.tolist(), made, strict=True):
            self._made.setdefault(event_id, answer)
        for old in list(islice(self._made, max(0, len(self._made) - self.limit))):
            del self._made[old]

    def settle(self, ids: NDArray[np.object_]) -> list[tuple[str, float] | None]:
        """For each event whose label has come: who answered what, or None if it is not known."""
        return [self._made.pop(event_id, None) for event_id in ids.tolist()]

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        versions = sorted({version for version, _ in self._made.values()})
        place = {version: i for i, version in enumerate(versions)}
        names = json.dumps([versions, list(self._made)]).encode()
        made = [(place[version], label) for version, label in self._made.values()]
        return {
            "names": np.frombuffer(names, dtype=np.uint8),
            "made": np.array(made, dtype=np.float64).reshape(-1, 2),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `state` was taken."""
        versions, ids = json.loads(state["names"].tobytes())
        made = state["made"].tolist()
        self._made = {
            event_id: (versions[int(version)], label)
            for event_id, (version, label) in zip(ids, made, strict=True)
        }
