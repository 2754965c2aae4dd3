"""A version as the loop uses it: the INT8 session, answering in the daemon's class indices.

Versions may know different classes, in a different order; the daemon numbers the classes it has
met once and for all. Versions that share an encoder differ in a head of a few kilobytes, so that
judging one beside another costs a matrix product on embeddings already at hand, not a second pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from daemon.evidence import Outcomes
from daemon.version_files import DELTA, ENCODER
from deploy.preprocess import Preprocessor
from deploy.river_version import RIVER_FILE
from deploy.session import (
    QUANTISATION_FILE,
    Head,
    Prediction,
    Session,
    predicts_number,
    read_head,
)
from learn.number_scale import NumberScale
from registry.manifest import Manifest

ENCODER_FILES = (
    ENCODER,
    DELTA,
    RIVER_FILE,
    QUANTISATION_FILE,
    "preprocess.json",
    "tokenizer.json",
)


class Classes:
    """The labels the daemon has met, numbered in the order it met them; never renumbered.

    >>> classes = Classes(["sport", "politics"])
    >>> classes.index(np.array(["politics", None, "art"], dtype=object)).tolist()
    [1, -1, 2]
    >>> classes.names
    ['sport', 'politics', 'art']
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names: list[str] = []
        self._index: dict[str, int] = {}
        for name in names:
            self.add(name)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def add(self, name: str) -> int:
        """The number of ``name``, new or known."""
        if name not in self._index:
            self._index[name] = len(self.names)
            self.names.append(name)
        return self._index[name]

    def index(self, labels: NDArray[np.object_]) -> NDArray[np.int64]:
        """Labels (object [n] of str or None) as int64 [n]; -1 for None. New names are added."""
        for name in dict.fromkeys(labels):
            if name is not None:
                self.add(name)
        return self.known(labels)

    def known(self, names: NDArray[np.object_]) -> NDArray[np.int64]:
        """The same, but a name that nobody met is -1 and stays unknown."""
        found = map(self._index.get, names, repeat(-1))
        return np.fromiter(found, dtype=np.int64, count=len(names))


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one version says of ``n`` events: class int64 [n], and how sure it is, float32 [n].

    Of a number: float64 [n], and nothing of how sure.
    """

    predicted: NDArray[Any]
    confidence: NDArray[np.float32]

    @classmethod
    def of(cls, logits: NDArray[np.float32], *, number: bool = False) -> Opinion:
        """What logits, float32 [n, k], say; ``number``: the only one is the number itself."""
        if number:
            return cls(logits[:, 0].astype(np.float64), np.ones(len(logits), np.float32))
        found = softmax(logits, axis=1)
        return cls(found.argmax(axis=1), found.max(axis=1))

    @classmethod
    def join(cls, parts: Sequence[Opinion]) -> Opinion:
        """All opinions, in order; at least one part."""
        return cls(
            np.concatenate([part.predicted for part in parts]),
            np.concatenate([part.confidence for part in parts]),
        )

    def take(self, index: NDArray[np.generic]) -> Opinion:
        """The opinions on the events at ``index`` (positions or a mask)."""
        return Opinion(self.predicted[index], self.confidence[index])


@dataclass(frozen=True, slots=True)
class Answer:
    """Predictions of one version for ``n`` events, in the daemon's class indices.

    predicted: int64 [n], or float64 [n] where it is a number. probabilities: float32 [n, k], k =
    number of the daemon's classes; a class that the version does not know has probability 0.
    embeddings: float32 [n, d].
    """

    predicted: NDArray[Any]
    probabilities: NDArray[np.float32]
    embeddings: NDArray[np.float32]

    def take(self, index: NDArray[np.generic]) -> Answer:
        """The answers to the events at ``index`` (positions or a mask)."""
        found = (self.predicted, self.probabilities, self.embeddings)
        return Answer(*(part[index] for part in found))

    @property
    def opinion(self) -> Opinion:
        """The answer without the rest."""
        return Opinion(self.predicted, self.probabilities.max(axis=1, initial=0.0))


class Answering(Protocol):
    """What a version answers with: its `Session`, or one that has kept the embeddings."""

    @property
    def labels(self) -> Sequence[str]:
        """The version's classes, in the order of its output."""

    @property
    def number(self) -> bool:
        """Whether it predicts a number instead of classes."""

    @property
    def head(self) -> Head:
        """Its last layer."""

    @property
    def preprocessor(self) -> Preprocessor:
        """Makes the graph's feeds of inputs."""

    @property
    def graph(self) -> Session:
        """What runs the version's own graph each time."""

    def predict(self, inputs: NDArray[np.generic]) -> Prediction:
        """Predict ``n`` inputs, in their order."""


