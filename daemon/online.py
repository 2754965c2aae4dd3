"""What learns beside the champion with every batch, whichever model the champion is.

On a text, or a network's table: a head on the embeddings that the champion computed anyway. On an
ensemble's table: the whole ensemble on the rows themselves, its standardisation too. Either can
be given out at any moment as weights to patch into the champion's graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daemon.served import Opinion, Served
from learn.config import OnlineConfig
from learn.ensemble import TabularEnsemble
from learn.head import Head
from learn.online import OnlineHead

Arrays = dict[str, NDArray[np.generic]]


class Online(Protocol):
    """A model that learns online, in the daemon's class indices."""

    def judge(self, inputs: NDArray[Any], embeddings: NDArray[np.float32]) -> NDArray[Any]:
        """The class, int64 [n], of inputs [n] that the champion embedded as float32 [n, d].

        Or the number, float32 [n].
        """

    def opinion(self, inputs: NDArray[Any], embeddings: NDArray[np.float32]) -> Opinion:
        """The same, and how sure it is."""

    def learn(
        self, inputs: NDArray[Any], embeddings: NDArray[np.float32], labels: NDArray[Any]
    ) -> None:
        """Learn the same, with labels int64 [n], or numbers float64 [n]."""

    def grow(self, classes: int) -> None:
        """Make room for new classes."""

    def weights(self, columns: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """The parameters that a version made now has, by name; its classes are ``columns``."""

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""


class OnEmbeddings:
    """A softmax head on the champion's embeddings."""

    def __init__(self, head: OnlineHead) -> None:
        self.head = head

    @classmethod
    def beside(cls, served: Served, classes: int, config: OnlineConfig) -> OnEmbeddings:
        """It goes on from the champion's head."""
        weight, bias = served.weight, served.bias
        wide = np.zeros((weight.shape[0], classes), dtype=np.float32)
        # A class the champion does not know starts with no weight and the smallest bias in use.
        offsets = np.full(classes, bias.min(initial=0.0), dtype=np.float32)
        wide[:, served.columns], offsets[served.columns] = weight, bias
        return cls(OnlineHead(Head(wide, offsets), config))

    def judge(self, inputs: NDArray[Any], embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
        """See `Online.judge`."""
        best: NDArray[np.int64] = self.head.logits(embeddings).argmax(axis=1)
        return best

    def opinion(self, inputs: NDArray[Any], embeddings: NDArray[np.float32]) -> Opinion:
        """See `Online.opinion`."""
        return Opinion.of(self.head.logits(embeddings))

    def learn(
        self, inputs: NDArray[Any], embeddings: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> None:
        """See `Online.learn`."""
        self.head.learn(embeddings, labels)

    def grow(self, classes: int) -> None:
        """See `Online.grow`."""
        self.head.grow(classes)

    def weights(self, columns: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """See `Online.weights`."""
        return _head(self.head.head, columns)

    def state(self) -> Arrays:
        """See `Online.state`."""
        return self.head.state()


class OnRows:
    """A tabular ensemble on the rows, seen through the champion's preprocessor."""

    def __init__(self, ensemble: TabularEnsemble, preprocess: Any) -> None:
        self.ensemble = ensemble
        self._preprocess = preprocess

    @classmethod
    def beside(cls, served: Served, classes: int) -> OnRows | None:
        """One that has learned nothing yet; None if the champion is no ensemble."""
        if served.folder is None:
            return None
        ensemble = TabularEnsemble.of(served.folder, classes)
        return cls(ensemble, served.session.preprocessor) if ensemble else None

    def fits(self, other: OnRows) -> bool:
        """Whether the two see rows alike, so that one may go on where the other is."""
        ours, theirs = self.ensemble.random, other.ensemble.random
        return (
            self._preprocess.features == other._preprocess.features
            and np.array_equal(ours.frequencies, theirs.frequencies)
            and np.array_equal(ours.phases, theirs.phases)
        )

    def judge(self, inputs: NDArray[Any], embeddings: NDArray[np.float32]) -> NDArray[Any]:
        """See `Online.judge`."""
        logits = self.ensemble.logits(self._preprocess(inputs))
        return logits[:, 0] if self.ensemble.number else logits.argmax(axis=1)

    def opinion(self, inputs: NDArray[Any], embeddings: NDArray[np.float32]) -> Opinion:
        """See `Online.opinion`."""
        logits = self.ensemble.logits(self._preprocess(inputs))
        return Opinion.of(logits, number=self.ensemble.number)

    def learn(
        self, inputs: NDArray[Any], embeddings: NDArray[np.float32], labels: NDArray[Any]
    ) -> None:
        """See `Online.learn`."""
        self.ensemble.learn(self._preprocess(inputs), labels)

    def grow(self, classes: int) -> None:
        """See `Online.grow`."""
        self.ensemble.grow(classes)

    def weights(self, columns: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """See `Online.weights`."""
        return _head(self.ensemble.head, columns) | self.ensemble.standardisation

    def state(self) -> Arrays:
        """See `Online.state`."""
        return self.ensemble.state()


def restored(
    state: Mapping[str, NDArray[np.generic]], served: Served, config: OnlineConfig
) -> Online:
    """What goes on where `Online.state` was taken, beside the same champion."""
    if "weight" in state:
        return OnEmbeddings(OnlineHead.restored(state, config))
    rows = OnRows.beside(served, classes=1)
    assert rows is not None
    rows.ensemble.restore(state)
    return rows


def _head(head: Head, columns: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    return {"head.weight": head.weight[:, columns], "head.bias": head.bias[columns]}
