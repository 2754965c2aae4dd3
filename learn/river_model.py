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
    ) -> None:
        """Raises ValueError where the model has no such parameters."""
        self._features = [(f.name, f.named) for f in features]
        nominal = [f.name for f in features if f.named]
        try:
            self._model = _MAKERS[name](dict(parameters), nominal, seed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"river's {name} cannot be made so: {error}") from error

    def answer(self, inputs: NDArray[Any]) -> NDArray[np.object_]:
        """Its classes for inputs [n], object [n] of str; None where it knows no class yet."""
        found: NDArray[np.object_] = np.empty(len(inputs), dtype=object)
        for i, row in enumerate(self._rows(inputs)):
            found[i] = self._model.predict_one(row)
        return found

    def learn(self, inputs: NDArray[Any], labels: NDArray[np.object_]) -> NDArray[np.object_]:
        """Learn inputs [n], labels object [n] of str, in order; what it answered before each."""
        found: NDArray[np.object_] = np.empty(len(inputs), dtype=object)
        for i, (row, label) in enumerate(zip(self._rows(inputs), labels.tolist(), strict=True)):
            found[i] = self._model.predict_one(row)
            self._model.learn_one(row, label)
        return found

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


def _river(module: str) -> Any:
    return importlib.import_module(f"river.{module}")


_MAKERS: dict[RiverModelName, Callable[[dict[str, Any], list[str], int], Any]] = {
    "adaptive-random-forest": _forest,
    "hoeffding-adaptive-tree": _adaptive_tree,
    "leveraging-bagging": _leveraging_bagging,
    "streaming-random-patches": _random_patches,
}