class Served:
    """One version, opened from its folder as the server opens it."""

    def __init__(
        self,
        version: str,
        session: Answering,
        encoder: str,
        classes: Classes,
        folder: Path | None = None,
    ) -> None:
        self.version = version
        self.folder = folder
        #: Whether it is a snapshot in a run that follows what learns online.
        self.step = False
        #: Columns of an embedding that tell where an input lies, without an ensemble's waves of it.
        self.place = slice(None, _row_width(folder))
        self.session = session
        self.encoder = encoder
        self.labels: Sequence[str] = session.labels
        self.classes = classes
        #: What a small error is, where it predicts a number.
        self.scale = scale_of(folder) if session.number and folder else None
        self._judge = Judge(version, session.labels, session.head, classes, session.number)
        self.columns = self._judge.columns

    @classmethod
    def open(
        cls, folder: Path, manifest: Manifest, classes: Classes, *, threads: int = 1
    ) -> Served:
        """Open the version in ``folder``, whose digests the registry has verified."""
        session = Session.open(folder, threads=threads)
        return cls(manifest.version, session, encoder_digest(manifest), classes, folder)

    @property
    def weight(self) -> NDArray[np.float32]:
        """The head's weight, float32 [d, k] in the version's own class order."""
        return self.session.head.weight

    @property
    def bias(self) -> NDArray[np.float32]:
        """The head's bias, float32 [k]."""
        return self.session.head.bias

    def answer(self, inputs: NDArray[np.generic]) -> Answer:
        """Run the INT8 file on ``inputs`` [n]."""
        prediction = self.session.predict(inputs)
        probabilities = np.zeros((len(inputs), len(self.classes)), dtype=np.float32)
        probabilities[:, self.columns] = prediction.probabilities
        predicted: NDArray[Any] = self.columns[prediction.probabilities.argmax(axis=1)]
        if self.session.number:
            predicted = prediction.logits[:, 0].astype(np.float64)
        return Answer(predicted, probabilities, prediction.embeddings)

    def answer_from(self, embeddings: NDArray[np.float32]) -> Answer:
        """The answer to events of which this version's encoder made ``embeddings``, [n, d]."""
        found = softmax(embeddings @ self.weight + self.bias, axis=1)
        probabilities = np.zeros((len(embeddings), len(self.classes)), dtype=np.float32)
        probabilities[:, self.columns] = found
        return Answer(self.columns[found.argmax(axis=1)], probabilities, embeddings)

    def judge(self, embeddings: NDArray[np.float32]) -> Opinion:
        """The opinion on embeddings, float32 [n, d], of this version's own encoder."""
        return self._judge.judge(embeddings)

    def predict(
        self, inputs: NDArray[np.generic], embeddings: NDArray[np.float32], encoder: str
    ) -> Opinion:
        """The opinion on events; from ``embeddings`` where ``encoder`` is this version's own."""
        if encoder == self.encoder:
            return self.judge(embeddings)
        return self.answer(inputs).opinion


Opener = Callable[[Path, Manifest, Classes], Served]


class Judge:
    """A version's head alone: judges embeddings of its encoder, without opening its graph."""

    def __init__(
        self,
        version: str,
        labels: Sequence[str],
        head: Head,
        classes: Classes,
        number: bool = False,
    ) -> None:
        self.version = version
        self._number = number
        self.columns = np.array([classes.add(name) for name in labels], dtype=np.int64)
        self._head = head

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, classes: Classes) -> Judge:
        """Read the head of the version in ``folder``."""
        return cls(manifest.version, *read_head(folder), classes, predicts_number(folder))

    def judge(self, embeddings: NDArray[np.float32]) -> Opinion:
        """The opinion on embeddings, float32 [n, d]."""
        logits = embeddings @ self._head.weight + self._head.bias
        found = Opinion.of(logits, number=self._number)
        return found if self._number else replace(found, predicted=self.columns[found.predicted])


def right(scale: NumberScale | None, given: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.bool_]:
    """Bool [n]: which answers are right: the same class, or a number within the tolerance."""
    same: NDArray[np.bool_] = scale.right(given, truth) if scale else given == truth
    return same


def score(scale: NumberScale | None, given: NDArray[Any], truth: NDArray[Any]) -> Outcomes:
    """What paired tests compare: right or wrong of a class, a score in [0, 1] of a number; [n]."""
    return scale.score(given, truth) if scale else right(scale, given, truth)


def scale_of(folder: Path) -> NumberScale | None:
    """The measure of a version that predicts a number; None where it predicts classes."""
    return NumberScale.of(json.loads((folder / "model.json").read_bytes()))


def _row_width(folder: Path | None) -> int | None:
    """The width of a table's row within the embedding; None where that is something else."""
    description = json.loads((folder / "model.json").read_bytes()) if folder else {}
    if description.get("kind") == "river":
        return int(description["numbers"]) or None
    waves = 2 * description.get("random_features", 0)
    return description["dimension"] - waves if waves else None


def encoder_digest(manifest: Manifest) -> str:
    """What identifies a version's encoder: two versions with the same digest embed alike."""
    files = manifest.files
    return "+".join(files[name].sha256[:12] for name in ENCODER_FILES if name in files)
