"""Reference models of river on the rows of a table: what the rest is compared with.

A name from a fixed list and plain parameters are all there is to one; what it has learned lives in
the process only. river's own form of storage is pickle, which executes what it loads, so nothing
of it is ever written or read, and there is no ONNX graph of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learn.config import FeatureConfig, RiverModelName, Scalar

Parameters = Mapping[str, Scalar]


class RiverModel:
    """One model of river: asked about a row, then taught it, as `progressive_val_score` does.

    A missing value is left out of the row, which river's trees take for unknown.
    """

    def __init__(
        self,
        name: RiverModelName,
        parameters: Parameters,
        features: Sequence[FeatureConfig],
        seed: int,
        *,
        number: bool = False,
    ) -> None:
        """``number``: it predicts a number, and labels are float64 [n], as its answers are.

        Raises ValueError where there is no such model, or it has no such parameters.
        """
        self._features = [(f.name, f.named) for f in features]
        self._number = number
        nominal = [f.name for f in features if f.named]
        make = (_OF_NUMBERS if number else _OF_CLASSES).get(name)
        if make is None:
            raise ValueError(
                f"river's {name} does not predict numbers: {', '.join(_OF_NUMBERS)} do"
            )
        try:
            self._model = make(dict(parameters), nominal, seed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"river's {name} cannot be made so: {error}") from error

    def answer(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Its classes for inputs [n], object [n] of str; None where it knows no class yet."""
        found = self._empty(len(inputs))
        for i, row in enumerate(self._rows(inputs)):
            found[i] = self._model.predict_one(row)
        return found

    def learn(self, inputs: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """Learn inputs [n], labels object [n] of str, in order; what it answered before each."""
        found = self._empty(len(inputs))
        for i, (row, label) in enumerate(zip(self._rows(inputs), labels.tolist(), strict=True)):
            found[i] = self._model.predict_one(row)
            self._model.learn_one(row, label)
        return found

    def _empty(self, n: int) -> NDArray[Any]:
        return np.empty(n, dtype=np.float64 if self._number else object)

    def _rows(self, inputs: NDArray[Any]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{} for _ in range(len(inputs))]
        for name, named in self._features:
            for row, value in zip(rows, inputs[name].tolist(), strict=True):
                if value is not None and (named or value == value):
                    row[name] = value
        return rows


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


_Makers = dict[RiverModelName, Callable[[dict[str, Any], list[str], int], Any]]

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
