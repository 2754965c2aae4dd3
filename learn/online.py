"""The head that learns with every batch: softmax regression by normalised stochastic gradient.

A step costs two small matrix products, far below a millisecond an event. The step is divided by
the mean squared norm of the batch's embeddings, so that one rate suits encoders of any scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from learn.config import OnlineConfig
from learn.head import Head

Arrays = dict[str, NDArray[np.generic]]


class OnlineHead:
    """A `Head` that `learn` moves in place.

    >>> online = OnlineHead(Head.zeros(2, 2), OnlineConfig())
    >>> x, y = np.eye(2, dtype=np.float32), np.array([0, 1])
    >>> for _ in range(20):
    ...     online.learn(x, y)
    >>> online.logits(x).argmax(axis=1).tolist()
    [0, 1]
    """

    def __init__(self, head: Head, config: OnlineConfig) -> None:
        self.config = config
        self.weight = np.array(head.weight, dtype=np.float32)
        self.bias = np.array(head.bias, dtype=np.float32)

    @property
    def head(self) -> Head:
        """A copy of the head as it is now."""
        return Head(self.weight.copy(), self.bias.copy())

    def grow(self, classes: int) -> None:
        """Make room for new classes; the logits of the old ones stay."""
        if classes > len(self.bias):
            grown = Head(self.weight, self.bias).grow(classes)
            self.weight, self.bias = grown.weight.copy(), grown.bias.copy()

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 [n, k] for float32 [n, d]."""
        return embeddings @ self.weight + self.bias

    def learn(self, embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """One step on a batch: float32 [n, d], int64 [n]. Rows that are not finite are skipped."""
        sound = np.isfinite(embeddings).all(axis=1)
        embeddings, labels = embeddings[sound], labels[sound]
        if not len(labels):
            return
        residual = softmax(self.logits(embeddings), axis=1)
        residual[np.arange(len(labels)), labels] -= 1.0
        scale = 1.0 + float(np.einsum("nd,nd->", embeddings, embeddings)) / len(labels)
        step = 2.0 * self.config.rate / scale
        # One pass over n events moves as far as n single steps would, but at most tenfold, so
        # that a long batch cannot overshoot.
        step *= min(len(labels), 10) / len(labels)
        self.weight *= 1.0 - self.config.l2 * len(labels)
        self.weight -= (step * (embeddings.T @ residual)).astype(np.float32)
        self.bias -= (step * residual.sum(axis=0)).astype(np.float32)

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        return {"weight": self.weight.copy(), "bias": self.bias.copy()}

    @classmethod
    def restored(cls, state: Mapping[str, NDArray[np.generic]], config: OnlineConfig) -> OnlineHead:
        """A head that goes on where `state` was taken."""
        weight, bias = state["weight"].astype(np.float32), state["bias"].astype(np.float32)
        return cls(Head(weight, bias), config)
