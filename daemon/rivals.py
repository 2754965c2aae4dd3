"""Rivals: models that are asked beside the champion, on the same events, and never serve.

They say what the champion would have to be better than. A rival is no version: it cannot go before
the gate, be promoted, or be loaded by a server. A checkpoint holds what was counted; what a rival
has learned is not stored, it learns anew from the events in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.config_reading import ConfigError, Problem
from daemon.evidence import PairedTest
from daemon.prequential import Prequential
from learn.config import ModelConfig, RivalConfig
from learn.river_model import RiverModel


class Rival:
    """One model beside the champion: tested on each event, then taught it."""

    def __init__(self, config: RivalConfig, model: ModelConfig, seed: int, alpha: float) -> None:
        """Raises ValueError where there is no such model."""
        self.name = config.name
        self.test = PairedTest(alpha)
        self.score = Prequential()
        self._river = RiverModel(config.model, config.parameters, model.columns, seed)

    def meet(
        self,
        inputs: NDArray[Any],
        labels: NDArray[np.object_],
        numbers: NDArray[np.int64],
        champion_right: NDArray[np.bool_],
    ) -> None:
        """Take in ``n`` labelled events in order, after the champion has answered them.

        labels: object [n] of str. numbers: int64 [n]. champion_right: bool [n].
        """
        right = (self._river.learn(inputs, labels) == labels).astype(np.bool_)
        self.score.observe(numbers, right)
        self.test.observe(right, champion_right)

    def learn(self, inputs: NDArray[Any], labels: NDArray[np.object_]) -> None:
        """Learn events that are not counted."""
        self._river.learn(inputs, labels)

    def answer(self, inputs: NDArray[Any]) -> NDArray[np.object_]:
        """Its classes for inputs [n], object [n] of str; None where it knows none."""
        return self._river.answer(inputs)

    def as_dict(self) -> dict[str, Any]:
        """Where it stands against the present champion, and on its own, as plain values."""
        recent = self.score.recent_accuracy
        return {
            "recent_accuracy": None if np.isnan(recent) else round(recent, 4),
            **self.test.as_dict(),
        }


class Rivals:
    """All rivals of the configuration, in its order."""

    def __init__(self, model: ModelConfig, seed: int, alpha: float) -> None:
        """Raises ConfigError where a rival cannot be made."""
        self.alpha = alpha
        try:
            self.all = [Rival(config, model, seed, alpha) for config in model.rivals]
        except ValueError as error:
            raise ConfigError([Problem("model.rivals", str(error))]) from error
        self._told: set[str] = set()

    def __getitem__(self, name: str) -> Rival:
        return next(rival for rival in self.all if rival.name == name)

    def follow_champion(self) -> None:
        """Another version serves: the comparison with it begins."""
        for rival in self.all:
            rival.test = PairedTest(self.alpha)
        self._told.clear()

    def shown_better(self) -> list[Rival]:
        """Rivals that are newly shown better than the present champion."""
        found = [r for r in self.all if r.test.verdict == "better" and r.name not in self._told]
        self._told.update(rival.name for rival in found)
        return found

    def learn(self, inputs: NDArray[Any], labels: NDArray[np.object_]) -> None:
        """All learn these events, uncounted: at the beginning, and after a restart."""
        for rival in self.all:
            rival.learn(inputs, labels)

    def values(self) -> dict[str, Any]:
        """The JSON-able half of the state."""
        return {rival.name: rival.test.state() for rival in self.all}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The other half: arrays by name."""
        return {
            f"{rival.name}/{key}": array
            for rival in self.all
            for key, array in rival.score.state().items()
        }

    def restore(
        self,
        values: Mapping[str, Sequence[float]],
        arrays: Mapping[str, NDArray[np.generic]],
    ) -> None:
        """Go on counting where `values` and `arrays` were taken; new rivals begin."""
        for rival in self.all:
            if rival.name not in values:
                continue
            rival.test = PairedTest.restored(self.alpha, values[rival.name])
            head = f"{rival.name}/"
            rival.score.restore(
                {k.removeprefix(head): a for k, a in arrays.items() if k.startswith(head)}
            )
