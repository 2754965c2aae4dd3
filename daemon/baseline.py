"""The first version, frozen: what it would have answered, beside what the champion answers.

The difference is what all refreshes since are worth. It is asked for a share of the labelled events
only, chosen by a hash of their id, as a version with another encoder costs a second pass of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.checkpoint import Arrays, prefixed, under
from daemon.prequential import RECENT, Prequential
from daemon.sampling import unit_hash
from daemon.served import Answer, Served, right
from deploy.errors import LoadError
from learn.number_scale import NumberScale
from registry import RegistryError

log = logging.getLogger("driftd.baseline")

WHO = ("frozen", "champion")


class Baseline:
    """Counts both on the same events. ``version`` is None until a first one serves."""

    def __init__(self) -> None:
        self.version: str | None = None
        self._served: Served | None = None
        self._lost = False
        self._scores = {who: Prequential(RECENT) for who in WHO}

    def observe(
        self,
        share: float,
        ids: NDArray[np.object_],
        inputs: NDArray[np.generic],
        answer: Answer,
        truth: NDArray[Any],
        champion: Served,
        scale: NumberScale | None,
        opened: Callable[[str], Served],
    ) -> None:
        """``n`` labelled events, of whose ids ``share`` are taken; ``answer`` is the champion's.

        truth: [n], see `State.read_labels`. opened: opens a version.
        """
        chosen = np.flatnonzero([unit_hash("baseline", name) < share for name in ids])
        if not len(chosen) or self.version is None or self._lost:
            return
        inputs, answer, truth = inputs[chosen], answer.take(chosen), truth[chosen]
        given = answer.predicted
        if champion.version == self.version:
            self._served = None
        else:
            try:
                if self._served is None:
                    self._served = opened(self.version)
                found = self._served.predict(inputs, answer.embeddings, champion.encoder)
            except (RegistryError, LoadError, OSError, ValueError, KeyError) as error:
                # Not worth a daemon: it is gone, or knows other features.
                log.warning("the first version, %s, is compared no longer: %s", self.version, error)
                self._lost = True
                return
            given = found.predicted
        for who, predicted in zip(WHO, (given, answer.predicted), strict=True):
            score = self._scores[who]
            numbers = score.labelled + np.arange(len(chosen))
            score.observe(numbers, right(scale, predicted, truth))

    @property
    def accuracies(self) -> dict[str, float]:
        """Of both, over the last 500 of these events; empty where there were none."""
        if self._lost or not self._scores["frozen"].labelled:
            return {}
        return {who: score.recent_accuracy for who, score in self._scores.items()}

    def as_dict(self) -> dict[str, Any] | None:
        """Plain values, for the status."""
        if not (found := self.accuracies):
            return None
        rounded = {who: round(value, 4) for who, value in found.items()}
        events = self._scores["frozen"].labelled
        return {"version": self.version, "events": events, **rounded}

    def arrays(self) -> Arrays:
        """For the checkpoint, beside ``version``."""
        parts: Arrays = {}
        for who, score in self._scores.items():
            parts |= prefixed(who, score.state())
        return parts

    def restore(self, version: str | None, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `arrays` was taken."""
        self.version = version
        for who, score in self._scores.items():
            if found := under(who, arrays):
                score.restore(found)
