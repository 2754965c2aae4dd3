"""What INT8 costs and gains: size, speed and accuracy beside the FP32 original.

The trainer puts the numbers into a version's manifest. Times are wall times of one thread on the
machine at hand: the ratio of two of them says more than either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.preprocess import Inputs
from deploy.session import Session

# Enough single runs for a median that a busy neighbour does not move.
_SINGLES = 40

# Inputs [n] to scores [n, k]; the largest is the answer, or the only one, where it is a number.
Predict = Callable[[Inputs], NDArray[np.floating]]
# Answers [n] and the truth [n], or two models' answers, to bool [n].
Alike = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]]


def measure(
    session: Session,
    fp32: Path | Predict | None,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    right: Alike = np.equal,
    same: Alike = np.equal,
) -> dict[str, float]:
    """Measure an INT8 session on ``n`` labelled inputs, and its FP32 original beside it.

    fp32: the FP32 graph (run with the session's own head), anything that answers scores
    [n, k], or None. labels: int64 [n], indices into ``session.labels``, or numbers float64 [n].
    right: which answers are. same: which answers of the two count as equal.

    Returns ``size_bytes``, ``accuracy`` (0 to 1), ``latency_ms`` (median for one item),
    ``items_per_second`` (all inputs, batched by length); with fp32 the same prefixed ``fp32_``,
    ``size_ratio``, ``agreement`` (share of equal answers), ``parity_points`` (accuracy that INT8
    costs, in points) and ``parity_error`` (the standard error of that). Sizes only for an FP32
    file.
    """
    if len(inputs) == 0:
        raise ValueError("nothing to measure on: give at least one labelled input")

    def scores(of: Session, some: Inputs) -> NDArray[np.floating]:
        found = of.predict(some, None if of is session else session.head)
        return found.logits if session.number else found.probabilities

    answers, figures = _run(lambda some: scores(session, some), inputs, session.number)
    figures["accuracy"] = float(right(answers, labels).mean())
    result = {"size_bytes": float(session.size_bytes), **figures}
    if fp32 is None:
        return result
    if isinstance(fp32, Path):
        original = session.on(fp32)
        result["fp32_size_bytes"] = float(original.size_bytes)
        result["size_ratio"] = session.size_bytes / original.size_bytes
        other, figures = _run(lambda some: scores(original, some), inputs, session.number)
    else:
        other, figures = _run(fp32, inputs, session.number)
    figures["accuracy"] = float(right(other, labels).mean())
    result |= {f"fp32_{name}": value for name, value in figures.items()}
    result["agreement"] = float(same(answers, other).mean())
    return result | parity(answers, other, labels, right)


def parity(
    int8: NDArray[Any], fp32: NDArray[Any], labels: NDArray[Any], right: Alike = np.equal
) -> dict[str, float]:
    """What INT8 costs, from the answers [n] of both and the truth.

    >>> parity(np.array([0, 1, 1, 0]), np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]))
    {'parity_points': 25.0, 'parity_error': 21.65}
    """
    lost = right(fp32, labels).astype(np.float64) - right(int8, labels)
    error = float(lost.std()) / math.sqrt(len(labels))
    return {"parity_points": 100 * float(lost.mean()), "parity_error": round(100 * error, 2)}


def _run(predict: Predict, inputs: Inputs, number: bool) -> tuple[NDArray[Any], dict[str, float]]:
    predict(inputs[:1])
    start = time.perf_counter()
    scores = predict(inputs)
    seconds = time.perf_counter() - start
    singles = []
    for i in np.resize(np.arange(len(inputs)), _SINGLES):
        begin = time.perf_counter()
        predict(inputs[i : i + 1])
        singles.append(time.perf_counter() - begin)
    return scores[:, 0] if number else scores.argmax(axis=1), {
        "latency_ms": float(np.median(singles)) * 1e3,
        "items_per_second": len(inputs) / max(seconds, 1e-9),
    }
