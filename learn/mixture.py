"""Experts' answers into one, by online logistic regression over them, at several rates at once.

Which rate is right depends on how the stream drifts; each keeps weights of its own, and the log
loss of late decides between them (exponential weights with discounting). An intercept for each
class follows how frequent it is: least squares, which the experts minimise, puts the border between
a rare class and a common one in the wrong place. All of it is linear in the answers, so that a
mixture of linear experts is one linear model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]
Floats = NDArray[np.float64]

RATES = (0.003, 0.01, 0.03, 0.1)
DISCOUNT = 0.998
MOST = 2.0  # an expert's answer lies near -1 or 1; one learns from no more than this
START = 2.0  # the sum of the weights before the first event


class Mixture:
    """Weights of ``experts`` and intercepts of ``classes`` for each rate, and the trust in it.

    >>> mixture = Mixture(2, classes=2)
    >>> right, wrong = [1.0, -1.0], [-1.0, 1.0]
    >>> answers = np.tile(np.array([right, wrong]), (100, 1, 1))
    >>> _ = mixture.learn(answers, np.zeros(100, np.int64))
    >>> bool(mixture.weights[0] > 1 > mixture.weights[1])
    True
    """

    def __init__(self, experts: int, classes: int) -> None:
        self._weights = np.full((len(RATES), experts), START / experts)
        self._intercepts = np.zeros((len(RATES), classes))
        self._trust = np.zeros(len(RATES))

    @property
    def weights(self) -> Floats:
        """Float64 [e]: the experts' weights, the rates averaged by trust."""
        combined: Floats = share_of(self._trust) @ self._weights
        return combined

    @property
    def offset(self) -> Floats:
        """Float64 [k]: what is added to the weighted answers."""
        offset: Floats = share_of(self._trust) @ self._intercepts
        return offset

    def grow(self, classes: int) -> None:
        """Make room for new classes; nothing is known of how frequent they are."""
        new = classes - self._intercepts.shape[1]
        self._intercepts = np.pad(self._intercepts, ((0, 0), (0, max(new, 0))))

    def learn(self, answers: Floats, labels: NDArray[np.int64]) -> Floats:
        """Learn ``n`` events in order: answers float64 [n, e, k], labels int64 [n] below k.

        Returns logits float64 [n, k], of each event before it was learned.
        """
        calm = np.clip(answers, -MOST, MOST)
        logits = np.empty((answers.shape[0], answers.shape[2]))
        weights, intercepts, trust = self._weights, self._intercepts, self._trust
        rates = np.array(RATES)[:, None]
        for i, (given, label) in enumerate(zip(calm, labels.tolist(), strict=True)):
            share = share_of(trust)
            logits[i] = (share @ weights) @ answers[i] + share @ intercepts
            each = weights @ given + intercepts
            each = np.exp(each - each.max(axis=1, keepdims=True))
            each /= each.sum(axis=1, keepdims=True)
            trust = DISCOUNT * trust + np.log(each[:, label] + 1e-9)
            each[:, label] -= 1.0
            weights = weights - rates * (each @ given.T)
            intercepts = intercepts - rates * each
        self._weights, self._intercepts, self._trust = weights, intercepts, trust
        return logits

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        return {
            "weights": self._weights.copy(),
            "intercepts": self._intercepts.copy(),
            "trust": self._trust.copy(),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `state` was taken."""
        self._weights = state["weights"].astype(np.float64)
        self._intercepts = state["intercepts"].astype(np.float64)
        self._trust = state["trust"].astype(np.float64)


def share_of(trust: Floats) -> Floats:
    """The rates' shares, which sum to 1, float64 [r], by the trust in each."""
    share = np.exp(trust - trust.max())
    normed: Floats = share / share.sum()
    return normed
