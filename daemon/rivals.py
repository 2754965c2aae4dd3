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
from daemon.served import right, score
from deploy.river_model import RiverModel, Row
from learn.config import FeatureConfig, ModelConfig, RivalConfig
from learn.number_scale import NumberScale


class Rival:
    """One model beside the champion: tested on each event, then taught it."""

    def __init__(self, config: RivalConfig, model: ModelConfig, seed: int, alpha: float) -> None:
        """Raises ValueError where there is no such model."""
        self.name = config.name
        self.test = PairedTest(alpha)
        self.score = Prequential()
        self._columns, self._number = model.columns, model.number
        nominal = [column.name for column in model.columns if column.named]
        self._river = RiverModel(
            config.model, config.parameters, nominal, seed, number=model.number
        )

    def meet(
        self,
        inputs: NDArray[Any],
        truth: NDArray[Any],
        numbers: NDArray[np.int64],
        champion: NDArray[Any],
        scale: NumberScale | None,
    ) -> None:
        """Take in ``n`` labelled events in order, after the champion has answered them.

        truth, champion: what is true and what the champion answered, object [n] of str, or float64
        [n] of numbers, which ``scale`` judges. numbers: int64 [n], of the events.
        """
        given = self._listed(self._river.learn(table_rows(inputs, self._columns), truth.tolist()))
        self.score.observe(numbers, right(scale, given, truth))
        self.test.observe(score(scale, given, truth), score(scale, champion, truth))

    def learn(self, inputs: NDArray[Any], truth: NDArray[Any]) -> None:
        """Learn events that are not counted."""
        self._river.teach(table_rows(inputs, self._columns), truth.tolist())

    def answer(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Its classes for inputs [n], object [n] of str, None where it knows none; or numbers."""
        return self._listed(self._river.answer(table_rows(inputs, self._columns)))

    def _listed(self, found: list[Any]) -> NDArray[Any]:
        answers: NDArray[Any] = np.empty(len(found), np.float64 if self._number else object)
        answers[:] = found
        return answers

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

    def learn(self, inputs: NDArray[Any], truth: NDArray[Any]) -> None:
        """All learn these events, uncounted: at the beginning, and after a restart."""
        for rival in self.all:
            rival.learn(inputs, truth)

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


def table_rows(inputs: NDArray[Any], columns: Sequence[FeatureConfig]) -> list[Row]:
    """The rows of a table, structured [n], as river takes them, without what is missing."""
    rows: list[Row] = [{} for _ in range(len(inputs))]
    for column in columns:
        for row, value in zip(rows, inputs[column.name].tolist(), strict=True):
            if value is not None and (column.named or value == value):
                row[column.name] = value
    return rows
