"""Embeddings in a few whitened coordinates: what `covariate.embedding` and `diagnosis` look at.

The leading principal directions of a reference one by one, and what lies outside of them as one
distance; scaled so that the reference has mean 0 and covariance 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drift.signal import State

Floats = NDArray[np.float64]

# The directions are found on at most so many events: enough for any number of them, quick to do.
FITTED_ON = 1_024
# Numbers beyond this are no embedding; below it, squares stay inside the range of a float32.
LARGEST = 1e12
# The two coordinates beside the directions: the distance from the subspace, and from the centre.
EXTRA = 2


def usable(embeddings: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Bool [n]: the rows of embeddings [n, d] that are numbers, and not absurdly large ones."""
    if embeddings.size == 0:
        return np.full(len(embeddings), embeddings.shape[1] > 0)
    # NaN survives both, and compares false: two quick looks, and a third only if they fail.
    if embeddings.min() > -LARGEST and embeddings.max() < LARGEST:
        return np.ones(len(embeddings), dtype=bool)
    fine: NDArray[np.bool_] = np.all(np.abs(embeddings) < LARGEST, axis=1)
    return fine


@dataclass(frozen=True, slots=True)
class Subspace:
    """A map from embeddings [n, d] to coordinates [n, c], ``c`` = directions + 2.

    centre: float32 [d]. directions: float32 [d, r], scaled to unit variance. variances: float32
    [r]. offset: float64 [c] and whitening: float64 [c, c] standardise the raw coordinates.
    radius: no coordinate vector is longer; beyond it, it is shortened, so that one wild event
    cannot pass for a drift. tiny: the squared distance from the subspace that counts as none.
    """

    centre: NDArray[np.float32]
    directions: NDArray[np.float32]
    variances: NDArray[np.float32]
    offset: Floats
    whitening: Floats
    radius: float
    tiny: float

    @classmethod
    def fit(
        cls, embeddings: NDArray[np.float32], most: int
    ) -> tuple[Self, NDArray[np.int64], Floats]:
        """Fit on finite embeddings [n, d]; also which events were kept apart, and where they lie.

        Every third event finds the directions, the others measure them: on the events that found
        it, a direction looks wider, and the rest narrower, than the stream will be.
        """
        finding = np.zeros(len(embeddings), dtype=bool)
        finding[:: max(3, len(embeddings) // FITTED_ON)] = True
        found, kept = embeddings[finding].astype(np.float64), embeddings[~finding]
        centre = found.mean(axis=0)
        variances, directions = _principal(found - centre, min(most, len(found) // 4))
        raw_centre = centre.astype(np.float32)
        total = float(((found - centre) ** 2).sum(axis=1).mean()) if len(found) else 0.0
        space = cls(
            raw_centre,
            (directions / np.sqrt(variances)).astype(np.float32),
            variances.astype(np.float32),
            np.zeros(len(variances) + EXTRA),
            np.eye(len(variances) + EXTRA),
            np.inf,
            # Float32 rounding of the embeddings themselves must not look like a distance.
            1e-6 * total + 1e-10 * float(centre @ centre) + 1e-30,
        )
        raw = space.coordinates(kept)
        offset = raw.mean(axis=0)
        covariance = np.cov(raw, rowvar=False, bias=True)
        # A coordinate that hardly moves at all (a constant input) is given a scale regardless.
        covariance += 1e-6 * np.eye(len(offset))
        whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
        white = (raw - offset) @ whitening
        length = np.sqrt((white**2).sum(axis=1))
        radius = 1.5 * max(float(np.quantile(length, 0.999)), 2.0 * np.sqrt(len(offset)))
        space = cls(
            space.centre, space.directions, space.variances, offset, whitening, radius, space.tiny
        )
        return space, np.flatnonzero(~finding), space.coordinates(kept)

    @property
    def size(self) -> int:
        """How many coordinates there are."""
        return len(self.offset)

    def shrinkage(self, measured_on: int) -> float:
        """What to multiply squared distances of new events by, so that they are not overstated.

        A covariance estimated on ``measured_on`` events has too large an inverse (Hotelling).
        """
        return max(0.1, (measured_on - self.size - 2) / (measured_on - 1))

    def coordinates(self, embeddings: NDArray[np.float32]) -> Floats:
        """float64 [..., n, c] of finite embeddings float32 [..., n, d]."""
        centred = embeddings - self.centre
        along = np.clip(centred @ self.directions, -1e9, 1e9)
        inside = np.add.reduce(along * along * self.variances, axis=-1, dtype=np.float64)
        whole = np.add.reduce(centred * centred, axis=-1, dtype=np.float64)
        raw = np.empty((*along.shape[:-1], self.size))
        raw[..., :-EXTRA] = along
        raw[..., -2] = np.log(np.maximum(whole - inside, 0) + self.tiny)
        raw[..., -1] = np.log1p(np.add.reduce(along * along, axis=-1, dtype=np.float64))
        white: Floats = (raw - self.offset) @ self.whitening
        length = np.sqrt(np.add.reduce(white * white, axis=-1))
        shorten = np.minimum(1.0, self.radius / np.maximum(length, 1e-30))
        white *= shorten[..., None]
        return white

    def state(self) -> State:
        """Plain arrays for `from_state`."""
        return {
            "centre": self.centre,
            "directions": self.directions,
            "variances": self.variances,
            "offset": self.offset,
            "whitening": self.whitening,
            "radius": np.array(self.radius),
            "tiny": np.array(self.tiny),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        """The subspace that `state` describes."""
        return cls(
            np.array(state["centre"], dtype=np.float32),
            np.array(state["directions"], dtype=np.float32),
            np.array(state["variances"], dtype=np.float32),
            np.array(state["offset"], dtype=np.float64),
            np.array(state["whitening"], dtype=np.float64),
            float(state["radius"].item()),
            float(state["tiny"].item()),
        )


def _principal(centred: Floats, most: int) -> tuple[Floats, Floats]:
    """The variances [r] and unit directions [d, r], widest first, of centred rows [n, d]."""
    n, d = centred.shape
    if min(n, d) == 0 or most == 0:
        return np.zeros(0), np.zeros((d, 0))
    # The smaller of the two Gram matrices has the same spectrum.
    if d <= n:
        values, vectors = np.linalg.eigh(centred.T @ centred / n)
    else:
        values, vectors = np.linalg.eigh(centred @ centred.T / n)
    order = np.argsort(values)[::-1][:most]
    values, vectors = values[order], vectors[:, order]
    scale = float((centred**2).max(initial=0.0))
    keep = values > max(1e-6 * float(values[0]), 1e-12 * scale, 1e-30)
    values, vectors = values[keep], vectors[:, keep]
    if d > n:
        vectors = centred.T @ vectors / np.sqrt(values * n)
    return values, vectors
