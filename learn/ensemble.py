"""The tabular model that learns from the first event: linear experts on random features.

Each expert is a recursive least squares regression of the classes, or of a number, on its own
part of one embedding, with a memory of its own length; a mixture weighs them. Everything after the
embedding is linear, so at any moment the whole ensemble is one head over a fixed encoder, and a
version of it is made by patching that head and the running standardisation into the graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from learn.head import Head
from learn.mixture import Mixture
from learn.moments import Moments
from learn.number_mixture import NumberMixture
from learn.random_features import CUT, Columns, RandomFeatures, columns_of
from learn.recursive import RecursiveLeastSquares

Arrays = dict[str, NDArray[np.generic]]
Feeds = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

# Events: a feature's usual level, against which it is standardised.
STANDARD_HALF_LIFE = 1400.0
# Forgetting of the experts on random features, and of those on the plain row, which have few
# weights and may therefore be quick.
SLOW = (0.998, 0.9995, 1.0)
QUICK = (0.98, 0.995, 0.9995)
PRIOR = 10.0


class TabularEnsemble:
    """Learns rows of ``columns`` in order; answers, and gives itself out as encoder and head.

    Feeds are the preprocessor's: ``numeric`` float32 [n, f], ``category`` int64 [n, c]. With
    ``number`` it predicts a number instead of classes: labels are float64 [n], and there is one
    logit, the number itself.
    """

    def __init__(
        self, columns: Columns, random: RandomFeatures, classes: int, *, number: bool = False
    ) -> None:
        if number and classes != 1:
            raise ValueError("a number is one output, not several classes")
        self.columns, self.random, self.number = columns, random, number
        self._moments = Moments(columns.numbers, STANDARD_HALF_LIFE)
        self._parts = parts(columns, random.phases.size // 2)
        self._experts = [
            RecursiveLeastSquares(len(which) + 1, classes, forgetting, PRIOR)
            for which, memories in zip(self._parts, (QUICK, SLOW, SLOW), strict=True)
            for forgetting in memories
        ]
        count = len(self._experts)
        self._mixture: Mixture | NumberMixture = (
            NumberMixture(count) if number else Mixture(count, classes)
        )
        self.classes = classes

    @classmethod
    def of(cls, folder: Path, classes: int) -> TabularEnsemble | None:
        """One that begins on the encoder of the version in ``folder``; None for other encoders.

        It has learned nothing yet, not the standardisation either.
        """
        description = json.loads((folder / "model.json").read_bytes())
        if "random_features" not in description:
            return None
        columns = columns_of(description)
        weights = load_file(folder / "encoder.safetensors")
        if (folder / "delta.safetensors").exists():
            weights |= load_file(folder / "delta.safetensors")
        number = description.get("target") == "number"
        return cls(columns, RandomFeatures.of(weights, columns), classes, number=number)

    def learn(self, feeds: Feeds, labels: NDArray[Any]) -> NDArray[np.float32]:
        """Learn ``n`` labelled rows in order: int64 [n] below `classes`, or float64 [n].

        Returns float32 [n, k]: the logits of each row before it was learned.
        """
        numbers = _numeric(feeds, len(labels))
        embedded = self._embed(numbers, feeds, *self._moments.observe(numbers))
        if isinstance(self._mixture, NumberMixture):
            targets = self._mixture.targets(labels)
        else:
            targets = np.where(labels[:, None] == np.arange(self.classes), 1.0, -1.0)
        answers = np.empty((len(labels), len(self._experts), self.classes))
        memories = len(SLOW)
        for i, which in enumerate(self._parts):
            x = np.column_stack([np.ones(len(labels)), embedded[:, which]])
            for j in range(i * memories, (i + 1) * memories):
                answers[:, j] = self._experts[j].learn(x, targets)
        return self._mixture.learn(answers, labels).astype(np.float32)

    def embed(self, feeds: Feeds) -> NDArray[np.float32]:
        """Float32 [n, d], as the graph of a version made now embeds."""
        n = len(next(iter(feeds.values())))
        moments = self._moments
        embedded = self._embed(_numeric(feeds, n), feeds, moments.mean, moments.deviation)
        return embedded.astype(np.float32)

    def logits(self, feeds: Feeds) -> NDArray[np.float32]:
        """Float32 [n, k], as a version made now would answer."""
        return self.head.logits(self.embed(feeds))

    @property
    def head(self) -> Head:
        """The whole ensemble as one head over the embedding."""
        weight = np.zeros((self.columns.width + self.random.phases.size, self.classes))
        bias = np.zeros(self.classes)
        memories = len(SLOW)
        for j, (expert, share) in enumerate(zip(self._experts, self._mixture.weights, strict=True)):
            weight[self._parts[j // memories]] += share * expert.weight[1:]
            bias += share * expert.weight[0]
        bias += self._mixture.offset
        return Head(weight.astype(np.float32), bias.astype(np.float32))

    @property
    def standardisation(self) -> dict[str, NDArray[np.float32]]:
        """The encoder's weights that move: ``encoder.shift`` and ``encoder.gain``, float32 [f]."""
        shift, gain = self._moments.mean, 1 / self._moments.deviation
        found = {"encoder.shift": shift, "encoder.gain": gain}
        return {name: array.astype(np.float32) for name, array in found.items() if array.size}

    @property
    def size_bytes(self) -> int:
        """What the experts and the random features hold in memory; it does not grow."""
        held = [array for expert in self._experts for array in expert.state().values()]
        random = self.random
        held += [random.frequencies, random.phases, *random.vectors]
        return sum(array.nbytes for array in held)

    def grow(self, classes: int) -> None:
        """Make room for new classes; the answers about the old ones stay."""
        if classes > self.classes:
            for expert in self._experts:
                expert.grow(classes, start=-1.0)
            if isinstance(self._mixture, Mixture):
                self._mixture.grow(classes)
            self.classes = classes

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        pieces = {"moments": self._moments.state(), "mixture": self._mixture.state()}
        pieces |= {f"expert{j}": expert.state() for j, expert in enumerate(self._experts)}
        return {f"{name}/{key}": a for name, piece in pieces.items() for key, a in piece.items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on where `state` of an ensemble with the same columns was taken."""
        owners: dict[str, Moments | Mixture | NumberMixture | RecursiveLeastSquares] = {
            "moments": self._moments,
            "mixture": self._mixture,
        }
        owners |= {f"expert{j}": expert for j, expert in enumerate(self._experts)}
        for name, owner in owners.items():
            head = f"{name}/"
            owner.restore({k.removeprefix(head): a for k, a in state.items() if k.startswith(head)})
        self.classes = self._experts[0].weight.shape[1]

    def _embed(self, numbers: Floats, feeds: Feeds, mean: Floats, deviation: Floats) -> Floats:
        random = self.random
        row: list[NDArray[np.floating]] = [np.clip((numbers - mean) / deviation, -CUT, CUT)]
        if random.vectors:
            index = feeds["category"]
            row += [vectors[index[:, i]] for i, vectors in enumerate(random.vectors)]
        x = np.concatenate(row, axis=1)
        return np.concatenate([x, random.waves(x)], axis=1)


def parts(columns: Columns, features: int) -> list[NDArray[np.int64]]:
    """Columns of the embedding, int64, for each family of experts.

    The row alone; the event's own columns with their random features; all with theirs.
    """
    row = np.arange(columns.width)
    own = columns.width + np.arange(features)
    return [
        row,
        np.concatenate([columns.own, own]),
        np.concatenate([row, own + features]),
    ]


def _numeric(feeds: Feeds, n: int) -> Floats:
    if "numeric" not in feeds:
        return np.empty((n, 0))
    return feeds["numeric"].astype(np.float64)
