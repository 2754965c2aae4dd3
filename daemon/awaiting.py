"""Predictions whose label has not come yet.

A label may come long after its event, when another version serves. It then says something about
the version that answered, not about the one that serves now. Bounded: the oldest are forgotten,
and a label that comes later still counts for whoever serves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice

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
        self._made: dict[str, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._made)

    def remember(
        self,
        ids: NDArray[np.object_],
        predicted: NDArray[np.int64],
        versions: NDArray[np.object_],
    ) -> None:
        """``versions`` answered the events of these ids, object [n]; a first answer stands."""
        for event_id, *made in zip(
            ids.tolist(), versions.tolist(), predicted.tolist(), strict=True
        ):
            self._made.setdefault(event_id, (made[0], made[1]))
        for old in list(islice(self._made, max(0, len(self._made) - self.limit))):
            del self._made[old]

    def settle(self, ids: NDArray[np.object_]) -> list[tuple[str, int] | None]:
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
            "made": np.array(made, dtype=np.int64).reshape(-1, 2),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `state` was taken."""
        versions, ids = json.loads(state["names"].tobytes())
        made = state["made"].tolist()
        self._made = {
            event_id: (versions[version], label)
            for event_id, (version, label) in zip(ids, made, strict=True)
        }
