"""Models of river, by name: they learn event by event, and have no ONNX graph.

A name from a fixed list and plain parameters are all there is to one. river's own form of storage
is pickle, which executes what it loads, so nothing of a model is ever written or read: whoever
wants one back teaches another the same events (`deploy.river_version`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scalar = bool | int | float | str | None
Row = dict[str, Any]


class RiverModel:
    """One model of river: asked about a row, then taught it, as `progressive_val_score` does.

    A value that is missing in a row is unknown to river's trees.

    >>> model = RiverModel("hoeffding-adaptive-tree", {}, [], 0)
    >>> model.learn([{"x": 1.0}, {"x": 1.0}], ["yes", "yes"])
    [None, 'yes']
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, Scalar],
        nominal: Sequence[str],
        seed: int,
        *,
        number: bool = False,
    ) -> None:
        """nominal: the columns whose values are names. ``number``: it predicts a number.

        Raises ValueError where there is no such model, or it has no such parameters.
        """
        make = (_OF_NUMBERS if number else _OF_CLASSES).get(name)
        if make is None:
            known = ", ".join(_OF_NUMBERS if number else _OF_CLASSES)
            what = "predicts numbers" if number else "is known"
            raise ValueError(f"no model {name!r} of river {what}: there are {known}")
        if not all(isinstance(value, Scalar) for value in parameters.values()):
            raise ValueError(f"the parameters of river's {name} must be plain values")
        try:
            self._model = make(dict(parameters), list(nominal), seed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"river's {name} cannot be made so: {error}") from error

    def answer(self, rows: Sequence[Row]) -> list[Any]:
        """Its class, or number, for each row; None where it knows no class yet."""
        return [self._model.predict_one(row) for row in rows]

    def learn(self, rows: Sequence[Row], labels: Sequence[Any]) -> list[Any]:
        """Learn rows in order; what it answered before each."""
        found = []
        for row, label in zip(rows, labels, strict=True):
            found.append(self._model.predict_one(row))
            self._model.learn_one(row, label)
        return found

    def teach(self, rows: Sequence[Row], labels: Sequence[Any]) -> None:
        """As `learn`, without asking."""
        for row, label in zip(rows, labels, strict=True):
            self._model.learn_one(row, label)

    def probabilities(self, rows: Sequence[Row], classes: Sequence[Hashable]) -> NDArray[Any]:
        """Float64 [n, k], of ``classes``; alike for all where it knows nothing yet."""
        found = np.zeros((len(rows), len(classes)))
        place = {name: i for i, name in enumerate(classes)}
        for i, row in enumerate(rows):
            for name, share in self._model.predict_proba_one(row).items():
                if name in place:
                    found[i, place[name]] = share
        total = found.sum(axis=1, keepdims=True)
        alike = np.full_like(found, 1 / max(len(classes), 1))
        shares: NDArray[Any] = np.divide(found, total, out=alike, where=total > 0)
        return shares


def _forest(parameters: dict[str, Any], nominal: list[str], seed: int) -> Any:
    make = _river("forest").ARFClassifier
    return make(**{"seed": seed, "nominal_attributes": nominal, **parameters})


def _adaptive_tree(parameters: dict[str, Any], nominal: list[str], seed: int) -> Any:
    make = _river("tree").HoeffdingAdaptiveTreeClassifier
    return make(**{"seed": seed, "nominal_attributes": nominal, **parameters})


def _leveraging_bagging(parameters: dict[str, Any], nominal: list[str], seed: int) -> Any:
    tree = _river("tree").HoeffdingTreeClassifier(nominal_attributes=nominal)
    return _river("ensemble").LeveragingBaggingClassifier(tree, **{"seed": seed, **parameters})


def _random_patches(parameters: dict[str, Any], nominal: list[str], seed: int) -> Any:
    tree = _river("tree").HoeffdingTreeClassifier(
        grace_period=50, delta=0.01, nominal_attributes=nominal
    )
    return _river("ensemble").SRPClassifier(tree, **{"seed": seed, **parameters})


def _forest_of_numbers(parameters: dict[str, Any], nominal: list[str], seed: int) -> Any:
    make = _river("forest").ARFRegressor
    return make(**{"seed": seed, **_leaves(nominal), **parameters})


def _adaptive_tree_of_numbers(parameters: dict[str, Any], nominal: list[str], seed: int) -> Any:
    make = _river("tree").HoeffdingAdaptiveTreeRegressor
    return make(**{"seed": seed, **_leaves(nominal), **parameters})


def _random_patches_of_numbers(parameters: dict[str, Any], nominal: list[str], seed: int) -> Any:
    tree = _river("tree").HoeffdingTreeRegressor(grace_period=50, **_leaves(nominal))
    return _river("ensemble").SRPRegressor(tree, **{"seed": seed, **parameters})


def _leaves(nominal: list[str]) -> dict[str, Any]:
    """A leaf's linear model, river's default, knows no texts: beside them it is the mean."""
    prediction = {"leaf_prediction": "mean"} if nominal else {}
    return {"nominal_attributes": nominal, **prediction}


def _river(module: str) -> Any:
    return importlib.import_module(f"river.{module}")


_Makers = dict[str, Callable[[dict[str, Any], list[str], int], Any]]

_OF_NUMBERS: _Makers = {
    "adaptive-random-forest": _forest_of_numbers,
    "hoeffding-adaptive-tree": _adaptive_tree_of_numbers,
    "streaming-random-patches": _random_patches_of_numbers,
}
_OF_CLASSES: _Makers = {
    "adaptive-random-forest": _forest,
    "hoeffding-adaptive-tree": _adaptive_tree,
    "leveraging-bagging": _leveraging_bagging,
    "streaming-random-patches": _random_patches,
}
