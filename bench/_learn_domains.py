"""CLINC150 as ten domains that arrive one after the other, for `bench learn`.

Class-incremental: a model is asked for all intents seen so far. All methods work on the same
embeddings of the frozen encoder; what differs is what they remember and how they use it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from bench._learn_data import as_examples, embeddings
from bench.streams import clinc150
from learn.config import LearnConfig, MemoryConfig
from learn.examples import Examples
from learn.head import Head, fit_softmax
from learn.memory import Memory
from learn.model import Model
from learn.strategies.head import HeadRefit
from learn.strategy import Round, Start

MEMORY = 2000
METHODS = ("driftd", "experience replay", "naive fine-tuning", "joint")
LEARN = LearnConfig()
EPOCHS, BATCH, RATE = 20, 16, 1.0


@dataclass(frozen=True, slots=True)
class Domains:
    """Training and test events by domain, in order of arrival, which numbers the classes."""

    train: list[Examples]
    test: list[Examples]
    classes: list[int]
    seed: int

    @classmethod
    def read(cls, seed: int, count: int, most: int = 1000) -> Domains:
        """``count`` domains in an order of the seed, of each intent at most ``most`` texts."""
        parts = {part: clinc150(part) for part in ("train", "test")}
        _, intents, domains = parts["train"]
        order = np.random.default_rng(seed).permutation(sorted(set(domains)))[:count].tolist()
        names: list[str] = []
        for domain in order:
            names += sorted({i for i, d in zip(intents, domains, strict=True) if d == domain})
        place = {name: i for i, name in enumerate(names)}
        split: dict[str, list[Examples]] = {}
        for part, rows in parts.items():
            kept = _first(rows, place, most)
            inputs = np.empty(len(kept), dtype=object)
            inputs[:] = [text for text, _, _ in kept]
            truth = np.array([place[intent] for _, intent, _ in kept], dtype=np.int64)
            everything = as_examples(inputs, truth, embeddings(inputs), part)
            of = np.array([domain for _, _, domain in kept])
            split[part] = [everything.take(of == name) for name in order]
        classes = np.cumsum([len(set(e.labels.tolist())) for e in split["train"]]).tolist()
        return cls(split["train"], split["test"], classes, seed)

    def run(self, method: str) -> dict[str, float]:
        """Learn domain by domain; ``accuracy``, ``forgetting``, ``backward`` in percent points.

        As Lopez-Paz & Ranzato (2017) and Chaudhry et al. (2018) define them.
        """
        makers: dict[str, Callable[[], _Learner]] = {
            "driftd": _Refits,
            "experience replay": lambda: _Gradient(MEMORY, self.seed),
            "naive fine-tuning": lambda: _Gradient(0, self.seed),
            "joint": _Joint,
        }
        learner = makers[method]()
        n = len(self.train)
        right = np.full((n, n), np.nan)
        for t in range(n):
            head = learner.learn(self.train[t], self.classes[t])
            for j in range(t + 1):
                found = head.logits(_known(self.test[j])).argmax(axis=1)
                right[t, j] = 100 * float((found == self.test[j].labels).mean())
        last, past = right[-1], np.arange(n - 1)
        return {
            "accuracy": float(last.mean()),
            "forgetting": float((np.nanmax(right[:-1, :-1], axis=0) - last[:-1]).mean()),
            "backward": float((last[:-1] - right[past, past]).mean()),
        }


def _first(
    rows: tuple[list[str], list[str], list[str]], intents: Mapping[str, int], most: int
) -> list[tuple[str, str, str]]:
    """(text, intent, domain) of the ``intents``, of each the first ``most``."""
    seen: Counter[str] = Counter()
    kept = []
    for text, intent, domain in zip(*rows, strict=True):
        seen[intent] += 1
        if intent in intents and seen[intent] <= most:
            kept.append((text, intent, domain))
    return kept


class _Learner(Protocol):
    def learn(self, domain: Examples, classes: int) -> Head:
        """The head after one more domain, which brings the classes to ``classes``."""


def _known(examples: Examples) -> NDArray[np.float32]:
    assert examples.embeddings is not None
    return examples.embeddings


class _Refits:
    """The daemon's memory and head rung: a refit when the domain is there, on it and the replay."""

    def __init__(self) -> None:
        self.memory = Memory(MemoryConfig(recent=1500, replay=MEMORY, holdout=1e-9))
        self.events = 0
        self.head: Head | None = None

    def learn(self, domain: Examples, classes: int) -> Head:
        n = len(domain)
        arrivals = np.arange(self.events, self.events + n, dtype=np.int64)
        order = np.random.default_rng(self.events).permutation(n)
        came = domain.take(order)
        self.memory.add(
            Examples(
                came.ids, came.times, came.inputs, came.labels, came.embeddings, came.weights,
                came.topics, came.partitions, came.offsets, arrivals,
            ),
            "encoder",
        )  # fmt: skip
        onset, self.events = self.events, self.events + n
        found = self.memory.training_set(onset, MEMORY, LEARN.replay_weight, seed=0)
        before = self.head.grow(classes) if self.head else Head.zeros(len(_known(came)[0]), classes)
        known = self.head.classes if self.head else 0
        held = tuple(c for c in range(known) if c not in set(came.labels.tolist()))
        start = Start([""] * classes, before, _no_model, 0, 1, 600.0, held=held)
        self.head = HeadRefit(LEARN).fit(start, found, Examples.empty(), _unheard).head
        return self.head


def _no_model() -> Model:
    raise AssertionError("a head needs no encoder")


def _unheard(_: Round) -> None:
    """The panel is not looked at."""


class _Gradient:
    """The head by SGD on the domain; half of each batch from a class-balanced buffer, if any."""

    def __init__(self, memory: int, seed: int) -> None:
        self.memory, self.generator = memory, np.random.default_rng(seed)
        self.x = np.empty((0, 0), np.float32)
        self.y = np.empty(0, np.int64)
        self.head: Head | None = None

    def learn(self, domain: Examples, classes: int) -> Head:
        x, y = _known(domain), domain.labels
        head = self.head.grow(classes) if self.head else Head.zeros(x.shape[1], classes)
        weight, bias = head.weight.copy(), head.bias.copy()
        for _ in range(EPOCHS):
            order = self.generator.permutation(len(y))
            for i in range(0, len(y), BATCH):
                index = order[i : i + BATCH]
                bx, by = x[index], y[index]
                if len(self.y):
                    drawn = self.generator.integers(len(self.y), size=BATCH)
                    bx, by = np.concatenate([bx, self.x[drawn]]), np.append(by, self.y[drawn])
                residual = softmax(bx @ weight + bias, axis=1)
                residual[np.arange(len(by)), by] -= 1.0
                weight -= RATE * bx.T @ residual / len(by)
                bias -= RATE * residual.mean(axis=0)
        self.head = Head(weight, bias)
        self._remember(x, y)
        return self.head

    def _remember(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
        if not self.memory:
            return
        if len(self.y):
            x, y = np.concatenate([self.x, x]), np.append(self.y, y)
        share = self.memory // len(np.unique(y))
        order = self.generator.permutation(len(y))
        kept = np.concatenate([order[y[order] == c][:share] for c in np.unique(y)])
        self.x, self.y = x[kept], y[kept]


class _Joint:
    """All domains so far at once: the ceiling."""

    def __init__(self) -> None:
        self.seen: list[Examples] = []

    def learn(self, domain: Examples, classes: int) -> Head:
        self.seen.append(domain)
        found = Examples.concatenate(self.seen)
        return fit_softmax(_known(found), found.labels, None, classes, LEARN.l2)
