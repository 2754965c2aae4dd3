"""The linear head: softmax regression on embeddings, fitted to its optimum.

The objective is convex, so the refit of a head is a solve and not a training run: no learning
rate, no epochs, the same answer for the same data. Every rung of the ladder ends here.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

FloatArray = NDArray[np.float32]


class Head(NamedTuple):
    """``logits = embeddings @ weight + bias``. weight: float32 [d, k]; bias: float32 [k]."""

    weight: FloatArray
    bias: FloatArray

    @classmethod
    def zeros(cls, dimension: int, classes: int) -> Head:
        """A head that knows nothing: every class is as likely as any other."""
        return cls(np.zeros((dimension, classes), np.float32), np.zeros(classes, np.float32))

    @property
    def dimension(self) -> int:
        """``d``, the length of an embedding."""
        return int(self.weight.shape[0])

    @property
    def classes(self) -> int:
        """``k``, the number of classes."""
        return int(self.weight.shape[1])

    def logits(self, embeddings: FloatArray) -> FloatArray:
        """Float32 [n, k] for float32 [n, d]."""
        return embeddings @ self.weight + self.bias

    def probabilities(self, embeddings: FloatArray) -> FloatArray:
        """Float32 [n, k], the softmax of the logits."""
        return cast(FloatArray, softmax(self.logits(embeddings), axis=1))

    def grow(self, classes: int) -> Head:
        """The same head with room for ``classes`` classes; the logits of the old ones stay.

        A new class starts with no opinion (zero weights) and the smallest bias in use, so that it
        does not take answers from the old ones before it has seen an example.

        >>> head = Head(np.eye(2, dtype=np.float32), np.array([0.5, -1.0], np.float32)).grow(3)
        >>> head.logits(np.array([[1, 0]], np.float32)).tolist()
        [[1.5, -1.0, -1.0]]
        """
        new = classes - self.classes
        if new < 0:
            raise ValueError(f"a head of {self.classes} classes cannot shrink to {classes}")
        if new == 0:
            return self
        weight = np.pad(self.weight, ((0, 0), (0, new)))
        lowest = min(0.0, float(self.bias.min(initial=0.0)))
        return Head(weight, np.append(self.bias, np.full(new, lowest, np.float32)))


class Score(NamedTuple):
    """How a head does on ``examples`` labelled examples. loss: mean log loss, in nats."""

    accuracy: float
    loss: float
    examples: int


def score(logits: FloatArray, labels: NDArray[np.int64]) -> Score:
    """Accuracy and log loss of float32 [n, k] logits against int64 [n] labels; NaN where n is 0."""
    if len(labels) == 0:
        return Score(float("nan"), float("nan"), 0)
    right = logits.argmax(axis=1) == labels
    wide = logits.astype(np.float64)
    losses = logsumexp(wide, axis=1) - wide[np.arange(len(labels)), labels]
    return Score(float(right.mean()), float(losses.mean()), len(labels))


def fit_softmax(
    embeddings: FloatArray,
    labels: NDArray[np.int64],
    weights: FloatArray | None,
    classes: int,
    l2: float,
    start: Head | None = None,
    *,
    pull: float | FloatArray = 0.0,
    iterations: int = 200,
) -> Head:
    """The head that minimises the weighted log loss plus a penalty, by L-BFGS.

    Minimises ``sum_i w_i * nll_i + l2/2 |W|^2 + pull/2 |W - W_start|^2`` (the last as L2-SP, Li et
    al. 2018). Both penalties are in
    units of examples, so one value fits small and large sets alike: the evidence of an example
    grows the sum, the prior stays. The bias is pulled but not shrunk.

    embeddings: float32 [n, d]. labels: int64 [n] in ``[0, classes)``. weights: float32 [n] >= 0,
    or None for ones. start: where the search begins (grown to ``classes``), and what ``pull``, one
    for all classes or float32 [k], holds on to. Raises ValueError for no examples, for labels out
    of range, for values that are not finite, and for ``pull`` without ``start``.
    """
    n, d = embeddings.shape
    if n == 0:
        raise ValueError("a head cannot be fitted to no examples")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), got {int(labels.min())}..{int(labels.max())}"
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("the embeddings hold values that are not finite")
    held = bool(np.any(np.asarray(pull) > 0))
    if held and start is None:
        raise ValueError("pull > 0 needs the head to pull towards: pass start")
    example_weights = np.ones(n, np.float32) if weights is None else weights.astype(np.float32)
    if not np.isfinite(example_weights).all() or (example_weights < 0).any():
        raise ValueError("example weights must be finite and not negative")
    origin = (start or Head.zeros(d, classes)).grow(classes)
    # Float32 products are twice as fast and exact enough; the search itself runs in float64.
    x = np.ascontiguousarray(embeddings, np.float32)
    target = np.arange(n), labels
    w0 = origin.weight.astype(np.float64)
    b0 = origin.bias.astype(np.float64)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w, b = flat[: d * classes].reshape(d, classes), flat[d * classes :]
        z = x @ w.astype(np.float32) + b.astype(np.float32)
        log_norm = logsumexp(z, axis=1, keepdims=True)
        value = float(example_weights @ (log_norm[:, 0] - z[target]).astype(np.float64))
        value += 0.5 * l2 * float(np.vdot(w, w))
        residual = np.exp(z - log_norm)
        residual[target] -= 1.0
        residual *= example_weights[:, None]
        grad_w = (x.T @ residual).astype(np.float64) + l2 * w
        grad_b = residual.sum(axis=0, dtype=np.float64)
        if held:
            away = pull * (w - w0), pull * (b - b0)
            value += 0.5 * float(np.vdot(away[0], w - w0) + np.vdot(away[1], b - b0))
            grad_w += away[0]
            grad_b += away[1]
        return value, np.concatenate([grad_w.ravel(), grad_b])

    # Float32 noise in the value is about 1e-7 of it; asking for more only burns line searches.
    found = minimize(
        objective,
        np.concatenate([w0.ravel(), b0]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxcor": 10, "ftol": 1e-7, "gtol": 1e-4},
    )
    solution = found.x.astype(np.float32)
    return Head(solution[: d * classes].reshape(d, classes), solution[d * classes :])


def fit_number(
    embeddings: FloatArray, targets: NDArray[np.float64], weights: FloatArray | None, ridge: float
) -> Head:
    """The head with one output that minimises the weighted squared error plus a penalty.

    ``ridge``: in examples, whose error counts in deviations of the target; the bias is free.
    embeddings: float32 [n, d]. targets: float64 [n]. weights: float32 [n] >= 0, None for ones.
    Raises ValueError for no examples and for values that are not finite.

    >>> x = np.array([[0.0], [1.0], [2.0]], np.float32)
    >>> head = fit_number(x, np.array([10.0, 12.0, 14.0]), None, ridge=1e-9)
    >>> head.logits(x).round(3).ravel().tolist()
    [10.0, 12.0, 14.0]
    """
    if not len(embeddings):
        raise ValueError("a head cannot be fitted to no examples")
    if not (np.isfinite(embeddings).all() and np.isfinite(targets).all()):
        raise ValueError("the embeddings or targets hold values that are not finite")
    w = np.ones(len(targets)) if weights is None else weights.astype(np.float64)
    w, x = w / max(float(w.sum()), 1e-12), embeddings.astype(np.float64)
    middle, level = w @ x, float(w @ targets)
    away, y = x - middle, targets - level
    gram = away.T @ (w[:, None] * away)
    gram[np.diag_indices_from(gram)] += ridge / len(targets)
    weight = np.linalg.solve(gram, away.T @ (w * y))
    bias = level - float(middle @ weight)
    return Head(weight[:, None].astype(np.float32), np.array([bias], np.float32))
