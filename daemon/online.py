"""What learns beside the champion with every batch, whichever model the champion is.

On a text, or a network's table: a head on the embeddings that the champion computed anyway. On an
ensemble's table, or a model of river's: the whole model on the rows themselves. Each can be given
out at any moment as the parts of a version that differ from the champion's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daemon.served import Classes, Opinion, Served
from daemon.version_files import RIVER
from deploy.preprocess import Preprocessor
from deploy.river_version import Events, RiverVersion
from learn.config import ModelConfig, OnlineConfig
from learn.ensemble import TabularEnsemble
from learn.head import Head
from learn.online import OnlineHead

Arrays = dict[str, NDArray[np.generic]]


class Online(Protocol):
    """A model that learns online, in the daemon's class indices."""

    #: Whether it is all of a model that a version changes, and not just a head over the rest.
    whole: bool

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

    def weights(self, columns: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The parameters that a version made now has, by name; its classes are ``columns``."""

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""


class OnEmbeddings:
    """A softmax head on the champion's embeddings."""

    whole = False

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

    whole = True

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

    def fits(self, other: Online) -> bool:
        """Whether the two see rows alike, so that one may go on where the other is."""
        if not isinstance(other, OnRows):
            return False
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

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` of an ensemble on the same rows was taken."""
        self.ensemble.restore(state)


class OnRiver:
    """A model of river on the rows, seen through the champion's preprocessor.

    It holds the events that it has learned, of which a version of it is made; at twice ``most`` it
    begins anew with the newest ``most``.
    """

    whole = True

    def __init__(
        self, model: RiverVersion, preprocess: Preprocessor, classes: Classes, most: int
    ) -> None:
        self.model, self._preprocess = model, preprocess
        self._classes, self._most = classes, most

    @classmethod
    def beside(cls, served: Served, most: int) -> OnRiver | None:
        """One that has learned nothing yet; None if the champion is no model of river."""
        river = served.session.graph.river if served.folder is not None else None
        if river is None:
            return None
        model = RiverVersion(river.recipe, river.classes)
        return cls(model, served.session.preprocessor, served.classes, most)

    def fits(self, other: Online) -> bool:
        """Whether the two see rows alike, so that one may go on where the other is."""
        return (
            isinstance(other, OnRiver)
            and self.model.recipe == other.model.recipe
            and self._preprocess.schema() == other._preprocess.schema()
        )

    def judge(self, inputs: NDArray[Any], embeddings: NDArray[np.float32]) -> NDArray[Any]:
        """See `Online.judge`."""
        return self.opinion(inputs, embeddings).predicted

    def opinion(self, inputs: NDArray[Any], embeddings: NDArray[np.float32]) -> Opinion:
        """See `Online.opinion`."""
        found = Opinion.of(
            self.model.scores(self._preprocess(inputs)), number=self.model.recipe.number
        )
        if self.model.recipe.number:
            return found
        places = np.array([self._classes.add(name) for name in self.model.classes], dtype=np.int64)
        return replace(found, predicted=places[found.predicted])

    def learn(
        self, inputs: NDArray[Any], embeddings: NDArray[np.float32], labels: NDArray[Any]
    ) -> None:
        """See `Online.learn`."""
        if not self.model.recipe.number:
            labels = np.array(self._classes.names, dtype=object)[labels]
        self.model.learn(self._preprocess(inputs), labels)
        if len(self.model) >= 2 * self._most:
            self.model.begin_anew(self._most)

    def grow(self, classes: int) -> None:
        """See `Online.grow`: it meets a class with the first event of it."""

    def weights(self, columns: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """See `Online.weights`."""
        weight, bias = self.model.head([self._classes.names[i] for i in columns])
        file = np.frombuffer(self.model.to_bytes(), dtype=np.uint8)
        return {"head.weight": weight, "head.bias": bias, RIVER: file}

    def state(self) -> Arrays:
        """See `Online.state`."""
        events = self.model.events
        classes = np.frombuffer(json.dumps(events.classes).encode(), dtype=np.uint8)
        return {
            "numeric": events.numeric,
            "category": events.category,
            "labels": events.labels,
            "classes": classes,
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` of a model with the same recipe was taken: learn it all again."""
        classes = tuple(json.loads(state["classes"].tobytes()))
        events = Events(state["numeric"], state["category"], state["labels"], classes)
        self.model = RiverVersion.taught(self.model.recipe, events)


Whole = OnRows | OnRiver


def whole_beside(served: Served, classes: int, config: ModelConfig) -> Whole | None:
    """A whole model that has learned nothing yet; None where only a head learns online."""
    return OnRiver.beside(served, config.river.events) or OnRows.beside(served, classes)


def restored(
    state: Mapping[str, NDArray[np.generic]],
    served: Served,
    config: OnlineConfig,
    model: ModelConfig,
) -> Online:
    """What goes on where `Online.state` was taken, beside the same champion."""
    if "weight" in state:
        return OnEmbeddings(OnlineHead.restored(state, config))
    whole = whole_beside(served, classes=1, config=model)
    assert whole is not None
    whole.restore(state)
    return whole


def _head(head: Head, columns: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    return {"head.weight": head.weight[:, columns], "head.bias": head.bias[columns]}
