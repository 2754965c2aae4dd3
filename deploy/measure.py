"""What INT8 costs and gains: size, speed and accuracy beside the FP32 original.

The trainer puts the numbers into a version's manifest. Times are wall times of one thread on the
machine at hand: the ratio of two of them says more than either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.preprocess import Inputs
from deploy.session import Session

# Enough single runs for a median that a busy neighbour does not move.
_SINGLES = 40

# Inputs [n] to scores [n, k]; the largest is the answer.
Predict = Callable[[Inputs], NDArray[np.floating]]


def measure(
    session: Session, fp32: Path | Predict | None, inputs: Inputs, labels: NDArray[np.int64]
) -> dict[str, float]:
    """Measure an INT8 session on ``n`` labelled inputs, and its FP32 original beside it.

    fp32: the FP32 graph (run with the session's own head), anything that answers scores
    [n, k], or None. labels: int64 [n], indices into ``session.labels``.

    Returns ``size_bytes``, ``accuracy`` (0 to 1), ``latency_ms`` (median for one item),
    ``items_per_second`` (all inputs, batched by length); with fp32 the same prefixed ``fp32_``,
    ``size_ratio``, ``agreement`` (share of equal answers), ``parity_points`` (accuracy that INT8
    costs, in points) and ``parity_error`` (the standard error of that). Sizes only for an FP32
    file.
    """
    if len(inputs) == 0:
        raise ValueError("nothing to measure on: give at least one labelled input")
    answers, figures = _run(lambda some: session.predict(some).probabilities, inputs, labels)
    result = {"size_bytes": float(session.size_bytes), **figures}
    if fp32 is None:
        return result
    if isinstance(fp32, Path):
        original = session.on(fp32)
        result["fp32_size_bytes"] = float(original.size_bytes)
        result["size_ratio"] = session.size_bytes / original.size_bytes
        other, figures = _run(
            lambda some: original.predict(some, session.head).probabilities, inputs, labels
        )
    else:
        other, figures = _run(fp32, inputs, labels)
    result |= {f"fp32_{name}": value for name, value in figures.items()}
    result["agreement"] = float((answers == other).mean())
    return result | parity(answers, other, labels)


def parity(
    int8: NDArray[np.int64], fp32: NDArray[np.int64], labels: NDArray[np.int64]
) -> dict[str, float]:
    """What INT8 costs, from the answers int64 [n] of both and the truth.

    >>> parity(np.array([0, 1, 1, 0]), np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]))
    {'parity_points': 25.0, 'parity_error': 21.65}
    """
    lost = (fp32 == labels).astype(np.float64) - (int8 == labels)
    error = float(lost.std()) / math.sqrt(len(labels))
    return {"parity_points": 100 * float(lost.mean()), "parity_error": round(100 * error, 2)}


def _run(
    predict: Predict, inputs: Inputs, labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], dict[str, float]]:
    predict(inputs[:1])
    start = time.perf_counter()
    answers = predict(inputs).argmax(axis=1)
    seconds = time.perf_counter() - start
    singles = []
    for i in np.resize(np.arange(len(inputs)), _SINGLES):
        begin = time.perf_counter()
        predict(inputs[i : i + 1])
        singles.append(time.perf_counter() - begin)
    return answers, {
        "accuracy": float((answers == labels).mean()),
        "latency_ms": float(np.median(singles)) * 1e3,
        "items_per_second": len(inputs) / max(seconds, 1e-9),
    }
