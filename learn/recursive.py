"""Recursive least squares with exponential forgetting, a block of events at a time.

A block gives the very answers and weights that one event after the other would give, at the speed
of matrix products: the innovations of a block are the Cholesky residuals of its covariance
(Kailath, "The innovations approach", 1968). So test-then-learn stays exact and costs microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsymm, dsyrk, dtrsm
from scipy.linalg.lapack import dpotrf

Arrays = dict[str, NDArray[np.generic]]
Floats = NDArray[np.float64]

BLOCK = 64
# Without news, forgetting blows the covariance up without end; at a thousand times the prior's
# it is as good as knowing nothing.
MOST = 1000.0


class RecursiveLeastSquares:
    """``k`` linear regressions on ``d`` inputs that share one covariance.

    forgetting: weight of an event after one more event, in (0, 1]; 1 / (1 - forgetting) events
    are its memory. prior: in events, how firmly the weights are held at zero.

    >>> regression = RecursiveLeastSquares(2, 1, forgetting=1.0, prior=1e-6)
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> regression.learn(x, np.array([[2.0], [3.0], [5.0]])).round(3).ravel().tolist()
    [0.0, 0.0, 5.0]
    """

    def __init__(self, inputs: int, targets: int, forgetting: float, prior: float) -> None:
        self.forgetting, self.prior = forgetting, prior
        #: Symmetric; only the lower triangle is kept up, and in Fortran order, for BLAS.
        self.covariance: Floats = np.asfortranarray(np.eye(inputs) / prior)
        self.weight: Floats = np.zeros((inputs, targets))

    def learn(self, x: Floats, y: Floats) -> Floats:
        """Learn ``n`` events in order: float64 [n, d], [n, k]; what it answered before each."""
        answers = np.empty_like(y)
        for start in range(0, len(x), BLOCK):
            part = slice(start, start + BLOCK)
            answers[part] = self._learn(x[part], y[part])
        return answers

    def grow(self, targets: int, start: float) -> None:
        """Make room for more regressions, whose events so far all had the target ``start``."""
        new = targets - self.weight.shape[1]
        if new > 0:
            self.weight = np.pad(self.weight, ((0, 0), (0, new)))
            self.weight[0, -new:] = start  # the first input is the constant 1

    def _learn(self, x: Floats, y: Floats) -> Floats:
        n, d = x.shape
        projected = dsymm(1.0, self.covariance, x.T, lower=1)
        # An event that is j younger counts forgetting^-j as much: its noise is that much smaller.
        joint = x @ projected
        joint[np.diag_indices(n)] += self.forgetting ** np.arange(1, n + 1)
        # Called directly, and in Fortran order all along: scipy's own wrappers cost as much again.
        lower, failed = dpotrf(joint.T, lower=1, overwrite_a=1)
        if failed:
            raise np.linalg.LinAlgError("the covariance of a block is not positive definite")
        white = dtrsm(1.0, lower, y - x @ self.weight, lower=1)
        gain = dtrsm(1.0, lower, projected, side=1, trans_a=1, lower=1, overwrite_b=1)
        self.weight += gain @ white
        less = 1 / self.forgetting**n
        self.covariance = dsyrk(-less, gain, beta=less, c=self.covariance, lower=1, overwrite_c=1)
        mean = float(np.trace(self.covariance)) / d
        if mean > MOST / self.prior:
            self.covariance *= MOST / self.prior / mean
        innovations: Floats = white * np.diag(lower)[:, None]
        return y - innovations

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        return {"covariance": self.covariance.copy(order="F"), "weight": self.weight.copy()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `state` was taken."""
        self.covariance = np.asfortranarray(state["covariance"], dtype=np.float64)
        self.weight = state["weight"].astype(np.float64)
