"""river's streaming ensembles and its generators of drifting streams, for `bench tabular`."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench._tabular_ours import Floats, Labels, Outcome
from deploy.river_version import Recipe, RiverVersion

Make = Callable[[], Any]


def arf() -> Any:
    """Adaptive random forest of ten trees, at river's defaults."""
    from river import forest

    return forest.ARFClassifier(n_models=10, seed=1)


def arf_regressor() -> Any:
    """Adaptive random forest of ten regression trees, at river's defaults."""
    from river import forest

    return forest.ARFRegressor(n_models=10, seed=1)


def as_version(x: Floats, y: Labels) -> bytes:
    """The file of a version of the same forest that has learned the stream."""
    recipe = Recipe("adaptive-random-forest", {"n_models": 10}, 1, x.shape[1], 0)
    labels = y.astype(str).tolist()
    version = RiverVersion(recipe, sorted(set(labels)))
    version.learn({"numeric": x.astype(np.float32)}, labels)
    return version.to_bytes()


def leveraging_bagging() -> Any:
    """Leveraging bagging of ten Hoeffding trees, at river's defaults."""
    from river import ensemble, tree

    return ensemble.LeveragingBaggingClassifier(tree.HoeffdingTreeClassifier(), 10, seed=1)


def run(make: Make, x: Floats, y: Labels, *, delay: int = 0) -> Outcome:
    """Test, then learn ``delay`` events later, as river's `progressive_val_score` does."""
    model = make()
    rows = [dict(enumerate(row)) for row in x.tolist()]
    truth = y.tolist()
    right = np.zeros(len(y), dtype=np.bool_)
    waiting: deque[int] = deque()
    began = time.process_time()
    for i, row in enumerate(rows):
        right[i] = model.predict_one(row) == truth[i]
        waiting.append(i)
        if len(waiting) > delay:
            known = waiting.popleft()
            model.learn_one(rows[known], truth[known])
    return Outcome(right, time.process_time() - began, int(model._raw_memory_usage))


def regress(make: Make, x: Floats, y: Floats) -> tuple[Floats, float]:
    """Numbers float64 [n], each predicted before it was learned, and the CPU-seconds."""
    model = make()
    rows = [dict(enumerate(row)) for row in x.tolist()]
    values = np.zeros(len(y))
    began = time.process_time()
    for i, (row, truth) in enumerate(zip(rows, y.tolist(), strict=True)):
        values[i] = model.predict_one(row)
        model.learn_one(row, truth)
    return values, time.process_time() - began


#: What river calls each kind of drift, and what it is.
FRIEDMAN = {"lea": "local and growing", "gra": "abrupt and recurring", "gsg": "gradual"}


def friedman(kind: str, events: int) -> tuple[Floats, Floats]:
    """river's drifting Friedman stream of that kind, float64 [n, 10] and float64 [n]."""
    from river.datasets import synth

    quarter = events // 4
    changes = (quarter, 2 * quarter, 3 * quarter) if kind == "lea" else (quarter, 3 * quarter)
    window = quarter // 2 if kind == "gsg" else 0
    stream = synth.FriedmanDrift(kind, changes, transition_window=window, seed=81)
    pairs = list(stream.take(events))
    x = np.array([list(row.values()) for row, _ in pairs], dtype=np.float64)
    return x, np.array([value for _, value in pairs])


def made(events: int) -> dict[str, tuple[Floats, Labels]]:
    """Streams of river's generators, each of so many events, by name."""
    from river.datasets import synth

    def in_turn(*streams: Iterable[Any]) -> tuple[Floats, Labels]:
        return _joined([_taken(stream, events // len(streams)) for stream in streams])

    def functions(*numbers: int) -> list[Any]:
        return [synth.Agrawal(classification_function=f, seed=40 + f) for f in numbers]

    gradual = synth.ConceptDriftStream(
        synth.SEA(variant=0, seed=51, noise=0.1),
        synth.SEA(variant=3, seed=52, noise=0.1),
        seed=53,
        position=events // 2,
        width=events // 5,
    )
    return {
        "SEA, abrupt": in_turn(*(synth.SEA(variant=v, seed=60 + v, noise=0.1) for v in range(4))),
        "SEA, gradual": in_turn(gradual),
        "Agrawal, abrupt": in_turn(*functions(0, 2, 4, 6)),
        "Agrawal, recurring": in_turn(*functions(0, 3, 0, 3)),
        "rotating hyperplane": in_turn(
            synth.Hyperplane(seed=71, n_features=10, n_drift_features=5, mag_change=0.001)
        ),
        "random RBF with drift": in_turn(
            synth.RandomRBFDrift(
                seed_model=72,
                seed_sample=73,
                n_classes=4,
                n_features=6,
                n_centroids=20,
                change_speed=0.0001,
                n_drift_centroids=10,
            )
        ),
        "LED with drift": in_turn(
            synth.LEDDrift(
                seed=74, noise_percentage=0.1, irrelevant_features=True, n_drift_features=3
            )
        ),
    }


def _taken(stream: Iterable[Any], events: int) -> tuple[NDArray[Any], NDArray[Any]]:
    pairs = list(itertools.islice(iter(stream), events))
    x = np.array([list(row.values()) for row, _ in pairs], dtype=np.float64)
    return x, np.array([int(label) for _, label in pairs], dtype=np.int64)


def _joined(parts: list[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[Floats, Labels]:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
