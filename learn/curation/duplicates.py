"""The same example twice: exact ones are merged, near ones may be left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learn.examples import Examples

BLOCK = 512


def merged(examples: Examples) -> Examples:
    """One example for each different input and label, with the weight of all of them together.

    The loss stays what it was, at less cost; and no example judges its own twin.
    """
    first: dict[tuple[object, int], int] = {}
    place = np.empty(len(examples), dtype=np.int64)
    inputs, labels = examples.inputs.tolist(), examples.labels.tolist()
    for i, key in enumerate(zip(inputs, labels, strict=True)):
        place[i] = first.setdefault(key, i)
    kept = np.fromiter(first.values(), np.int64, count=len(first))
    weights = np.bincount(place, examples.weights, len(examples))[kept].astype(np.float32)
    return examples.take(kept).weighted(weights)


def near_duplicates(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], threshold: float
) -> NDArray[np.bool_]:
    """Bool [n]: examples within the cosine ``threshold`` of an earlier kept one of their class.

    embeddings: float32 [n, d]. labels: int64 [n].
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    left_out = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        for start in range(0, len(mine), BLOCK):
            rows = mine[start : start + BLOCK]
            close = unit[rows] @ unit[mine[: start + len(rows)]].T >= threshold
            for i, row in enumerate(rows):
                earlier = mine[: start + i][close[i, : start + i]]
                left_out[row] = bool((~left_out[earlier]).any())
    return left_out
