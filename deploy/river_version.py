"""A model of river as a version: its recipe and the events it learned, taught anew on opening.

river stores models as pickle, which executes what it loads. But its models are a function of their
recipe, seed and events in order, so a version holds these: plain arrays, checked like any other
file. Opening one costs what learning its events costs, about a millisecond each; where a model in
this process has learned the first of them already, a copy of it goes on from there.

There is no ONNX graph and nothing is quantised: whoever serves such a version needs river.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from deploy.errors import LoadError
from deploy.river_model import RiverModel, Row, Scalar

log = logging.getLogger("driftd.server")

RIVER_FILE = "model.river.safetensors"
Feeds = Mapping[str, NDArray[Any]]

LEAST = 1e-6  # probability; its logarithm is a logit


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model is made of, beside the events.

    model, parameters: as `RiverModel` takes them. numbers, categories: columns of its feeds.
    """

    model: str
    parameters: dict[str, Scalar]
    seed: int
    numbers: int
    categories: int
    number: bool = False

    @property
    def nominal(self) -> list[str]:
        """The names of the categories' columns."""
        return [f"category{i}" for i in range(self.categories)]

    def rows(self, feeds: Feeds) -> list[Row]:
        """The preprocessor's feeds as river takes them."""
        columns = {f"numeric{i}": feeds["numeric"][:, i].tolist() for i in range(self.numbers)}
        for i, name in enumerate(self.nominal):
            columns[name] = [str(value) for value in feeds["category"][:, i].tolist()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@dataclass(frozen=True, slots=True)
class Events:
    """What a model has learned, in order.

    numeric: float32 [n, f]. category: int64 [n, c]. labels: int64 [n], indices into `classes`, or
    float64 [n] where it predicts a number.
    """

    numeric: NDArray[np.float32]
    category: NDArray[np.int64]
    labels: NDArray[Any]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def feeds(self) -> dict[str, NDArray[Any]]:
        """As the preprocessor gave them."""
        return {"numeric": self.numeric, "category": self.category}

    def truth(self) -> list[Any]:
        """Labels by name, or numbers."""
        if self.labels.dtype == np.float64:
            numbers: list[Any] = self.labels.tolist()
            return numbers
        return [self.classes[i] for i in self.labels.tolist()]

    def take(self, part: slice) -> Events:
        """Those of ``part``."""
        return Events(self.numeric[part], self.category[part], self.labels[part], self.classes)

    def begins_with(self, other: Events) -> bool:
        """Whether ``other`` are its first ones."""
        n = len(other)
        return (
            n <= len(self)
            and self.classes[: len(other.classes)] == other.classes
            and np.array_equal(self.labels[:n], other.labels)
            and np.array_equal(self.numeric[:n], other.numeric)
            and np.array_equal(self.category[:n], other.category)
        )


class RiverVersion:
    """A model of river that runs where a graph would, and goes on learning.

    Its embedding, float32 [n, f + m], is the row's numbers, then the logarithms of the
    probabilities of the ``m`` classes it has met, or the number it predicts. A head over that
    makes the logits; `head` is the one that passes the model's own answers on.
    """

    def __init__(self, recipe: Recipe, classes: Sequence[str] = ()) -> None:
        """``classes``: those known before the first event. Raises ValueError for a bad recipe."""
        self.recipe = recipe
        self._model = _made(recipe)
        self._learned = [_nothing(recipe, classes)]
        self._lock = threading.Lock()  # a copy must not be taken of half an event
        with _ALIVE_LOCK:
            _ALIVE.add(self)

    @classmethod
    def open(cls, path: Path) -> RiverVersion:
        """The model of a version's file. Raises `LoadError`."""
        try:
            here = version("river")
        except ImportError:
            raise LoadError(
                "needs_river",
                "this version is a model of river, which has no ONNX graph: install river beside "
                "the server (pip install river), or promote a version that has one",
            ) from None
        try:
            recipe, events, made_with = _read(path)
            if here != made_with:
                # As with another onnxruntime: no reason not to serve, but worth knowing.
                log.warning(
                    "%s was made with river %s and is opened with %s", path, made_with, here
                )
            return cls.taught(recipe, events)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise LoadError("bad_files", f"cannot read {path}: {error!r}") from error

    @classmethod
    def taught(cls, recipe: Recipe, events: Events) -> RiverVersion:
        """One that has learned ``events``; a copy of one at hand that knows the first of them."""
        found = cls(recipe, events.classes)
        with _ALIVE_LOCK:
            others = sorted(_ALIVE, key=len, reverse=True)
        for other in others:
            if other is not found and other.recipe == recipe and len(other):
                with other._lock:
                    known = other.events
                    if events.begins_with(known):
                        found._model = copy.deepcopy(other._model)
                        found._learned = [known]
                        break
        found._learn(events.take(slice(len(found), None)))
        return found

    def __len__(self) -> int:
        """How many events it has learned."""
        return sum(len(part) for part in self._learned)

    @property
    def events(self) -> Events:
        """All it has learned."""
        if len(self._learned) > 1:
            parts = self._learned
            self._learned = [
                Events(
                    np.concatenate([part.numeric for part in parts]),
                    np.concatenate([part.category for part in parts]),
                    np.concatenate([part.labels for part in parts]),
                    parts[-1].classes,
                )
            ]
        return self._learned[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes it has met, in that order."""
        return self._learned[-1].classes

    def head(self, labels: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight [f + m, k] and bias [k] by which ``labels`` have the model's own probabilities."""
        said = labels if self.recipe.number else self.classes
        weight = np.zeros((self.recipe.numbers + len(said), len(labels)), dtype=np.float32)
        bias = np.zeros(len(labels), dtype=np.float32)
        for j, name in enumerate(labels):
            if name in said:
                weight[self.recipe.numbers + said.index(name), j] = 1.0
            else:
                bias[j] = np.log(LEAST)
        return weight, bias

    def scores(self, feeds: Feeds) -> NDArray[np.float32]:
        """Float32 [n, m]: log-probabilities of `classes`, or the number, as the model says."""
        rows = self.recipe.rows(feeds)
        with self._lock:
            if self.recipe.number:
                return np.array(self._model.answer(rows), dtype=np.float32).reshape(-1, 1)
            found = self._model.probabilities(rows, self.classes)
        scores: NDArray[np.float32] = np.log(np.maximum(found, LEAST)).astype(np.float32)
        return scores

    def run(self, outputs: object, feeds: Feeds) -> list[NDArray[np.float32]]:
        """Probabilities, logits and embedding, as an `onnxruntime.InferenceSession` gives them.

        feeds: the preprocessor's, and ``head.weight`` and ``head.bias``.
        """
        del outputs
        scores = self.scores(feeds)
        numeric = feeds.get("numeric", np.empty((len(scores), 0), dtype=np.float32))
        embedding = np.hstack([numeric, scores])
        logits = embedding @ feeds["head.weight"] + feeds["head.bias"]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return [shifted / shifted.sum(axis=1, keepdims=True), logits, embedding]

    def learn(self, feeds: Feeds, labels: Sequence[str] | NDArray[np.float64]) -> None:
        """Learn ``n`` events in order: labels by name, or numbers float64 [n]."""
        n = len(labels)
        classes = self.classes
        if self.recipe.number:
            index = np.asarray(labels, dtype=np.float64)
        else:
            classes = tuple(dict.fromkeys((*classes, *labels)))
            place = {name: i for i, name in enumerate(classes)}
            index = np.array([place[name] for name in labels], dtype=np.int64)
        numeric = feeds.get("numeric", np.empty((n, 0), np.float32))
        category = feeds.get("category", np.empty((n, 0), np.int64))
        self._learn(Events(numeric, category, index, classes))

    def begin_anew(self, newest: int) -> None:
        """Forget what a model that learns only the ``newest`` events does not know."""
        kept = self.events.take(slice(-newest, None))
        model = _made(self.recipe)
        model.teach(self.recipe.rows(kept.feeds()), kept.truth())
        with self._lock:
            self._model, self._learned = model, [kept]

    def to_bytes(self) -> bytes:
        """The file of a version made now."""
        events = self.events
        arrays = {"numeric": events.numeric, "category": events.category, "labels": events.labels}
        about = {**asdict(self.recipe), "classes": events.classes, "river": version("river")}
        return save(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            metadata={"recipe": json.dumps(about)},
        )

    def _learn(self, events: Events) -> None:
        rows = self.recipe.rows(events.feeds())
        with self._lock:
            self._model.teach(rows, events.truth())
            self._learned.append(events)


_ALIVE: weakref.WeakSet[RiverVersion] = weakref.WeakSet()
_ALIVE_LOCK = threading.Lock()


def _made(recipe: Recipe) -> RiverModel:
    return RiverModel(
        recipe.model, recipe.parameters, recipe.nominal, recipe.seed, number=recipe.number
    )


def _nothing(recipe: Recipe, classes: Sequence[str]) -> Events:
    return Events(
        np.empty((0, recipe.numbers), np.float32),
        np.empty((0, recipe.categories), np.int64),
        np.empty(0, np.float64 if recipe.number else np.int64),
        tuple(classes),
    )


def _read(path: Path) -> tuple[Recipe, Events, str]:
    """The recipe, the events and river's version; raises what a bad file may raise."""
    with safe_open(path, framework="numpy") as file:
        about: dict[str, Any] = json.loads(file.metadata()["recipe"])
        arrays = {name: file.get_tensor(name) for name in ("numeric", "category", "labels")}
    classes, made_with = tuple(map(str, about.pop("classes"))), str(about.pop("river"))
    recipe = Recipe(**about)
    expected, events = _nothing(recipe, classes), Events(**arrays, classes=classes)
    for name in arrays:
        found, wanted = getattr(events, name), getattr(expected, name)
        shape = (len(events), *wanted.shape[1:])
        if found.dtype != wanted.dtype or found.shape != shape:
            raise ValueError(f"{name} is {found.dtype} {found.shape}, not {wanted.dtype} {shape}")
    if (
        not recipe.number
        and len(events)
        and not 0 <= events.labels.min() <= events.labels.max() < len(classes)
    ):
        raise ValueError("a label lies outside the classes")
    return recipe, events, made_with
