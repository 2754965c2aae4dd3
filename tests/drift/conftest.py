"""A small world of events whose drift is known: classes as clouds, a fixed linear model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from drift.signal import UNLABELLED, Observations

Batches = list[Observations]


@dataclass
class World:
    """Events of ``classes`` clouds in ``dimension`` dimensions; the model answers the nearest."""

    seed: int = 0
    classes: int = 4
    dimension: int = 24
    known: int | None = None  # how many classes the model knows
    random: np.random.Generator = field(init=False)
    centres: NDArray[np.float64] = field(init=False)
    clock: float = 0.0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.centres = self.random.standard_normal((self.classes, self.dimension)) * 0.55

    def events(
        self,
        n: int,
        *,
        mix: list[float] | None = None,
        move: dict[int, float] | None = None,
        toward: dict[int, int] | None = None,
        relabel: dict[int, int] | None = None,
        labelled: float = 1.0,
    ) -> Observations:
        """Drifted as told: by so many spreads, to where another class is, or by other names."""
        share = np.full(self.classes, 1 / self.classes) if mix is None else np.array(mix)
        true = self.random.choice(self.classes, size=n, p=share)
        rows = self.centres[true] + self.random.standard_normal((n, self.dimension))
        direction = np.ones(self.dimension) / np.sqrt(self.dimension)
        for label, amount in (move or {}).items():
            rows[true == label] += amount * direction
        for label, other in (toward or {}).items():
            rows[true == label] += self.centres[other] - self.centres[label]
        known = self.centres[: self.known]
        logits = rows @ known.T - (known**2).sum(axis=1) / 2
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        labels = true.copy()
        for label, new in (relabel or {}).items():
            labels[true == label] = new
        labels[self.random.random(n) >= labelled] = UNLABELLED
        times = self.clock + np.arange(n, dtype=np.float64)
        self.clock += n
        return Observations(
            rows.astype(np.float32),
            probabilities.astype(np.float32),
            labels.astype(np.int64),
            times,
        )


@pytest.fixture
def make_world() -> Callable[..., World]:
    return World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def concat() -> Callable[..., Observations]:
    def join(*parts: Observations) -> Observations:
        return Observations(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("embeddings", "probabilities", "labels", "times")
            )
        )

    return join


@pytest.fixture
def outcomes() -> Callable[[NDArray[np.bool_]], Observations]:
    """Labelled events without embeddings to speak of, wrong or right as told."""

    def make(wrong: NDArray[np.bool_]) -> Observations:
        n = len(wrong)
        answers = np.tile(np.array([[1, 0]], dtype=np.float32), (n, 1))
        return Observations(
            np.zeros((n, 1), np.float32), answers, wrong.astype(np.int64), np.arange(n, dtype=float)
        )

    return make


@pytest.fixture
def cut() -> Callable[[Observations, list[int]], Batches]:
    """The same events as batches that begin at the places given."""

    def split(observations: Observations, places: list[int]) -> Batches:
        edges = [0, *sorted(places), len(observations)]
        return [observations.take(slice(begin, end)) for begin, end in pairwise(edges)]

    return split
